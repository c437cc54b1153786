"""Links of many nodes: what the schedule probes, how far off the estimates of the rest are, and what that costs a plan.

Everything is simulated from seeds (`benchmarks.topologies`), with the real schedule, the real estimates and the real solver.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from benchmarks.instances import Shape, question_of
from benchmarks.link_simulation import (
    Errors,
    Probing,
    by_medians,
    errors,
    matrices_of,
    measured_links,
    probing,
)
from benchmarks.topologies import Topology, topology
from splitinfer.optimizer.answer import in_names
from splitinfer.optimizer.budget import Budget
from splitinfer.optimizer.capacity import CapacitySnapshot, NodeCapacity
from splitinfer.optimizer.chunked import judged
from splitinfer.optimizer.compile import compile_problem
from splitinfer.optimizer.cost import Floats
from splitinfer.optimizer.problem import Problem
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.solver import solve, warm_up
from splitinfer.profiler.ages import StaleBounds
from splitinfer.profiler.link_estimates import Estimates, estimate
from splitinfer.profiler.link_pace import pace
from splitinfer.profiler.links import MOST_BYTES
from splitinfer.profiler.options import INTERVAL_SECONDS, LINK_BUDGET_BYTES

ROUND_SECONDS, FRESH_SECONDS = INTERVAL_SECONDS, StaleBounds().links
"""The agent's and the reader's, where nothing else is said."""
WIDE, NARROW = LINK_BUDGET_BYTES, LINK_BUDGET_BYTES / 4
"""Bytes per hour that a node may send: the agent's default, and a quarter of it."""
BLOCKS = 32


@dataclass(frozen=True, slots=True)
class Size:
    """Nodes at sites; ``known`` says whether the profiler is told the sites. ``budget`` is in bytes per node and hour."""

    nodes: int
    sites: int
    known: bool = True
    budget: float = WIDE

    def __str__(self) -> str:
        sites = f"{self.sites} sites" + ("" if self.known else " that nobody names")
        return f"{self.nodes:,} at {sites}, {self.budget / 1e6:.0f} MB/h"

    @property
    def keep(self) -> int:
        """Links that a node keeps measured."""
        found = pace(self.budget, MOST_BYTES, ROUND_SECONDS, FRESH_SECONDS)
        assert found is not None
        return found.keep


SIZES = (
    Size(12, 3),
    Size(100, 10, budget=NARROW),
    Size(100, 10, known=False, budget=NARROW),
    *(Size(1000, sites, budget=budget) for sites in (30, 100, 300) for budget in (WIDE, NARROW)),
    Size(1000, 100, known=False),
    Size(1000, 100, known=False, budget=NARROW),
)


def run(seeds: int, seconds: float, note: Callable[[str], None]) -> str:
    """Both tables, as Markdown: medians over seeds."""
    warm_up()
    lines = [
        "### What is probed",
        "",
        f"Each node probes one link at a time, as often as its budget of bytes allows, and each link of its sample again while "
        f"the reading is fresh, {FRESH_SECONDS:g} s. A probe is at most {MOST_BYTES / 1e6:.1f} MB.",
        "",
        "| nodes | ordered pairs | probed | rounds until complete | MB per node and hour | probes of one node: mean, most, most in one round | estimates, s |",
        "|---|---|---|---|---|---|---|",
    ]
    table = [
        "### How far off estimates are",
        "",
        "Relative error over the pairs that nobody probed, median and p95; `unknown`: pairs without an estimate. Cost: of the plan "
        f"on the estimates ({BLOCKS} blocks, {seconds:g} s of solving), judged on the true links, over the best plan known.",
        "",
        "| nodes | estimate | unknown | round trip | bandwidth | cost of the plan, each seed |",
        "|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        trials = []
        for seed in range(seeds):
            trials.append(_trial(size, seed, seconds))
            note(f"{size}, seed {seed}: {trials[-1]}")
        lines.append(_probed(size, trials))
        table += _errors(size, trials)
    return "\n".join([*lines, "", *table])


@dataclass(frozen=True, slots=True)
class Trial:
    """One size and seed. Estimators by name: errors, and cost ratio (infinite without a plan)."""

    probed: int
    rounds: int
    busiest: tuple[int, int]
    estimate_seconds: float
    errors: dict[str, Errors | None]
    costs: dict[str, float]


def _trial(size: Size, seed: int, seconds: float) -> Trial:
    truth = topology(size.nodes, size.sites, seed)
    pairs = probing(truth, size.known, size.keep)
    links = measured_links(truth, pairs, seed)
    began = time.process_time()
    sites = {name: site if size.known else None for name, site in zip(truth.names, truth.sites, strict=True)}
    found = estimate(sites, links)
    took = time.process_time() - began
    question = question_of(Shape(BLOCKS, size.nodes, "tight", "sites", seed))
    snapshots: dict[str, CapacitySnapshot] = {}
    off: dict[str, Errors | None] = {}
    for name, each in _estimators(truth, pairs, found, size.known):
        snapshots[name], trips, bands = matrices_of(truth, size.known, each, question)
        off[name] = errors(truth, pairs, trips, bands)
    costs = _costs(truth, question, snapshots, seconds)
    return Trial(len(pairs.a), pairs.rounds, pairs.busiest, took, off, costs)


def _estimators(
    truth: Topology, pairs: Probing, found: Estimates, known: bool
) -> Iterator[tuple[str, Estimates]]:
    if len(pairs.a) == len(truth.names) * (len(truth.names) - 1):
        yield "all measured", found
        return
    yield "none", Estimates(found.links)
    if known:
        yield "medians of sites", by_medians(truth, found.links)
    yield "estimate", found


def _costs(
    truth: Topology, question: Question, snapshots: dict[str, CapacitySnapshot], seconds: float
) -> dict[str, float]:
    """Cost of each snapshot's plan on the true links, over the best that any plan has there."""
    index = {name: i for i, name in enumerate(truth.names)}

    def true(_question: Question, nodes: list[NodeCapacity]) -> tuple[Floats, Floats, list[str]]:
        at = [index[node.name] for node in nodes]
        return truth.round_trips[np.ix_(at, at)], truth.bandwidths[np.ix_(at, at)], []

    costs, judge = {}, None
    for name, snapshot in snapshots.items():
        asked = replace(question, snapshot=snapshot)
        judge = judge or compile_problem(asked, links=true)
        costs[name] = _cost(judge, compile_problem(asked), seconds)
    assert judge is not None
    best = min(_cost(judge, judge, seconds), *costs.values())
    return {name: cost / best for name, cost in costs.items()}


def _cost(judge: Problem, problem: Problem, seconds: float) -> float:
    found = in_names(problem, solve(problem, Budget(seconds, time.process_time)))
    if not found.segments:
        return float("inf")
    evaluation = judged(judge, found.entry, found.segments)
    return evaluation.cost if evaluation is not None and evaluation.feasible else float("inf")


def _probed(size: Size, trials: list[Trial]) -> str:
    pairs = size.nodes * (size.nodes - 1)
    probed = median(trial.probed for trial in trials)
    rounds = max(trial.rounds for trial in trials)
    per_hour = probed / size.nodes * MOST_BYTES * 3600 / FRESH_SECONDS / 1e6
    return (
        f"| {size} | {pairs:,} | {100 * probed / pairs:.1f}% | {rounds} | {per_hour:.0f} | {probed / size.nodes:.0f}, "
        f"{max(t.busiest[0] for t in trials)}, {max(t.busiest[1] for t in trials)} "
        f"| {median(t.estimate_seconds for t in trials):.2f} |"
    )


def _errors(size: Size, trials: list[Trial]) -> Iterator[str]:
    for name in trials[0].errors:
        found = [each for trial in trials if (each := trial.errors[name]) is not None]
        costs = ", ".join(f"{trial.costs[name]:.3f}" for trial in trials)

        def middle(values: list[tuple[float, float]]) -> str:
            low, high = (100 * median(column) for column in zip(*values, strict=True))
            return "" if np.isnan(low) else f"{low:.0f}%, {high:.0f}%"

        if found:
            unknown = f"{100 * median(e.unknown for e in found):.1f}%"
            trips, bands = middle([e.round_trip for e in found]), middle([e.bandwidth for e in found])
        else:
            unknown = trips = bands = ""
        yield f"| {size} | {name} | {unknown} | {trips} | {bands} | {costs} |"
