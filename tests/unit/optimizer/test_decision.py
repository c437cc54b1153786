"""Keep, relocate, re-split or refuse, over simulated time: no flapping, and no waiting where a rule is broken."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from splitinfer.optimizer.capacity import CapacitySnapshot, LinkCapacity, NodeCapacity
from splitinfer.optimizer.decision import Decision, Drift, History, Policy, cooling, decide, holding
from splitinfer.optimizer.example import tiny_question
from splitinfer.optimizer.graph import ModelGraph
from splitinfer.optimizer.plan import Segment
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.values import Known, Unknown
from splitinfer.optimizer.wanted import Constraints, RunningPlan, Weights

STEP_SECONDS = 5.0
POLICY = Policy(cooldown_seconds=60, minimum_gain=0.1, hold_seconds=10)


def site(loads: dict[str, float], trusted: Sequence[str] = ("a", "b", "c"), **changes: object) -> Question:
    """Four blocks of 100 MB and nodes of one speed, each with the background utilisation given."""
    graph: ModelGraph = tiny_question().graph
    nodes = tuple(
        NodeCapacity(
            name=name,
            trusted=name in trusted,
            free_memory_bytes=Known(value=600e6),
            memory_bandwidth_bytes_per_second=Known(value=10e9),
            flops_per_second={"float32": Known(value=1e12)},
            block_overhead_seconds=Known(value=0.0),
            step_overhead_seconds=Known(value=0.001),
            serialisation_bytes_per_second=Known(value=1e9),
            background_utilisation=Known(value=load),
        )
        for name, load in loads.items()
    )
    links = tuple(
        LinkCapacity(
            from_node=x,
            to_node=y,
            round_trip_seconds=Known(value=0.001),
            bandwidth_bytes_per_second=Known(value=1e8),
        )
        for x in loads
        for y in loads
        if x != y
    )
    question = replace(
        tiny_question(),
        graph=graph,
        snapshot=CapacitySnapshot(nodes=nodes, links=links, stale_after_seconds=1e9),
        constraints=Constraints(max_segments=4, entry_node=None),
        weights=Weights(latency=100, utilisation=0, exposure=0, horizon_seconds=600),
        running=running(("a", 0, 4)),
    )
    return replace(question, **changes)  # type: ignore[arg-type]


def running(*parts: tuple[str, int, int], entry: str = "a", tokens: int = 0) -> RunningPlan:
    """A running plan from ``(node, start, stop)``."""
    return RunningPlan(
        entry=entry,
        segments=tuple(Segment(node=n, start=s, stop=t) for n, s, t in parts),
        live_tokens=tokens,
        load_bytes_per_second=400e6,
    )


def simulate(
    loads: Sequence[dict[str, float]], policy: Policy = POLICY, tokens: int = 0
) -> list[tuple[float, Decision]]:
    """One decision per step, each carried out; the changes that were made, with their times."""
    changes, history, now = [], History(), 0.0
    plan = running(("a", 0, 4), tokens=tokens)
    for load in loads:
        decision = decide(site(load, running=plan), Drift(), policy, history, now)
        history = decision.history
        if decision.action in ("relocate", "re-split"):
            assert decision.chosen is not None
            changes.append((now, decision))
            plan = plan.model_copy(
                update={"entry": decision.chosen.entry, "segments": decision.chosen.segments}
            )
        now += STEP_SECONDS
    return changes


def test_a_node_that_is_taken_by_others_is_left() -> None:
    """Load comes and stays: one change, to the free node, after it has paid for as long as asked."""
    changes = simulate([{"a": 0.0, "b": 0.0}] * 3 + [{"a": 0.9, "b": 0.0}] * 30)
    assert len(changes) == 1
    at, decision = changes[0]
    assert at == 3 * STEP_SECONDS + POLICY.hold_seconds
    assert decision.chosen is not None
    assert {s.node for s in decision.chosen.segments} == {"b"}
    assert decision.chosen.weight_bytes in (400_000_000, 500_000_000)  # with the entry or without
    assert "MB of weights" in decision.sentence


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.floats(0.5, 0.95))
def test_an_oscillating_load_changes_the_plan_once_per_cooldown_at_most(period: int, high: float) -> None:
    """Two states in turn, whatever the period: never two changes within a cooldown."""
    states = [{"a": high, "b": 0.0}, {"a": 0.0, "b": high}]
    changes = simulate([states[(i // period) % 2] for i in range(60)])
    times = [at for at, _ in changes]
    assert all(later - earlier >= POLICY.cooldown_seconds for earlier, later in itertools.pairwise(times))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 12))
def test_an_oscillation_that_never_pays_changes_nothing(period: int) -> None:
    """Live sessions whose KV is dear to move: the gain never exceeds the cost, and the plan stays."""
    states = [{"a": 0.3, "b": 0.0}, {"a": 0.0, "b": 0.3}]
    loads = [states[(i // period) % 2] for i in range(40)]
    poor = Policy(cooldown_seconds=0, minimum_gain=0.0, hold_seconds=0)
    plan, history = running(("a", 0, 4)), History()
    for i, load in enumerate(loads):
        question = site(load, running=plan)
        question = replace(question, weights=question.weights.model_copy(update={"horizon_seconds": 10.0}))
        decision = decide(question, Drift(), poor, history, i * STEP_SECONDS)
        assert decision.action == "keep"
        assert all(option.net <= 0 for option in decision.options if option.action != "keep")


def test_a_ramp_makes_exactly_one_change() -> None:
    """Load that rises step by step from nothing to nearly all."""
    assert len(simulate([{"a": min(0.9, i / 60), "b": 0.0} for i in range(80)])) == 1


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(0.0, 0.12), min_size=40, max_size=40),
    st.lists(st.floats(0.0, 0.12), min_size=40, max_size=40),
)
def test_noise_changes_nothing(one: list[float], other: list[float]) -> None:
    """Loads that tremble below the margin."""
    assert (
        simulate(
            [{"a": x, "b": y} for x, y in zip(one, other, strict=True)],
            POLICY.model_copy(update={"minimum_gain": 0.15}),
        )
        == []
    )


def test_after_a_recovery_it_returns_only_if_that_pays() -> None:
    """The load goes away again: both nodes are alike, so nothing moves back; a faster old home is worth it."""
    away = [{"a": 0.9, "b": 0.0}] * 20
    assert len(simulate(away + [{"a": 0.0, "b": 0.0}] * 40)) == 1
    assert len(simulate(away + [{"a": 0.0, "b": 0.5}] * 40)) == 2


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (site({"a": 0.0, "b": 0.0}, trusted=["b"], constraints=Constraints(sensitive_blocks=(0,))), "trust"),
        (site({"b": 0.0, "c": 0.0}), "a: gone"),
        (site({"a": 0.0, "b": 0.0}, constraints=Constraints(forbidden_nodes=("a",))), "a: forbidden"),
    ],
)
def test_a_broken_rule_is_acted_on_at_once(question: Question, words: str) -> None:
    """Trust revoked, node gone, node forbidden: no cooldown, no margin, no waiting."""
    history = History(changed_at_seconds=99.0)
    strict = Policy(cooldown_seconds=1000, minimum_gain=1.0, hold_seconds=1000)
    decision = decide(question, Drift(), strict, history, 100.0)
    assert decision.action in ("relocate", "re-split")
    assert words in decision.sentence
    assert decision.history.changed_at_seconds == 100.0
    assert decision.chosen is not None
    assert "a" not in {s.node for s in decision.chosen.segments}


def test_with_nowhere_to_go_it_refuses() -> None:
    """The only node is not known any more."""
    question = site({"a": 0.0})
    node = question.snapshot.nodes[0].model_copy(
        update={"free_memory_bytes": Unknown(unknown="agent silent")}
    )
    gone = question.snapshot.model_copy(update={"nodes": (node,)})
    decision = decide(replace(question, snapshot=gone), Drift(), POLICY, History(), 1.0)
    assert decision.action == "refuse"
    assert "agent silent" in decision.sentence
    assert decision.chosen is None


def test_a_stale_snapshot_makes_its_nodes_unknown() -> None:
    """Age counts from when the snapshot was taken to the time of the decision."""
    question = site({"a": 0.0, "b": 0.0})
    old = question.snapshot.model_copy(update={"stale_after_seconds": 30.0})
    assert decide(replace(question, snapshot=old), Drift(), POLICY, History(), 29.0).action == "keep"
    late = decide(replace(question, snapshot=old), Drift(), POLICY, History(), 31.0)
    assert late.action == "refuse"
    assert "stale" in late.sentence


def test_a_missed_objective_lowers_the_margin() -> None:
    """What pays a little is done if p95 is over the objective, and not else."""
    question = site({"a": 0.08, "b": 0.0})
    ready = History(better_since_seconds=0.0)
    missed = Drift(tpot_p95_seconds=0.2, tpot_slo_seconds=0.1)
    assert decide(question, Drift(), POLICY, ready, 100.0).action == "keep"
    decision = decide(question, missed, POLICY, ready, 100.0)
    assert decision.action == "relocate"
    assert "P95 TPOT is 200 ms, the objective 100 ms" in decision.sentence


def test_a_relocation_keeps_the_cuts_and_a_re_split_does_not() -> None:
    """One solver, cuts fixed or free: each option is what it says."""
    question = site({"a": 0.5, "b": 0.0, "c": 0.0}, running=running(("a", 0, 2), ("b", 2, 4)))
    decision = decide(question, Drift(), POLICY, History(better_since_seconds=0.0), 100.0)
    by_action = {option.action: option for option in decision.options}
    assert [s.start for s in by_action["relocate"].segments] == [0, 2]
    assert [s.start for s in by_action["re-split"].segments] != [0, 2]
    assert by_action["keep"].weight_bytes == 0


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_clock_that_jumps_prolongs_nothing(changed: float, now: float) -> None:
    """Cooldown and hold are between zero and their length, at any two times."""
    history = History(changed_at_seconds=changed, better_since_seconds=changed)
    assert 0 <= cooling(history, POLICY, now) <= POLICY.cooldown_seconds
    assert 0 <= holding(history, POLICY, now) <= POLICY.hold_seconds
