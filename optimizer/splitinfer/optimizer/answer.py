"""The answer to a question in names and units: a plan with its predictions, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass

from splitinfer.optimizer.budget import Budget
from splitinfer.optimizer.chunked import ChunkedProblem, Named, named, solve_chunked
from splitinfer.optimizer.evaluate import Evaluation, Run
from splitinfer.optimizer.plan import Segment
from splitinfer.optimizer.problem import Ineligible, Problem
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.solver import Solution, Status


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a plan is expected to do. Seconds, tokens per second, fractions; per-node utilisation by name."""

    cost: float
    ttft_seconds: float
    tpot_seconds: float
    throughput_tokens_per_second: float
    utilisation: float
    exposure: float
    move_seconds: float
    node_utilisation: dict[str, float]
    segment_seconds: tuple[float, ...]
    """Of one decode step, per segment, without hops."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A plan or none.

    Attributes:
        status: ``optimal`` (proven), ``feasible``, ``infeasible`` (proven), ``unknown`` (the budget ended first).
        entry: node of the entry; empty without a plan.
        segments: the plan.
        prediction: its numbers.
        bound: no plan costs less.
        gap: how much cheaper another may be at most, as a fraction.
        ineligible: nodes left out, with the reason.
        dead_links: links left out, with the reason.
    """

    status: Status
    entry: str
    segments: tuple[Segment, ...]
    prediction: Prediction | None
    bound: float
    gap: float
    ineligible: tuple[Ineligible, ...]
    dead_links: tuple[str, ...]


def answer(question: Question, budget: Budget | None = None, hint: Named | None = None) -> Answer:
    """Solve a question.

    Args:
        question: what to solve.
        budget: how long.
        hint: entry and segments of a plan worth trying first.

    Raises:
        OptimizerInputError: a constraint that names what is not there.
    """
    return in_names(*solve_chunked(ChunkedProblem(question), budget, (hint,) if hint else ()))


def in_names(problem: Problem, solution: Solution) -> Answer:
    """A solution by names."""
    p, e = problem, solution.evaluation
    entry, segments = named(p, solution.entry, solution.runs) if e else ("", ())
    return Answer(
        status=solution.status,
        entry=entry,
        segments=segments,
        prediction=predicted(p, solution.runs, e) if e else None,
        bound=solution.bound,
        gap=solution.gap,
        ineligible=p.ineligible,
        dead_links=p.dead_links,
    )


def predicted(problem: Problem, runs: tuple[Run, ...], found: Evaluation) -> Prediction:
    """An evaluation by names."""
    p = problem
    return Prediction(
        cost=found.cost,
        ttft_seconds=found.ttft_seconds,
        tpot_seconds=found.tpot_seconds,
        throughput_tokens_per_second=p.concurrency / found.tpot_seconds
        if found.tpot_seconds
        else float("inf"),
        utilisation=found.utilisation,
        exposure=found.exposure,
        move_seconds=found.move_seconds,
        node_utilisation={p.nodes[n]: u for n, u in sorted(found.node_utilisation.items())},
        segment_seconds=tuple(float(p.ring[a:b, n].sum() + p.step_decode[n]) for n, a, b in runs),
    )
