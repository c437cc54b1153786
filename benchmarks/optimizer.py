"""The solver against other solvers and against simple rules, on instances from a seed: cost ratio, gap and time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from benchmarks.instances import Shape, question_of
from benchmarks.rivals import RIVALS, Rival
from splitinfer.optimizer.budget import Budget
from splitinfer.optimizer.compile import compile_problem
from splitinfer.optimizer.problem import Problem
from splitinfer.optimizer.solver import Solution, solve, warm_up

CLOCK = time.process_time
"""CPU time: the machine may be shared, and everything here but HiGHS and CP-SAT runs on one thread."""


@dataclass(frozen=True, slots=True)
class Target:
    """What issue 5 asks for a size: seconds, and what must hold by then."""

    blocks: int
    nodes: int
    seconds: float
    words: str
    met: Callable[[list[Solution]], bool]


def _all_proven(found: list[Solution]) -> bool:
    return all(s.status == "optimal" for s in found)


def _most_proven(found: list[Solution]) -> bool:
    return 2 * sum(s.status == "optimal" for s in found) > len(found)


TARGETS = (
    Target(32, 8, 0.05, "proven in 50 ms", _all_proven),
    Target(32, 128, 3.0, "proven in 3 s", _all_proven),
    Target(126, 128, 2.0, "within 5% of the bound in 2 s", lambda found: all(s.gap <= 0.05 for s in found)),
    Target(126, 128, 30.0, "proven in 30 s for most", _most_proven),
)


def shapes(blocks: int, nodes: int, seeds: int) -> list[Shape]:
    """Memory tight and loose, links by site and at random, some seeds of each."""
    links = ("sites", "random") if nodes <= 128 else ("sites",)
    return [
        Shape(blocks, nodes, memory, link, seed)
        for link in links
        for memory in ("tight", "loose")
        for seed in range(seeds)
    ]


def run(seeds: int, seconds: float, note: Callable[[str], None]) -> str:
    """All tables, as Markdown."""
    began = time.perf_counter()
    warm_up()
    note(f"ready after {time.perf_counter() - began:.1f} s (compiled code is kept on disk)")
    parts = [_targets(seeds, note), _quality(seeds, note), _rivals(seconds, note)]
    return "\n\n".join(parts)


def _targets(seeds: int, note: Callable[[str], None]) -> str:
    lines = [
        "### The solver by size",
        "",
        "CPU seconds; each row over memory tight and loose. `first 2%`: time until the plan was within 2% of the final one.",
        "",
        "| size | links | within | proven | gap: median, largest | time: median, largest | first 2%: median, largest | target |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        everything: list[Solution] = []
        rows = []
        for link in ("sites", "random"):
            found, times = [], []
            for shape in shapes(target.blocks, target.nodes, seeds):
                if shape.links != link:
                    continue
                problem = compile_problem(question_of(shape))
                start = CLOCK()
                found.append(solve(problem, Budget(target.seconds, CLOCK)))
                times.append(CLOCK() - start)
                note(f"{shape}: {found[-1].status}, gap {100 * found[-1].gap:.2f}%, {times[-1]:.2f} s")
            everything += found
            rows.append((link, found, times))
        for link, found, times in rows:
            gaps = [100 * s.gap for s in found]
            firsts = [_first(s, 1.02) for s in found]
            proven = sum(s.status == "optimal" for s in found)
            verdict = "met" if target.met(found) else "missed"
            lines.append(
                f"| {target.blocks}x{target.nodes} | {link} | {target.seconds:g} s | {proven}/{len(found)} | "
                f"{median(gaps):.2f}%, {max(gaps):.2f}% | {median(times):.3f}, {max(times):.3f} | "
                f"{median(firsts):.3f}, {max(firsts):.3f} | {target.words}: {verdict} |"
            )
    return "\n".join(lines)


def _first(solution: Solution, within: float) -> float:
    """Seconds until the plan was within a factor of the one at the end."""
    return next((at for at, cost in solution.trail if cost <= solution.cost * within), float("inf"))


def _quality(seeds: int, note: Callable[[str], None]) -> str:
    """1,000 nodes: what two seconds give, against thirty."""
    lines = [
        "### 126 blocks, 1,000 nodes",
        "",
        "| memory | seed | cost after 2 s, against the best known (30 s) | bound after 30 s |",
        "|---|---|---|---|",
    ]
    for shape in shapes(126, 1000, min(seeds, 2)):
        problem = compile_problem(question_of(shape))
        quick = solve(problem, Budget(2.0, CLOCK))
        long = solve(problem, Budget(30.0, CLOCK))
        best = min(quick.cost, long.cost)
        note(f"{shape}: {quick.cost:.3f} and {long.cost:.3f}")
        lines.append(
            f"| {shape.memory} | {shape.seed} | {quick.cost / best:.3f} | gap {100 * long.gap:.1f}% |"
        )
    return "\n".join(lines)


def _rivals(seconds: float, note: Callable[[str], None]) -> str:
    """Everyone gets the same time; cost as a ratio to the best that anyone found."""
    lines = [
        "### Against other solvers and rules",
        "",
        f"{seconds:g} s each (wall time for HiGHS and CP-SAT, one thread). Cost / best known; `bound`: proven bound / best known.",
        "",
        "| instance | " + " | ".join(["this solver", *RIVALS]) + " |",
        "|---|" + "---|" * (1 + len(RIVALS)),
    ]
    sizes = [(5, 4), (16, 8), (32, 8), (32, 24)]
    for blocks, nodes in sizes:
        for memory in ("tight", "loose"):
            shape = Shape(blocks, nodes, memory, "sites", 1, max_segments=8)
            problem = compile_problem(question_of(shape))
            start = CLOCK()
            ours = solve(problem, Budget(seconds, CLOCK))
            cells = [(ours.cost, ours.bound, CLOCK() - start)]
            for name, rival in RIVALS.items():
                cells.append(_timed(rival, problem, ours.entry, seconds))
                note(f"{shape}: {name} {cells[-1]}")
            best = min(cost for cost, _, _ in cells)
            lines.append(f"| {shape} | " + " | ".join(_cell(cell, best) for cell in cells) + " |")
    return "\n".join(lines)


def _timed(rival: Rival, problem: Problem, entry: int, seconds: float) -> tuple[float, float, float]:
    start = time.perf_counter()
    cost, bound = rival(problem, entry, seconds)
    return cost, bound, time.perf_counter() - start


def _cell(cell: tuple[float, float, float], best: float) -> str:
    cost, bound, seconds = cell
    if cost == float("inf"):
        return f"no plan, {seconds:.2f} s"
    proof = f", bound {bound / best:.3f}" if bound > float("-inf") else ""
    return f"{cost / best:.3f}{proof}, {seconds:.2f} s"
