"""What a plan should do under the traffic that there is, by the snapshot that it was made with. Pure.

A plan is made for the workload that was promised; what is served at a moment is another. So that observed times are
held against what was to be expected of *them*, the same plan is evaluated anew, with the same snapshot, for the sessions,
contexts and prompts that were observed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from splitinfer.operator.local.models import ModelFacts
from splitinfer.operator.planning.graph import graph_of
from splitinfer.optimizer.answer import Prediction, predicted
from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.optimizer.chunked import ChunkedProblem, located
from splitinfer.optimizer.evaluate import evaluate
from splitinfer.optimizer.forecast import Forecast, Traffic
from splitinfer.optimizer.plan import DTypeName, Segment
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.values import Value
from splitinfer.optimizer.wanted import Constraints, Workload


class NoForecast(Exception):
    """There is none; the message says why."""


class Basis(Value):
    """What a plan was made with, and for."""

    snapshot: CapacitySnapshot
    entry: str
    """Node of the entry."""
    traffic: Traffic
    """The load that was promised."""


def traffic_of(work: Workload) -> Traffic:
    """The load that a workload promises."""
    return Traffic(
        sessions=work.rows,
        in_flight=work.micro_batches,
        context_tokens=work.typical_context_tokens,
        prompt_tokens=work.prompt_tokens,
    )


def forecast(
    model: ModelFacts, dtype: DTypeName, segments: Sequence[Segment], basis: Basis, traffic: Traffic
) -> Forecast:
    """The forecast of a plan for some traffic.

    Args:
        model: that is served.
        dtype: of its weights.
        segments: of the plan.
        basis: what the plan was made with.
        traffic: what is served, or was promised.

    Raises:
        NoForecast: the basis knows too little of a node or a link of the plan.
    """
    sessions = ceil(traffic.sessions)
    decode = Workload(
        prompt_tokens=max(1, round(traffic.context_tokens)),
        output_tokens=1,
        concurrency=sessions * traffic.in_flight,
        micro_batches=traffic.in_flight,
    )
    prompt = decode.model_copy(update={"prompt_tokens": traffic.prompt_tokens})
    at_decode = _evaluated(model, dtype, tuple(segments), basis, decode)
    at_prompt = _evaluated(model, dtype, tuple(segments), basis, prompt)
    return Forecast(
        traffic=traffic,
        tpot_seconds=at_decode.tpot_seconds,
        ttft_seconds=at_prompt.ttft_seconds,
        tokens_per_second=traffic.sessions * traffic.in_flight / at_decode.tpot_seconds,
        segment_seconds=at_decode.segment_seconds,
    )


def _evaluated(
    model: ModelFacts, dtype: DTypeName, segments: tuple[Segment, ...], basis: Basis, work: Workload
) -> Prediction:
    question = Question(
        graph=graph_of(model, dtype, work, frozenset()),
        snapshot=basis.snapshot,
        workload=work,
        constraints=Constraints(max_segments=len(segments)),
    )
    problem = ChunkedProblem(question).of(len(segments))
    place = located(problem, basis.entry, segments)
    if place is None:
        unknown = {lost.node: lost.reason for lost in problem.ineligible}
        names = [basis.entry, *(segment.node for segment in segments)]
        why = next((f"{name}: {unknown[name]}" for name in names if name in unknown), None)
        raise NoForecast(why or "the snapshot does not have the nodes of the plan")
    found = evaluate(problem, *place)
    if "links" in found.broken:
        raise NoForecast(next(iter(problem.dead_links), "a link of the plan is not known"))
    return predicted(problem, place[1], found)
