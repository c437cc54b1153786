"""Which agent speaks for a node: withdrawn values, replaced agents, two at once, and renamed labels."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from splitinfer.profiler import series as s
from splitinfer.profiler.answers import Sample, Span
from splitinfer.profiler.claims import Said, said_by_node
from tests.support.agent_values import Values, link_values, node_values, samples

NOW = 120.0
MEMORY = (s.NODE_MEMORY.name, ())


def spanning(of: tuple[Sample, ...], first: float, count: int) -> tuple[Sample, ...]:
    """The same, scraped before too, from ``first`` on."""
    return tuple(replace(one, span=Span(count, first, one.value, fell=False)) for one in of)


def said(*of: tuple[Sample, ...]) -> dict[str, Said]:
    """By node."""
    return said_by_node([x for one in of for x in one], NOW)


def test_only_the_newest_scrape_of_a_target_counts() -> None:
    """A value that is not in it was withdrawn, though the range still has it; other targets have scrapes of their own."""
    withdrawn: Values = {(s.NODE_RUNNABLE, ()): 1.0}
    a = samples("a", {(s.NODE_MEMORY, ()): 5.0}, at=110) + samples("a", withdrawn, at=100)
    b = samples("b", withdrawn, at=100)
    found = said(a, b)
    assert set(found["a"].values) == {MEMORY}
    assert found["a"].values[MEMORY].age_seconds == 10
    assert set(found["b"].values) == {(s.NODE_RUNNABLE.name, ())}


def test_an_agent_that_speaks_no_more_for_a_node_leaves_nothing_of_it() -> None:
    """Its target was scraped since, under another name: what the range has of the old one is all withdrawn."""
    old = samples("a", node_values(), at=100, instance="x:1")
    new = samples("b", node_values(), at=110, instance="x:1")
    for order in ((old, new), (new, old)):
        assert said(*order)["a"].values == {}
        assert MEMORY in said(*order)["b"].values


def test_names_that_the_server_gave_back_are_the_agents() -> None:
    """Without honor_labels ours are `exported_`, and the server's own labels are no part of the key."""
    renamed = tuple(
        replace(
            one,
            labels={
                **{f"exported_{k}" if k in ("node", "peer") else k: v for k, v in one.labels.items()},
                "node": "target",
                "peer": "target",
            },
        )
        for one in samples("a", {**node_values(), **link_values("b")})
    )
    plain = said(samples("a", {**node_values(), **link_values("b")}))
    assert said(renamed) == plain
    assert list(plain) == ["a"]


def test_two_agents_at_once_that_differ_leave_a_problem() -> None:
    """Also where only one of them says something; equal ones, and one that two jobs scrape, are one word."""
    a = spanning(samples("n", node_values(memory=1e9), at=118, instance="a:1"), 58, 5)
    b = spanning(samples("n", node_values(memory=2e9), at=110, instance="b:1"), 50, 5)
    problem = said(a, b)["n"].problem
    assert problem == (
        "agents at a:1 and b:1 both speak for it, and differ in splitinfer_node_memory_available_bytes"
    )
    less = tuple(one for one in a if one.name != s.PROBE_FLOPS.name)
    same = spanning(samples("n", node_values(memory=1e9), at=110, instance="b:1"), 50, 5)
    assert "splitinfer_probe_flops_per_second" in str(said(less, same)["n"].problem)
    assert said(a, same)["n"].problem is None
    jobs = spanning(samples("n", node_values(memory=2e9), at=110, instance="a:1", job="other"), 50, 5)
    found = said(a, jobs)["n"]
    assert (found.problem, found.values[MEMORY].value) == (None, 1e9)


@pytest.mark.parametrize(
    ("last", "first", "count", "problem"),
    [
        (70, 10, 5, False),  # ended before the other began
        (70, 10, 2, False),  # the same, scraped so rarely that a minute without it says nothing
        (85, 25, 5, False),  # overlapped, and then missed more than two scrapes of 15 s
        (89, 29, 5, True),  # one missed scrape is no end
    ],
)
def test_an_agent_that_was_replaced_contradicts_nothing(
    last: float, first: float, count: int, problem: bool
) -> None:
    """The one that is still scraped is the node's."""
    old = spanning(samples("n", node_values(memory=1e9), at=last, instance="old:1"), first, count)
    new = spanning(samples("n", node_values(memory=2e9), at=118, instance="new:1"), 73, 4)
    for order in ((old, new), (new, old)):
        found = said(*order)["n"]
        assert (found.problem is not None) == problem
        assert found.values[MEMORY].value == 2e9


def test_equal_values_may_be_nan_and_ages_and_counters_always_differ() -> None:
    """They are no contradiction."""
    values = node_values(memory=math.nan)
    a = samples("n", {**values, (s.PROBE_CPU, ()): 1.0}, instance="a:1")
    b = samples("n", {**values, (s.PROBE_CPU, ()): 2.0, (s.NODE_AGE, ()): 9.0}, instance="b:1")
    assert said(a, b)["n"].problem is None


def test_what_has_not_its_labels_is_no_agents_word() -> None:
    """Nor is a name longer than any node's; a series that agents do not export is passed over."""
    bare = Sample(s.NODE_MEMORY.name, {"instance": "x:1"}, 1.0, 100.0)
    half = Sample(s.LINK_AGE.name, {"node": "a", "instance": "x:1"}, 1.0, 100.0)
    other = Sample("up", {"node": "a", "instance": "x:1"}, 1.0, 100.0)
    assert said((bare, half, other), samples("n" * 254, node_values())) == {}
