"""No plan: the constraints that clash, none too many, and changes that were tried before they are offered."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from splitinfer.optimizer.compile import compile_problem
from splitinfer.optimizer.example import tiny_question
from splitinfer.optimizer.infeasible import Explanation, explain
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.solver import solve
from splitinfer.optimizer.values import Known, Unknown
from splitinfer.optimizer.wanted import Pin, Workload
from tests.support.questions import questions


def with_constraints(**changes: object) -> Question:
    """The tiny question under other constraints."""
    question = tiny_question()
    return replace(question, constraints=question.constraints.model_copy(update=changes))


def with_room(**rooms: float) -> Question:
    """The tiny question with other free memory, in MB."""
    question = tiny_question()
    nodes = tuple(
        node.model_copy(update={"free_memory_bytes": Known(value=rooms.get(node.name, 600) * 1e6)})
        for node in question.snapshot.nodes
    )
    return replace(question, snapshot=question.snapshot.model_copy(update={"nodes": nodes}))


def explained(question: Question) -> Explanation:
    """Explained, after making sure that there is something to explain; every mend is solved again."""
    assert solve(compile_problem(question)).status == "infeasible"
    explanation = explain(question)
    for mend in explanation.mends:
        solution = solve(compile_problem(mend.question))
        assert solution.status == "optimal", mend.text
        assert solution.evaluation is not None
        assert solution.evaluation.feasible
    return explanation


def test_a_sensitive_block_without_a_trusted_node_that_has_room() -> None:
    """Memory and privacy clash; free memory on the trusted node, or trust the other."""
    explanation = explained(with_room(box=150, gpu=600))
    assert set(explanation.names) == {"memory", "privacy"}
    texts = [mend.text for mend in explanation.mends]
    assert "free 50 MB on box" in texts
    assert "label gpu trusted" in texts
    assert "blocks 0 are sensitive" in explanation.sentence
    assert "block takes up to 100 MB" in explanation.sentence


def test_memory_alone_names_concurrency() -> None:
    """KV is what does not fit: the largest concurrency that does is named."""
    question = with_room(box=420, gpu=250)
    units = tuple(
        unit.model_copy(update={"kv_bytes_per_token": 10_000 if unit.name.startswith("block") else 0})
        for unit in question.graph.units
    )
    question = replace(
        question,
        graph=question.graph.model_copy(update={"units": units}),
        workload=Workload(
            prompt_tokens=1, output_tokens=1, concurrency=8, max_context_tokens=1000, micro_batches=1
        ),
    )
    explanation = explained(question)
    assert explanation.names == ("memory",)
    assert "lower concurrency from 8 to 2" in [mend.text for mend in explanation.mends]


@pytest.mark.parametrize(
    ("question", "names", "text"),
    [
        (with_constraints(tpot_limit_seconds=0.001), {"tpot_limit"}, "allow a TPOT of 3"),
        (with_constraints(ttft_limit_seconds=0.001), {"ttft_limit"}, "allow a TTFT of"),
        (
            with_constraints(pins=(Pin(start=0, stop=1, node="gpu"),)),
            {"pins", "privacy"},
            "do not pin 0 to gpu",
        ),
        (with_constraints(forbidden_nodes=("box",)), {"forbidden_nodes", "memory"}, "allow node box"),
        (
            with_constraints(
                minimum_bandwidth_bytes_per_second=2e6, pins=(Pin(start=1, stop=2, node="gpu"),)
            ),
            {"minimum_bandwidth", "pins", "memory"},
            "allow links of 1.00 MB/s instead of 2.00",
        ),
    ],
)
def test_each_constraint_is_named_with_its_nearest_change(
    question: Question, names: set[str], text: str
) -> None:
    """One clash of each kind."""
    explanation = explained(question)
    assert set(explanation.names) == names
    assert any(mend.text.startswith(text) for mend in explanation.mends), [m.text for m in explanation.mends]


def test_two_clashes_are_mended_together() -> None:
    """A TTFT and a TPOT that are both out of reach: neither alone gives a plan, so both are named, as reachable."""
    explanation = explained(with_constraints(tpot_limit_seconds=0.001, ttft_limit_seconds=0.001))
    assert explanation.names == ("tpot_limit",)
    (mend,) = explanation.mends
    assert mend.field == "slo.tpotMilliseconds, slo.ttftMilliseconds"
    assert explanation.sentence == (
        "No plan: TPOT of at most 1 ms; and by itself TTFT of at most 1 ms: "
        "allow a TPOT of 37 ms instead of 1, and allow a TTFT of 37 ms instead of 1."
    )


def test_clashes_of_several_kinds_are_mended_together() -> None:
    """A pin that privacy forbids, and a TPOT out of reach: one change of each."""
    explanation = explained(
        with_constraints(tpot_limit_seconds=0.001, pins=(Pin(start=0, stop=1, node="gpu"),))
    )
    (mend,) = explanation.mends
    assert "a TPOT of" in mend.text
    assert "gpu" in mend.text
    assert explanation.also


def test_too_few_segments() -> None:
    """The U-shape needs three; two were allowed."""
    question = with_constraints(
        sensitive_blocks=(0, 3), max_segments=2, pins=(Pin(start=1, stop=2, node="gpu"),)
    )
    explanation = explained(question)
    assert "max_segments" in explanation.names
    assert "raise maxSegments from 2 to 3" in [mend.text for mend in explanation.mends]


def test_nothing_is_known() -> None:
    """No constraint is to blame when no node was measured."""
    question = tiny_question()
    nodes = tuple(
        node.model_copy(update={"free_memory_bytes": Unknown(unknown="agent silent")})
        for node in question.snapshot.nodes
    )
    explanation = explained(replace(question, snapshot=question.snapshot.model_copy(update={"nodes": nodes})))
    assert explanation.names == ("capacity",)
    assert "agent silent" in explanation.sentence


@settings(max_examples=25, deadline=None, derandomize=True)
@given(questions(max_blocks=4, max_nodes=3))
def test_the_set_is_irreducible_and_every_mend_works(question: Question) -> None:
    """Of any question without a plan: the set clashes by itself, no part of it does, and mends are verified."""
    from splitinfer.optimizer import infeasible

    if solve(compile_problem(question)).status != "infeasible":
        return
    explanation = explained(question)
    if explanation.names == ("capacity",):
        return

    def feasible_with_only(names: set[str]) -> bool:
        lifted = infeasible._lifted(question, [n for n in infeasible._LIFTS if n not in names])
        return solve(compile_problem(lifted), any_plan=True).evaluation is not None

    whole = set(explanation.names)
    assert not feasible_with_only(whole)
    for name in whole:
        assert feasible_with_only(whole - {name})
