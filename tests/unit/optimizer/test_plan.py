"""Plans: every block once, in order; what breaks that is refused with the path of the field."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from splitinfer.optimizer.plan import (
    ModelRef,
    Plan,
    PlanError,
    Segment,
    check_segments,
    cuts_at,
    equal_cuts,
)
from splitinfer.optimizer.privacy import Privacy


def plan(**changes: Any) -> Plan:
    """A plan of 30 blocks on two nodes in the U-shape."""
    given: dict[str, Any] = {
        "epoch": 1,
        "model": ModelRef(name="m", digest="0" * 64),
        "blocks": 30,
        "segments": segments(("a", 0, 5), ("b", 5, 25), ("a", 25, 30)),
        "max_context_tokens": 100,
        "kv_budget_tokens": 400,
        **changes,
    }
    return Plan(**given)


def refusal(make: Callable[[], object]) -> PlanError:
    """The `PlanError` that something raises, from inside pydantic's own error where that wraps it."""
    with pytest.raises((PlanError, ValidationError)) as refused:
        make()
    error = refused.value
    if isinstance(error, ValidationError):
        error = error.errors()[0]["ctx"]["error"]
    assert isinstance(error, PlanError)
    return error


def segments(*parts: tuple[str, int, int]) -> tuple[Segment, ...]:
    """Segments from ``(node, start, stop)``."""
    return tuple(Segment(node=node, start=start, stop=stop) for node, start, stop in parts)


def names(count: int) -> list[str]:
    """That many node names."""
    return [f"node-{index}" for index in range(count)]


@st.composite
def cut_models(draw: st.DrawFn) -> tuple[int, list[int]]:
    """A number of blocks and rising cuts inside."""
    blocks = draw(st.integers(1, 200))
    cuts = draw(
        st.sets(st.integers(1, max(1, blocks - 1)), max_size=min(blocks - 1, 20))
        if blocks > 1
        else st.just(set[int]())
    )
    return blocks, sorted(cuts)


@given(st.integers(1, 300), st.data())
def test_equal_cuts_are_a_cover_of_nearly_equal_parts(blocks: int, data: st.DataObject) -> None:
    """Each node once, every block once, sizes that differ by one at most, larger ones first."""
    nodes = names(data.draw(st.integers(1, blocks)))
    cut = equal_cuts(blocks, nodes)

    check_segments(cut, blocks)
    assert [segment.node for segment in cut] == nodes
    sizes = [segment.blocks for segment in cut]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


@given(cut_models())
def test_explicit_cuts_are_where_they_were_asked_for(model: tuple[int, list[int]]) -> None:
    """The segments begin at the cuts, end where the next begins, and cover the model."""
    blocks, cuts = model
    cut = cuts_at(blocks, cuts, names(len(cuts) + 1))

    check_segments(cut, blocks)
    assert [segment.start for segment in cut] == [0, *cuts]
    assert [segment.stop for segment in cut] == [*cuts, blocks]


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 45), st.integers(0, 45)), max_size=6))
def test_only_a_cover_in_order_passes(blocks: int, ranges: list[tuple[int, int]]) -> None:
    """The check agrees with the definition: the ranges laid end to end are exactly the blocks, none empty."""
    given = segments(*(("n", start, stop) for start, stop in ranges))
    laid = [block for start, stop in ranges for block in range(start, stop)]
    is_cover = laid == list(range(blocks)) and all(start < stop for start, stop in ranges)

    if is_cover:
        check_segments(given, blocks)
    else:
        with pytest.raises(PlanError):
            check_segments(given, blocks)


@pytest.mark.parametrize(
    ("parts", "field", "words"),
    [
        ([], "segments", "no segment"),
        ([("a", 0, 0), ("a", 0, 30)], "segments[0]", "is empty"),
        ([("a", 0, 10), ("b", 12, 30)], "segments[1].start", "blocks [10:12) are missing"),
        ([("a", 1, 30)], "segments[0].start", "blocks [0:1) are missing"),
        ([("a", 0, 10), ("b", 8, 30)], "segments[1].start", "overlaps block 8"),
        (
            [("a", 0, 31)],
            "segments[0].stop",
            "block 30 is past the last one: the model's 30 blocks are 0 to 29",
        ),
        ([("a", 0, 10), ("b", 10, 29)], "segments[1].stop", "blocks [29:30) are missing"),
    ],
)
def test_what_is_no_cover_is_refused_at_its_field(
    parts: list[tuple[str, int, int]], field: str, words: str
) -> None:
    """Empty, missing, overlapping, past the end: the field and the blocks are named, in a plan too."""
    for make in (lambda: check_segments(segments(*parts), 30), lambda: plan(segments=segments(*parts))):
        refused = refusal(make)
        assert refused.field == field
        assert words in refused.message


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: equal_cuts(3, []), "no node"),
        (lambda: equal_cuts(3, names(4)), "use at most 3"),
        (lambda: cuts_at(30, [10, 20], names(2)), "3 segments need as many nodes, got 2"),
    ],
)
def test_too_few_or_too_many_nodes_are_refused(make: Any, words: str) -> None:
    """The message says how many there may be."""
    with pytest.raises(PlanError, match=words) as refused:
        make()
    assert refused.value.field == "nodes"


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        ([40], "cut 40 is outside 1..29"),
        ([0], "cut 0 is outside 1..29"),
        ([30], "cut 30 is outside 1..29"),
        ([5, -3], "cut -3 is outside 1..29"),
        ([5, 3], "3 after 5: cuts must grow"),
        ([5, 5], "5 after 5: cuts must grow"),
    ],
)
def test_a_cut_that_is_none_is_said_by_its_number(cuts: list[int], message: str) -> None:
    """In the words of who asked for cuts, not in those of the segments that would come of them."""
    with pytest.raises(PlanError, match=message) as caught:
        cuts_at(30, cuts, names(len(cuts) + 1))
    assert caught.value.field == "cuts"


def test_a_model_of_one_block_cannot_be_cut() -> None:
    """There is no number to offer."""
    with pytest.raises(PlanError, match="cut 1: a model of one block cannot be cut"):
        cuts_at(1, [1], names(2))


def test_a_budget_below_one_session_is_refused() -> None:
    """A plan under which no session fits is not one."""
    refused = refusal(lambda: plan(kv_budget_tokens=99))
    assert refused.field == "kv_budget_tokens"
    assert "not even one session" in refused.message
    assert plan(kv_budget_tokens=100).kv_budget_tokens == 100


@pytest.mark.parametrize(
    "wrong",
    [
        {"epoch": 0},
        {"epoch": 2**63},
        {"blocks": 0},
        {"dtype": "int2"},
        {"unknown": 1},
        {"model": {"name": "", "digest": "0" * 64}},
        {"model": {"name": "m", "digest": "xyz"}},
    ],
)
def test_fields_are_typed_and_bounded(wrong: dict[str, Any]) -> None:
    """Unknown fields, and values out of their bounds, are refused."""
    with pytest.raises(ValidationError):
        plan(**wrong)


def test_a_plan_does_not_change() -> None:
    """It is a value: frozen, hashable in its parts, the same after a trip through JSON."""
    given = plan()
    with pytest.raises(ValidationError):
        given.epoch = 2
    assert Plan.model_validate_json(given.model_dump_json()) == given


def test_nodes_and_ranges_of_the_u_shape() -> None:
    """A node that holds both ends is named once, and knows both hops."""
    given = plan()
    assert given.nodes == ("a", "b")
    assert [(hop, str(segment)) for hop, segment in given.ranges_of("a")] == [(0, "a[0:5]"), (2, "a[25:30]")]
    assert given.ranges_of("c") == ()


def test_the_digest_tells_what_serves_differently_and_only_that() -> None:
    """Another epoch is the same plan; any other difference is another plan."""
    given = plan()
    assert given.with_epoch(9).digest == given.digest
    assert given.with_epoch(9).epoch == 9
    others = [
        plan(dtype="float16"),
        plan(kv_budget_tokens=401),
        plan(max_context_tokens=101),
        plan(model=ModelRef(name="n", digest="0" * 64)),
        plan(model=ModelRef(name="m", digest="1" * 64)),
        plan(segments=segments(("a", 0, 6), ("b", 6, 25), ("a", 25, 30))),
        plan(segments=segments(("a", 0, 5), ("c", 5, 25), ("a", 25, 30))),
    ]
    assert len({given.digest, *(other.digest for other in others)}) == len(others) + 1


@given(cut_models(), cut_models())
def test_equal_digests_mean_equal_cuts(one: tuple[int, list[int]], two: tuple[int, list[int]]) -> None:
    """Two plans have one digest exactly when they are equal."""

    def made(model: tuple[int, list[int]]) -> Plan:
        blocks, cuts = model
        return plan(blocks=blocks, segments=cuts_at(blocks, cuts, names(len(cuts) + 1)))

    assert (made(one).digest == made(two).digest) == (made(one) == made(two))


@given(cut_models())
def test_neighbours_meet(model: tuple[int, list[int]]) -> None:
    """Where one segment stops the next starts."""
    blocks, cuts = model
    for left, right in pairwise(cuts_at(blocks, cuts, names(len(cuts) + 1))):
        assert left.stop == right.start


def test_a_plan_with_a_sensitive_block_on_an_untrusted_node_is_refused() -> None:
    """By the path of the segment; with the node trusted it is a plan, and another one than without the promise."""
    ends = (0, 29)
    error = refusal(lambda: plan(privacy=Privacy(sensitive_blocks=(7, *ends), trusted_nodes=("a",))))
    assert error.field == "segments[1].node"
    assert error.message == "block 7 is sensitive and b is not trusted; trusted are: a"
    kept = plan(privacy=Privacy(sensitive_blocks=ends, trusted_nodes=("a",)))
    assert kept.digest != plan().digest
    assert Plan.model_validate_json(kept.model_dump_json()) == kept
