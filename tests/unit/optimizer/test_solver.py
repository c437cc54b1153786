"""The solver against every plan there is, and against itself under changes that may only help or only hurt."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from splitinfer.optimizer.budget import Budget
from splitinfer.optimizer.capacity import NodeCapacity
from splitinfer.optimizer.compile import compile_problem
from splitinfer.optimizer.evaluate import evaluate
from splitinfer.optimizer.example import tiny_question
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.solver import Solution, solve
from splitinfer.optimizer.values import Known
from splitinfer.optimizer.wanted import Pin
from tests.support.questions import brute_force, questions

EXAMPLES = int(os.environ.get("SPLITINFER_EXAMPLES", "300"))
"""CONTRIBUTING.md says how to run thousands."""
many = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES <= 300, suppress_health_check=list(HealthCheck)
)
some = settings(max_examples=max(60, EXAMPLES // 5), deadline=None, derandomize=EXAMPLES <= 300)


def solved(question: Question) -> Solution:
    """Solved to the end: without a clock, nothing stops it."""
    return solve(compile_problem(question))


def close(a: float, b: float) -> bool:
    """Equal up to the order of sums."""
    return a == b or math.isclose(a, b, rel_tol=1e-7, abs_tol=1e-9)


@many
@given(questions())
def test_brute_force_agrees(question: Question) -> None:
    """The solver's plan costs what the cheapest of all plans costs, and there is none where there is none."""
    problem = compile_problem(question)
    truth = brute_force(problem)
    solution = solve(problem)
    assert solution.status == ("infeasible" if truth == math.inf else "optimal")
    assert close(solution.cost, truth)
    assert solution.bound <= truth or close(solution.bound, truth)
    if solution.evaluation is not None:
        again = evaluate(problem, solution.entry, solution.runs)
        assert again.feasible
        assert again == solution.evaluation


@many
@given(questions(max_blocks=5, max_nodes=4), st.integers(0, 40))
def test_the_bound_holds_wherever_the_search_stops(question: Question, looks: int) -> None:
    """A clock that runs out after some looks at it: the plan is feasible, the bound is not above the optimum."""
    problem = compile_problem(question)
    ticks = iter(range(10**9))
    solution = solve(problem, Budget(seconds=float(looks), clock=lambda: float(next(ticks))))
    truth = brute_force(problem)
    assert solution.bound <= truth or close(solution.bound, truth)
    assert solution.cost >= truth or close(solution.cost, truth)
    if solution.evaluation is not None:
        assert solution.evaluation.feasible
    if solution.status == "optimal":
        assert close(solution.cost, truth)
    if solution.status == "infeasible":
        assert truth == math.inf


@some
@given(questions(plain=True), st.permutations(range(4)))
def test_names_and_order_change_nothing_but_names(question: Question, order: list[int]) -> None:
    """Nodes renamed and given in another order: the same plan under the new names."""
    nodes = question.snapshot.nodes
    order = [i for i in order if i < len(nodes)]
    new = {node.name: f"x{order[i]}" for i, node in enumerate(nodes)}
    renamed = [node.model_copy(update={"name": new[node.name]}) for node in nodes]
    links = [
        link.model_copy(update={"from_node": new[link.from_node], "to_node": new[link.to_node]})
        for link in question.snapshot.links
    ]
    constraints = question.constraints
    constraints = constraints.model_copy(
        update={
            "pins": tuple(pin.model_copy(update={"node": new[pin.node]}) for pin in constraints.pins),
            "forbidden_nodes": tuple(new[name] for name in constraints.forbidden_nodes),
        }
    )
    other = replace(
        question,
        snapshot=question.snapshot.model_copy(
            update={"nodes": tuple(renamed[i] for i in order), "links": tuple(reversed(links))}
        ),
        constraints=constraints,
    )
    one, two = compile_problem(question), compile_problem(other)
    a, b = solve(one), solve(two)
    assert (a.status, a.cost, a.bound) == (b.status, b.cost, b.bound)
    alike = len({one.cost[:, v].tobytes() + one.room[v].tobytes() for v in range(one.node_count)})
    if alike == one.node_count:  # nodes that are alike in everything fall back to their names
        assert [(new[one.nodes[n]], s, t) for n, s, t in a.runs] == [
            (two.nodes[n], s, t) for n, s, t in b.runs
        ]


@some
@given(questions())
def test_the_same_question_has_the_same_answer(question: Question) -> None:
    """Bit for bit, plan and numbers."""
    assert solved(question) == solved(question)


@some
@given(questions(plain=True))
def test_one_more_node_never_makes_it_worse(question: Question) -> None:
    """A plan that was there still is."""
    extra = NodeCapacity(
        name="extra",
        trusted=False,
        free_memory_bytes=Known(value=1e6),
        memory_bandwidth_bytes_per_second=Known(value=1e6),
        flops_per_second={"int8": Known(value=1e6)},
        block_overhead_seconds=Known(value=0.0),
        step_overhead_seconds=Known(value=0.0),
        serialisation_bytes_per_second=Known(value=1e6),
        background_utilisation=Known(value=0.0),
    )
    links = [
        link.model_copy(update={"from_node": a, "to_node": b})
        for node in question.snapshot.nodes
        for a, b in ((node.name, "extra"), ("extra", node.name))
        for link in question.snapshot.links[:1]
    ]
    more = question.snapshot.model_copy(
        update={
            "nodes": (*question.snapshot.nodes, extra),
            "links": (*question.snapshot.links, *links),
        }
    )
    assert solved(replace(question, snapshot=more)).cost <= solved(question).cost + 1e-9


@some
@given(questions(plain=True))
def test_more_bandwidth_never_raises_the_cost(question: Question) -> None:
    """Nor does it raise the predicted latency, where latency is all that counts."""
    latency_only = question.weights.model_copy(update={"latency": 1.0, "utilisation": 0.0, "exposure": 0.0})
    question = replace(question, weights=latency_only)
    links = tuple(
        link.model_copy(
            update={
                "bandwidth_bytes_per_second": Known(
                    value=2 * getattr(link.bandwidth_bytes_per_second, "value", 1.0)
                )
            }
        )
        for link in question.snapshot.links
    )
    faster = question.snapshot.model_copy(update={"links": links})
    assert solved(replace(question, snapshot=faster)).cost <= solved(question).cost + 1e-9


@some
@given(questions(plain=True))
def test_scaling_time_scales_the_cost(question: Question) -> None:
    """Everything twice as slow, latency alone counted: twice the cost."""
    question = replace(
        question,
        weights=question.weights.model_copy(update={"latency": 1.0, "utilisation": 0.0, "exposure": 0.0}),
        constraints=question.constraints.model_copy(
            update={
                "ttft_limit_seconds": None,
                "tpot_limit_seconds": None,
                "minimum_bandwidth_bytes_per_second": 0.0,
            }
        ),
    )
    faster = ("memory_bandwidth_bytes_per_second", "serialisation_bytes_per_second")
    slower = ("block_overhead_seconds", "step_overhead_seconds")

    def scaled(reading: object, by: float) -> object:
        return (
            reading.model_copy(update={"value": reading.value * by})
            if isinstance(reading, Known)
            else reading
        )

    nodes = tuple(
        node.model_copy(
            update={
                **{name: scaled(getattr(node, name), 0.5) for name in faster},
                **{name: scaled(getattr(node, name), 2.0) for name in slower},
                "flops_per_second": {k: scaled(v, 0.5) for k, v in node.flops_per_second.items()},
            }
        )
        for node in question.snapshot.nodes
    )
    links = tuple(
        link.model_copy(
            update={
                "round_trip_seconds": scaled(link.round_trip_seconds, 2.0),
                "bandwidth_bytes_per_second": scaled(link.bandwidth_bytes_per_second, 0.5),
            }
        )
        for link in question.snapshot.links
    )
    slow = question.snapshot.model_copy(update={"nodes": nodes, "links": links})
    assert close(solved(replace(question, snapshot=slow)).cost, 2 * solved(question).cost)


@some
@given(questions(plain=True), st.integers(0, 3), st.integers(1, 400))
def test_less_memory_never_makes_it_better(question: Question, which: int, less: int) -> None:
    """One node loses some of its room."""
    nodes = list(question.snapshot.nodes)
    node = nodes[which % len(nodes)]
    assert isinstance(node.free_memory_bytes, Known)
    room = Known(value=max(0.0, node.free_memory_bytes.value - less))
    nodes[which % len(nodes)] = node.model_copy(update={"free_memory_bytes": room})
    tighter = question.snapshot.model_copy(update={"nodes": tuple(nodes)})
    assert solved(replace(question, snapshot=tighter)).cost >= solved(question).cost - 1e-9


@some
@given(questions(plain=True))
def test_a_pin_that_the_optimum_obeys_changes_nothing(question: Question) -> None:
    """All of the optimum's segments pinned where they are: the same cost."""
    problem = compile_problem(question)
    solution = solve(problem)
    if solution.evaluation is None:
        return
    pins = tuple(Pin(start=s, stop=t, node=problem.nodes[n]) for n, s, t in solution.runs)
    pinned = replace(question, constraints=question.constraints.model_copy(update={"pins": pins}))
    assert close(solved(pinned).cost, solution.cost)


@pytest.mark.parametrize("weight", ["latency", "utilisation", "exposure"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(question=questions())
def test_a_weight_of_zero_leaves_its_term_out(weight: str, question: Question) -> None:
    """Brute force agrees with each weight at zero."""
    weights = question.weights.model_copy(update={weight: 0.0})
    problem = compile_problem(replace(question, weights=weights))
    assert close(solve(problem).cost, brute_force(problem))


def test_a_way_back_that_alone_breaks_the_limit_is_proven_to_leave_no_plan() -> None:
    """TTFT in chunks is bound by the return link here: infeasible, not unknown."""
    question = tiny_question()
    slow = tuple(
        link.model_copy(update={"bandwidth_bytes_per_second": Known(value=500.0)})
        if link.to_node == "box"
        else link
        for link in question.snapshot.links
    )
    question = replace(
        question,
        snapshot=question.snapshot.model_copy(update={"links": slow}),
        workload=question.workload.model_copy(update={"prompt_tokens": 2, "prefill_chunk_tokens": 1}),
        constraints=question.constraints.model_copy(
            update={"ttft_limit_seconds": 3.0, "pins": (Pin(start=3, stop=4, node="gpu"),)}
        ),
    )
    assert brute_force(compile_problem(question)) == math.inf
    assert solved(question).status == "infeasible"
