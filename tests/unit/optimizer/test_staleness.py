"""How old a reading may be, by what it tells of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from splitinfer.optimizer.answer import answer
from splitinfer.optimizer.budget import Budget
from splitinfer.optimizer.capacity import CapacitySnapshot, LinkCapacity, NodeCapacity
from splitinfer.optimizer.example import tiny_question
from splitinfer.optimizer.values import Known


def snapshot(state: float = 0.0, speed: float = 0.0, link: float = 0.0, **bounds: Any) -> CapacitySnapshot:
    """Two nodes and their links, with the ages given."""
    able = Known(value=1e9, age_seconds=speed)
    nodes = tuple(
        NodeCapacity(
            name=name,
            trusted=True,
            free_memory_bytes=Known(value=8e9, age_seconds=state),
            memory_bandwidth_bytes_per_second=able,
            flops_per_second={"float32": able},
            block_overhead_seconds=Known(value=0.0, age_seconds=speed),
            step_overhead_seconds=Known(value=0.0, age_seconds=speed),
            serialisation_bytes_per_second=able,
            background_utilisation=Known(value=0.0, age_seconds=state),
        )
        for name in ("a", "b")
    )
    links = tuple(
        LinkCapacity(
            from_node=x,
            to_node=y,
            round_trip_seconds=Known(value=0.001, age_seconds=link),
            bandwidth_bytes_per_second=Known(value=1e9, age_seconds=link),
        )
        for x, y in (("a", "b"), ("b", "a"))
    )
    return CapacitySnapshot(nodes=nodes, links=links, **bounds)


def lost(taken: CapacitySnapshot) -> tuple[list[str], list[str]]:
    """Why nodes are not eligible, and which links are not used."""
    found = answer(replace(tiny_question(), snapshot=taken, running=None), Budget(5.0, lambda: 0.0))
    return [one.reason for one in found.ineligible], list(found.dead_links)


def test_without_bounds_of_their_own_all_readings_have_the_same() -> None:
    """Files written before there were others mean what they meant."""
    assert lost(snapshot(state=120, speed=120, link=120)) == ([], [])
    assert all("free_memory_bytes stale: 121 s old, at most 120 s" in why for why in lost(snapshot(121))[0])
    nodes, _ = lost(snapshot(speed=121))
    assert all("memory_bandwidth_bytes_per_second stale: 121 s old, at most 120 s" in why for why in nodes)
    _, links = lost(snapshot(link=121))
    assert len(links) == 2
    assert "stale: 121 s old, at most 120 s" in links[0]


def test_speeds_and_links_may_be_older_than_memory_and_load() -> None:
    """Each bound holds for its kind, and for no other."""
    bounds: dict[str, Any] = {"speeds_stale_after_seconds": 600.0, "links_stale_after_seconds": 900.0}
    assert lost(snapshot(120, 600, 900, **bounds)) == ([], [])
    assert len(lost(snapshot(121, 0, 0, **bounds))[0]) == 2
    nodes, links = lost(snapshot(0, 601, 901, **bounds))
    assert len(nodes) == 2
    assert "stale: 601 s old, at most 600 s" in nodes[0]
    assert links == []  # of no eligible nodes
    assert "stale: 901 s old, at most 900 s" in lost(snapshot(0, 600, 901, **bounds))[1][0]


def test_they_are_written_and_read_with_the_snapshot() -> None:
    """In camel case, left out where they say nothing; zero is no bound."""
    plain = snapshot().model_dump(mode="json", by_alias=True, exclude_defaults=True)
    assert "linksStaleAfterSeconds" not in plain
    both = snapshot(speeds_stale_after_seconds=5, links_stale_after_seconds=7)
    data = both.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    assert (data["speedsStaleAfterSeconds"], data["linksStaleAfterSeconds"]) == (5, 7)
    assert CapacitySnapshot.model_validate(data) == both
    with pytest.raises(ValidationError):
        snapshot(links_stale_after_seconds=0)
