"""Where the blocks of lost nodes go: everything covered, nobody over its room, as little moved as can be."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from splitinfer.optimizer.plan import PlanError, Segment, check_segments, cuts_at
from splitinfer.optimizer.privacy import Privacy
from splitinfer.optimizer.redistribute import redistribute

NODES = ("a", "b", "c", "d")


def said(segments: tuple[Segment, ...]) -> list[str]:
    """Segments as they are printed."""
    return [str(segment) for segment in segments]


@st.composite
def broken_plans(draw: st.DrawFn) -> tuple[tuple[Segment, ...], int, dict[str, int]]:
    """A plan over four nodes, and the room of those that are left, perhaps with a new one."""
    blocks = draw(st.integers(1, 12))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, blocks - 1)), max_size=min(5, blocks - 1))))
    cuts = [cut for cut in cuts if cut < blocks]
    nodes = [draw(st.sampled_from(NODES)) for _ in range(len(cuts) + 1)]
    left = draw(st.sets(st.sampled_from([*NODES, "new"])))
    room = {node: draw(st.integers(0, blocks + 2)) for node in sorted(left)}
    return cuts_at(blocks, cuts, nodes), blocks, room


@given(broken_plans())
def test_a_repair_covers_all_blocks_within_everybodys_room(
    broken: tuple[tuple[Segment, ...], int, dict[str, int]],
) -> None:
    """Whenever the room suffices there is a repair; else the refusal counts the blocks."""
    segments, blocks, room = broken
    total = sum(min(free, blocks) for free in room.values())
    if total < blocks:
        with pytest.raises(PlanError, match=f"have room for {total} of {blocks} blocks"):
            redistribute(segments, blocks, room)
        return
    repaired = redistribute(segments, blocks, room)
    check_segments(repaired, blocks)
    load = {node: sum(s.blocks for s in repaired if s.node == node) for node in room}
    assert sum(load.values()) == blocks, "a node that is not there"
    assert all(load[node] <= room[node] for node in room)


@given(broken_plans())
def test_with_room_enough_every_block_that_is_there_stays_where_it_is(
    broken: tuple[tuple[Segment, ...], int, dict[str, int]],
) -> None:
    """Only the lost blocks are loaded anew, and the chain gets no longer."""
    segments, blocks, room = broken
    room = dict.fromkeys(room, blocks)
    survivors = [s for s in segments if s.node in room]
    if not survivors:
        return
    repaired = redistribute(segments, blocks, room)
    for old in survivors:
        assert any(n.node == old.node and n.start <= old.start and old.stop <= n.stop for n in repaired)
    assert len(repaired) <= len(survivors)


def test_both_neighbours_grow_into_a_hole() -> None:
    """The less loaded first, so that they end up even."""
    plan = cuts_at(12, [4, 8], ["a", "b", "c"])
    assert said(redistribute(plan, 12, {"a": 12, "c": 12})) == ["a[0:6]", "c[6:12]"]


def test_a_node_that_held_both_sides_of_the_hole_holds_one_range_afterwards() -> None:
    """The U-shape without its middle."""
    plan = cuts_at(6, [2, 4], ["a", "b", "a"])
    assert said(redistribute(plan, 6, {"a": 6})) == ["a[0:6]"]


def test_without_room_at_the_neighbours_all_blocks_are_dealt_anew() -> None:
    """Over a node that had none as well."""
    plan = cuts_at(6, [3], ["a", "b"])
    assert said(redistribute(plan, 6, {"b": 3, "new": 3})) == ["b[0:3]", "new[3:6]"]


def test_a_refusal_names_the_room_of_each_node_and_the_mend() -> None:
    """So that an operator sees which node is short."""
    plan = cuts_at(6, [3], ["a", "b"])
    with pytest.raises(PlanError, match=r"room for 3 of 6 blocks \(b: 3\); bring a node back"):
        redistribute(plan, 6, {"b": 3})
    with pytest.raises(PlanError, match="none is left"):
        redistribute(plan, 6, {})


ENDS = Privacy(sensitive_blocks=(0, 1, 7), trusted_nodes=("safe", "vault"))
"""The U-shape: both ends of eight blocks are sensitive."""


def test_a_hole_of_sensitive_blocks_is_no_neighbours_unless_it_is_trusted() -> None:
    """The untrusted neighbour has room and would be taken; the blocks go to the trusted node that is left instead."""
    plan = (
        Segment(node="vault", start=0, stop=2),
        Segment(node="edge", start=2, stop=7),
        Segment(node="safe", start=7, stop=8),
    )
    repaired = redistribute(plan, 8, {"edge": 8, "safe": 3}, ENDS)
    assert said(repaired) == ["safe[0:2]", "edge[2:7]", "safe[7:8]"]


def test_no_repair_breaks_privacy() -> None:
    """Plenty of room, but not on trusted nodes: refused, with the numbers."""
    plan = (Segment(node="safe", start=0, stop=8),)
    with pytest.raises(
        PlanError, match="trusted nodes left have room for 0 of the 2 sensitive blocks from 0 on"
    ):
        redistribute(plan, 8, {"edge": 8}, ENDS)


@given(broken_plans(), st.sets(st.integers(0, 11)), st.sets(st.sampled_from([*NODES, "new"])))
def test_sensitive_blocks_are_repaired_on_trusted_nodes_or_not_at_all(
    broken: tuple[tuple[Segment, ...], int, dict[str, int]], sensitive: set[int], trusted: set[str]
) -> None:
    """Whatever broke: the repair covers all blocks within the room and keeps to the privacy, or it is refused."""
    segments, blocks, room = broken
    privacy = Privacy(sensitive_blocks=tuple(sorted(sensitive)), trusted_nodes=tuple(sorted(trusted)))
    try:
        repaired = redistribute(segments, blocks, room, privacy)
    except PlanError:
        return
    check_segments(repaired, blocks)
    for segment in repaired:
        held = sum(other.blocks for other in repaired if other.node == segment.node)
        assert held <= room[segment.node]
        assert segment.node in trusted or not sensitive & set(range(segment.start, segment.stop))
