"""What the agent of this machine says now, as plain data and as lines for a person. Pure but for `ask`."""

from __future__ import annotations

from collections.abc import Sequence

from splitinfer.profiler import series as s
from splitinfer.profiler.agents import AgentsSource
from splitinfer.profiler.answers import Sample
from splitinfer.profiler.sources import SourceError

_FACTS = {
    "memory_available_bytes": s.NODE_MEMORY,
    "usable_cpus": s.NODE_CPUS,
    "busy_by_others_ratio": s.NODE_CPU_BUSY,
    "runnable_threads_of_others": s.NODE_RUNNABLE,
    "serving_ratio": s.NODE_SERVING,
    "age_seconds": s.NODE_AGE,
    "probe_age_seconds": s.PROBE_AGE,
    "calibration_ratio": s.PROBE_CALIBRATION,
    "calibration_age_seconds": s.PROBE_CALIBRATION_AGE,
}
"""Names in ``status -o json``; each has one value, since the local agent has one probe."""

Facts = dict[str, float]


async def ask(address: str | None) -> Facts | str:
    """What the agent at ``address`` says, or why that is not known."""
    if address is None:
        return "no agent runs: the plan was given, or made with numbers from elsewhere"
    async with AgentsSource(lambda: [address], window_seconds=60.0, timeout_seconds=2.0) as source:
        try:
            return facts_of((await source.gather()).samples)
        except SourceError as error:
            return str(error)


def facts_of(samples: Sequence[Sample]) -> Facts:
    """By the names of `status -o json`; what the agent does not know is absent."""
    values = {sample.name: sample.value for sample in samples}
    return {name: values[series.name] for name, series in _FACTS.items() if series.name in values}


def lines(found: Facts | str) -> list[str]:
    """For a person."""
    if isinstance(found, str):
        return [f"machine: {found}"]

    def value(name: str, form: str, factor: float = 1.0) -> str:
        return form.format(factor * found[name]) if name in found else "unknown"

    ratio = value("calibration_ratio", "{:.2f}")
    calibrated = f"{ratio} x the probe's prediction, {value('calibration_age_seconds', '{:.0f} s')} ago"
    return [
        f"machine: others take {value('busy_by_others_ratio', '{:.0f} %', 100)} of the CPUs with "
        f"{value('runnable_threads_of_others', '{:.1f}')} threads, hosts compute {value('serving_ratio', '{:.0f} %', 100)} "
        f"of the time ({value('age_seconds', '{:.0f} s')} ago)",
        f"calibration: probed {value('probe_age_seconds', '{:.0f} s')} ago; live steps took "
        + (calibrated if "calibration_ratio" in found else "no part in it yet"),
    ]
