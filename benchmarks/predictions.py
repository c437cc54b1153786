"""Predictions beside what is observed: plans of different cuts, threads and background load, on the real model.

For each number of threads the agent measures the machine once, as it does before ``splitinfer up``. A probe tells the node's
own speed, without what others take; at its low priority it would not come to its end beside a full load. What the load
leaves is counted by the contention model. Then plans are served one after the other by the same processes. What each is
observed at is held against what the optimizer predicts for the traffic that was observed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import psutil

from benchmarks.processes import Chain, chain
from benchmarks.report import Row, Samples, table
from benchmarks.runtime import prompt
from splitinfer.operator.local.agents import Probed, agents
from splitinfer.operator.local.compare import Comparison, traffic_of
from splitinfer.operator.local.control import Recent
from splitinfer.operator.local.models import ModelFacts, find_model
from splitinfer.operator.planning.forecast import Basis, forecast
from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.optimizer.forecast import Traffic
from splitinfer.optimizer.plan import DTypeName, Segment, cuts_at
from splitinfer.optimizer.values import Known
from splitinfer.profiler.contention import share
from splitinfer.segment_runtime.store.importer import import_model

DTYPE: DTypeName = "float32"
ENGINE = "onnx"
ENTRY = "entry"
PROMPT_TOKENS, NEW_TOKENS = 192, 28
OUTPUT_TOKENS = 128
"""What plans are ranked for: TPOT and so many tokens' share of TTFT."""
TPOT_ERROR, SEGMENT_ERROR, BEST = 0.15, 0.20, 2

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Case:
    """A plan and what runs beside it.

    Attributes:
        cuts: before these blocks; host ``i`` has the ``i``-th range.
        threads: of each host, and of the entry.
        busy: processes that compute for ever, on any CPU.
        beside: the host that is pinned to one CPU, together with one busy process.
    """

    cuts: tuple[int, ...]
    threads: int
    busy: int = 0
    beside: int | None = None

    @property
    def load(self) -> str:
        """In words."""
        pinned = "" if self.beside is None else f"1 pinned beside node-{self.beside}"
        return pinned or (f"{self.busy} busy" if self.busy else "none")


CASES = (
    Case((), 1),
    Case((15,), 1),
    Case((5,), 1),
    Case((10, 20), 1),
    Case((4, 9, 22), 1),
    Case((5, 10, 15, 20, 25), 1),
    Case((), 1, busy=2),
    Case((20,), 1, busy=2),
    Case((10, 20), 1, busy=1),
    Case((15,), 1, beside=0),
    Case((), 2),
    Case((8,), 2),
    Case((10, 20), 2),
    Case((15,), 2, busy=1),
)
NODES = 1 + max(len(case.cuts) for case in CASES)


@dataclass(frozen=True, slots=True)
class Result:
    """One case, observed beside predicted."""

    case: Case
    comparison: Comparison

    def errors(self, prefix: str) -> list[float]:
        """Of the figures whose names begin so: predicted over observed, less one."""
        return [
            1 / figure.ratio - 1
            for figure in self.comparison.figures
            if figure.name.startswith(prefix) and figure.ratio
        ]

    def latency(self, *, predicted: bool) -> float:
        """Seconds per output token, as the optimizer's cost counts them."""
        ttft, tpot = (
            (figure.predicted if predicted else figure.observed) or float("inf")
            for figure in self.comparison.figures[:2]
        )
        return tpot + ttft / OUTPUT_TOKENS


@contextlib.contextmanager
def busy(count: int, cpu: int | None = None) -> Iterator[None]:
    """So many processes that compute for ever; pinned to one CPU, or free."""
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(count)]
    try:
        if cpu is not None:
            for process in running:
                psutil.Process(process.pid).cpu_affinity([cpu])
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


@contextlib.contextmanager
def conditions(case: Case, served: Chain | None = None) -> Iterator[None]:
    """The load of a case; where it is beside a host, that host is pinned too."""
    if case.beside is None:
        with busy(case.busy):
            yield
        return
    pinned = psutil.Process(served.hosts[case.beside].process.pid) if served else None
    before = _pin(pinned, [0])
    try:
        with busy(1, 0):
            yield
    finally:
        _pin(pinned, before)


def _pin(process: psutil.Process | None, cpus: list[int]) -> list[int]:
    """Pin every thread of it, those that are there already too; gives where it could run before."""
    if process is None:
        return []
    before = list(process.cpu_affinity() or [])
    for thread in process.threads():
        os.sched_setaffinity(thread.id, cpus)
    return before


NAMES = (ENTRY, *(f"node-{i}" for i in range(NODES)))


async def measured(model: ModelFacts, threads: int) -> CapacitySnapshot:
    """The nodes as `up` measures them: by the agent of this machine."""
    async with agents(Probed(model, DTYPE, ENGINE, "cpu", threads, NODES)) as local:
        return await local.measured(NAMES)


def basis_of(case: Case, taken: CapacitySnapshot) -> Basis:
    """The snapshot of a case: what the agent measured, and what the load leaves of each node."""
    machine = psutil.cpu_count() or 1
    pinned = None if case.beside is None else f"node-{case.beside}"
    shares = {node: share(machine, case.busy, case.threads) for node in NAMES}
    if pinned is not None:
        shares[pinned] = share(1, 1, case.threads)  # one CPU, shared by the two
    unused = Traffic(sessions=1, context_tokens=1, prompt_tokens=1)
    return Basis(snapshot=_loaded(taken, shares), entry=ENTRY, traffic=unused)


def _loaded(taken: CapacitySnapshot, shares: Mapping[str, float]) -> CapacitySnapshot:
    nodes = tuple(
        node.model_copy(update={"background_utilisation": Known(value=1 - shares[node.name])})
        for node in taken.nodes
    )
    return taken.model_copy(update={"nodes": nodes})


def observe(served: Chain, case: Case, epoch: int, repeats: int) -> tuple[tuple[Segment, ...], Recent]:
    """Serve the plan of a case, one request at a time, and say what the entry saw."""
    names = [f"node-{i}" for i in range(len(case.cuts) + 1)]
    plan = served.serve(epoch, cuts_at(served.model.index.blocks, case.cuts, names))
    with conditions(case, served):
        for turn in range(repeats + 1):
            served.complete(prompt(PROMPT_TOKENS, 100 * epoch + turn), NEW_TOKENS if turn else 4)
        return plan.segments, Recent.model_validate(served.status()["recent"])


def held(
    case: Case, segments: tuple[Segment, ...], recent: Recent, basis: Basis, facts: ModelFacts
) -> Result:
    """What was observed beside what was to be expected of it."""
    traffic = traffic_of(recent)
    assert traffic is not None, "it was served a moment ago"
    expected = forecast(facts, DTYPE, segments, basis, traffic)
    return Result(case, Comparison(recent, traffic, expected, len(segments), None))


def results(repeats: int, note: Note) -> Iterator[Result]:
    """All cases."""
    model = import_model("smollm2")
    facts = find_model(f"store://{model.name}", model.path.parent, "model")
    for threads in sorted({case.threads for case in CASES}):
        mine = [case for case in CASES if case.threads == threads]
        taken = asyncio.run(measured(facts, threads))
        note(f"{threads} threads: {taken.nodes[0].model_dump_json()}")
        with chain(model, NODES, threads, concurrency=4, context=512, engine=ENGINE, dtype=DTYPE) as served:
            for number, case in enumerate(mine):
                segments, recent = observe(served, case, number + 2, repeats)
                result = held(case, segments, recent, basis_of(case, taken), facts)
                note(f"{case}: " + "; ".join(f"{f.name} {f.words}" for f in result.comparison.figures))
                yield result


def summary(found: Sequence[Result]) -> list[Row]:
    """Errors against their targets, and where the plan that is predicted best stands among those observed."""
    tpot = [abs(error) for result in found for error in result.errors("tpot")]
    ttft = [abs(error) for result in found for error in result.errors("ttft")]
    segments = [abs(error) for result in found for error in result.errors("segment")]
    chosen = min(found, key=lambda result: result.latency(predicted=True))
    ranked = sorted(found, key=lambda result: result.latency(predicted=False))
    rank = ranked.index(chosen) + 1

    def row(name: str, errors: Sequence[float], target: float | None) -> Row:
        words = f"{100 * median(errors):.1f}% of {len(errors)}, largest {100 * max(errors):.0f}%"
        return Row(f"{name}, median absolute error", words, Samples.of([median(errors)]), target, "lower")

    return [
        row("TPOT", tpot, TPOT_ERROR),
        row("time of a segment", segments, SEGMENT_ERROR),
        row("TTFT", ttft, None),
        Row(
            "rank, observed, of the plan that is predicted best",
            f"{rank} of {len(found)}",
            Samples.of([float(rank)]),
            float(BEST),
            "lower",
        ),
    ]


def lines(found: Sequence[Result]) -> list[str]:
    """A table of all cases, in milliseconds."""
    said = [
        "| cuts | threads | load | TPOT observed, predicted | error | TTFT observed, predicted | error | segments, errors |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in found:
        ttft, tpot = result.comparison.figures[:2]
        cells = [f"{1e3 * (f.observed or 0):.1f}, {1e3 * (f.predicted or 0):.1f}" for f in (tpot, ttft)]
        errors = [f"{100 * error:+.0f}%" for name in ("tpot", "ttft") for error in result.errors(name)]
        segments = ", ".join(f"{100 * error:+.0f}%" for error in result.errors("segment"))
        case = result.case
        said.append(
            f"| {', '.join(map(str, case.cuts)) or 'none'} | {case.threads} | {case.load} | {cells[0]} | {errors[0]} | "
            f"{cells[1]} | {errors[1]} | {segments} |"
        )
    return said


def run(repeats: int, note: Note) -> str:
    """All of it, as a report."""
    found = list(results(repeats, note))
    return "\n".join(lines(found)) + "\n\n" + table("Predictions beside observations", summary(found))
