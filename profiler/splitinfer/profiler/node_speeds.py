"""The speeds of a node for one model: its probe, corrected by what live steps took. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from splitinfer.optimizer.values import Known, Unknown
from splitinfer.profiler import series as s
from splitinfer.profiler.ages import Agent, Reading, StaleBounds, fresh, unknown


@dataclass(frozen=True, slots=True)
class Asked:
    """Whose speeds are asked for.

    Attributes:
        model: digest of the stored model.
        dtype: of its weights.
        engine: that hosts run; None where any will do, as long as nodes were probed with one only.
    """

    model: str
    dtype: str
    engine: str | None = None


_SLOWED = ("block_overhead_seconds", "step_overhead_seconds")
_SPED = ("memory_bandwidth_bytes_per_second", "flops_per_second")
_SERIES: Mapping[str, s.Series] = {
    "memory_bandwidth_bytes_per_second": s.PROBE_BANDWIDTH,
    "flops_per_second": s.PROBE_FLOPS,
    "block_overhead_seconds": s.PROBE_BLOCK_OVERHEAD,
    "step_overhead_seconds": s.PROBE_STEP_OVERHEAD,
    "serialisation_bytes_per_second": s.PROBE_SERIALISATION,
}
NAMES = tuple(_SERIES)


def probe_of(agent: Agent, asked: Asked) -> tuple[str, ...] | Unknown:
    """The labels (model, dtype, engine) of the one probe that answers, or why there is none."""
    if agent.problem is not None:
        return unknown(agent.problem)
    probes = agent.labels_of(*s.PROBE_SERIES)
    if not probes:
        return unknown("the agent has no probe of any model")
    of_model = [labels for labels in probes if labels[0] == asked.model]
    if not of_model:
        return unknown(f"the agent has no probe of model {asked.model[:12]}")
    of_dtype = [labels for labels in of_model if labels[1] == asked.dtype]
    if not of_dtype:
        there = ", ".join(sorted({labels[1] for labels in of_model}))
        return unknown(f"the agent has no probe in {asked.dtype}, only in {there}")
    engines = sorted(labels[2] for labels in of_dtype)
    if asked.engine is not None:
        if asked.engine not in engines:
            return unknown(f"the agent has no probe with {asked.engine}, only with {', '.join(engines)}")
        return (asked.model, asked.dtype, asked.engine)
    if len(engines) > 1:
        return unknown(f"probed with {' and '.join(engines)}; name the engine")
    return of_dtype[0]


def threads(agent: Agent, asked: Asked) -> Reading:
    """Threads that the probe ran with, as hosts do."""
    labels = probe_of(agent, asked)
    return labels if isinstance(labels, Unknown) else agent.probed(s.PROBE_THREADS, labels)


def speeds(agent: Agent, asked: Asked, bounds: StaleBounds) -> Mapping[str, Reading]:
    """Readings by the names of `splitinfer.optimizer.capacity.NodeCapacity`.

    A step that takes ``r`` times what the probe predicts is predicted right by bandwidth and FLOP/s divided by ``r`` and
    overheads times ``r``; frames are no part of what the calibration compares. A calibration that is too old corrects nothing any more. A fresh
    one says anew what the probe said, so a speed is as old as the younger of the two.
    """
    labels = probe_of(agent, asked)
    if isinstance(labels, Unknown):
        return dict.fromkeys(NAMES, labels)
    wrong = _contradiction(agent, labels)
    if wrong is not None:
        return dict.fromkeys(NAMES, unknown(wrong))
    ratio = None
    if agent.has(s.PROBE_CALIBRATION, *labels):
        said = agent.calibration(s.PROBE_CALIBRATION, labels)
        if isinstance(said, Unknown):
            # The agent corrects its probe and cannot be understood: the probe alone is known to be wrong.
            return dict.fromkeys(NAMES, said)
        ratio = said if said.age_seconds <= bounds.speeds else None
    return {name: _speed(agent.probed(_SERIES[name], labels), name, ratio, bounds) for name in NAMES}


def _speed(probed: Reading, name: str, ratio: Known | None, bounds: StaleBounds) -> Reading:
    if isinstance(probed, Unknown):
        return probed
    value, age = probed.value, probed.age_seconds
    if ratio is not None:
        if name in _SPED:
            value, age = value / ratio.value, min(age, ratio.age_seconds)
        elif name in _SLOWED:
            value, age = value * ratio.value, min(age, ratio.age_seconds)
        else:  # a node that serves is not probed; its frames are as fast as they were
            age = min(age, ratio.age_seconds)
    return fresh(value, age, bounds.speeds, probed.source)


def _contradiction(agent: Agent, labels: tuple[str, ...]) -> str | None:
    """A block's overhead is a part of its time."""
    over, whole = (agent.probed(series, labels) for series in (s.PROBE_BLOCK_OVERHEAD, s.PROBE_BLOCK_DECODE))
    if isinstance(over, Known) and isinstance(whole, Known) and over.value > whole.value:
        return f"{s.PROBE_BLOCK_OVERHEAD.name} is more than {s.PROBE_BLOCK_DECODE.name}"
    return None
