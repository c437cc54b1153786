"""Prompts in chunks: the rule, chains by the chunks that they divide a prompt into, and the solver over all of them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitinfer.optimizer.answer import answer
from splitinfer.optimizer.chunked import ChunkedProblem, named
from splitinfer.optimizer.chunking import chunk_tokens, groups
from splitinfer.optimizer.compile import compile_problem
from splitinfer.optimizer.evaluate import TOLERANCE
from splitinfer.optimizer.example import tiny_question
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.solver import solve
from splitinfer.optimizer.values import Known
from splitinfer.optimizer.wanted import Workload
from splitinfer.segment_runtime.entry.scheduler import Scheduler
from splitinfer.segment_runtime.entry.sessions import Limits, Session
from tests.support.questions import every_plan, questions

many = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def test_the_workload_divides_as_the_entry_does_by_default() -> None:
    """The limits that predictions are made with are those that the entry starts with."""
    work, limits = Workload(), Limits(kv_budget_tokens=1)
    assert (work.prefill_chunk_tokens, work.least_chunk_tokens) == (
        limits.prefill_chunk,
        limits.mixed_prefill_chunk,
    )


@many
@given(tokens=st.integers(1, 3000), segments=st.integers(1, 12), least=st.integers(1, 200))
def test_a_prompt_that_has_the_chain_to_itself_goes_in_the_chunks_that_are_predicted(
    tokens: int, segments: int, least: int
) -> None:
    """The scheduler's own steps, one after the other and several in flight: sizes and number as the workload says."""
    limits = Limits(
        kv_budget_tokens=4000, max_in_flight=segments, prefill_chunk=512, mixed_prefill_chunk=least
    )
    scheduler = Scheduler(limits)
    scheduler.submit(Session(1, [1] * tokens, tokens, tokens))
    sizes: list[int] = []
    flying: list[int] = []
    while sum(sizes) < tokens:
        batch = scheduler.next_batch()
        if batch is None:
            scheduler.complete(flying.pop(0))
            continue
        sizes.append(batch.rows)
        flying.append(batch.step)
    work = Workload(prompt_tokens=tokens, least_chunk_tokens=least)
    chunking = work.chunking(segments)
    assert sizes[:-1] == [chunking.tokens] * (len(sizes) - 1)
    assert sizes[-1] <= chunking.tokens
    assert len(sizes) == math.ceil(chunking.count)


@many
@given(tokens=st.integers(1, 5000), least=st.integers(1, 600), most=st.integers(1, 600))
def test_more_segments_never_have_larger_chunks(tokens: int, least: int, most: int) -> None:
    """What `groups` rests on."""
    sizes = [chunk_tokens(tokens, segments, least, most) for segments in range(1, 40)]
    assert all(1 <= size <= most for size in sizes)
    assert sizes == sorted(sizes, reverse=True)


@many
@given(tokens=st.integers(1, 20_000), most=st.integers(1, 64), ratio=st.floats(1.0, 3.0))
def test_groups_hold_every_chain_once_and_charge_none_more_than_its_own(
    tokens: int, most: int, ratio: float
) -> None:
    """In order, without a gap; never a larger chunk nor more of them than a member has, and not much smaller ones."""
    work = Workload(prompt_tokens=tokens)
    found = groups(work.chunking, most, ratio)
    assert [group.least for group in found] == [1, *(group.most + 1 for group in found[:-1])]
    assert found[-1].most == most
    for group in found:
        own = [work.chunking(segments) for segments in range(group.least, group.most + 1)]
        assert all(group.chunking.tokens <= each.tokens <= ratio * group.chunking.tokens for each in own)
        assert all(group.chunking.count <= each.count for each in own)
        assert group.exact == (len(set(own)) == 1)
    for one, other in itertools.pairwise(found):
        assert work.chunking(one.least).tokens > ratio * work.chunking(other.least).tokens


def test_a_default_prompt_is_two_exact_problems() -> None:
    """256 tokens: whole on one segment, in halves on more. Nothing about the answer is an estimate."""
    found = groups(Workload(prompt_tokens=256).chunking, 8)
    assert [(g.least, g.most, g.chunking.tokens, g.chunking.count, g.exact) for g in found] == [
        (1, 1, 256, 1.0, True),
        (2, 8, 128, 2.0, True),
    ]


def cheapest(question: Question) -> float:
    """The least cost of any plan that keeps the constraints, each by the chunks of its own number of segments."""
    problems = ChunkedProblem(question)
    best = math.inf
    one = problems.of(1)
    for entry, runs, _ in every_plan(one):
        found = problems.judged(*named(one, entry, runs))
        assert found is not None
        if found.feasible:
            best = min(best, found.cost)
    return best


@many
@given(question=questions(max_blocks=4, max_nodes=3))
def test_no_plan_of_any_length_is_below_the_bound_and_the_answer_is_such_a_plan(question: Question) -> None:
    """Held against every plan: the bound holds, the plan's numbers are its own, and what is called optimal is."""
    truth = cheapest(question)
    found = answer(question)
    assert found.bound <= truth * (1 + TOLERANCE) + TOLERANCE or truth == math.inf
    if found.status == "infeasible":
        assert truth == math.inf
    if found.prediction is None:
        return
    own = ChunkedProblem(question).judged(found.entry, found.segments)
    assert own is not None
    assert own.feasible
    assert (own.cost, own.ttft_seconds) == (found.prediction.cost, found.prediction.ttft_seconds)
    assert own.cost >= truth * (1 - TOLERANCE) - TOLERANCE
    if found.status == "optimal":
        assert math.isclose(own.cost, truth, rel_tol=1e-7, abs_tol=1e-9)


@many
@given(question=questions(max_blocks=4, max_nodes=3))
def test_where_every_chain_has_the_same_chunks_the_answer_is_proven(question: Question) -> None:
    """One exact group: nothing is relaxed, so the answer is optimal or there is none."""
    work = question.workload.model_copy(update={"least_chunk_tokens": 512})
    question = replace(question, workload=work)
    truth = cheapest(question)
    found = answer(question)
    assert found.status == ("infeasible" if truth == math.inf else "optimal")


@many
@given(question=questions(max_blocks=4, max_nodes=3), factor=st.sampled_from([0.5, 1.0, 1.5]))
def test_below_a_cutoff_the_solver_finds_what_it_finds_without(question: Question, factor: float) -> None:
    """The same plan where it is cheaper; else none, and a bound that reaches the cutoff at most and holds."""
    problem = compile_problem(question)
    whole = solve(problem)
    if whole.evaluation is None:
        return
    cutoff = factor * whole.cost
    found = solve(problem, cutoff=cutoff)
    if whole.cost < cutoff:
        assert found.status == "optimal"
        assert math.isclose(found.cost, whole.cost, rel_tol=1e-7, abs_tol=1e-9)
    else:
        assert (found.status, found.evaluation) == ("unknown", None)
        assert found.bound == cutoff


def test_a_limit_that_only_pipelined_chunks_keep_is_kept() -> None:
    """Two segments of 20 s each for the whole prompt: 40 s in one chunk, 30 s in two halves that follow one another."""
    question = tiny_question()
    links = tuple(
        link.model_copy(update={"bandwidth_bytes_per_second": Known(value=1e12)})
        for link in question.snapshot.links
    )
    work = question.workload.model_copy(update={"prompt_tokens": 200_000, "prefill_chunk_tokens": 200_000})
    limit = question.constraints.model_copy(update={"ttft_limit_seconds": 35.0, "fixed_cuts": (2,)})
    question = replace(
        question, snapshot=question.snapshot.model_copy(update={"links": links}), constraints=limit
    )
    whole = answer(replace(question, workload=work.model_copy(update={"least_chunk_tokens": 200_000})))
    halves = answer(replace(question, workload=work.model_copy(update={"least_chunk_tokens": 100_000})))
    assert whole.status == "infeasible"
    assert halves.status == "optimal"
    assert halves.prediction is not None
    assert math.isclose(halves.prediction.ttft_seconds, 30.0, rel_tol=0.03)
