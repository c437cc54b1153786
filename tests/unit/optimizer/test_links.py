"""Links that nobody measured: of what the readings of sites, positions and the access of both ends make them."""

from __future__ import annotations

import numpy as np
import pytest

from splitinfer.optimizer.access import NodeAccess
from splitinfer.optimizer.capacity import CapacitySnapshot, LinkCapacity, NodeCapacity, SiteLink
from splitinfer.optimizer.example import tiny_question
from splitinfer.optimizer.links import link_matrices
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.values import Known, OptimizerInputError, Unknown
from splitinfer.optimizer.wanted import Constraints

NODES = (NodeCapacity(name="a", site="x"), NodeCapacity(name="b", site="y"), NodeCapacity(name="c"))
SITES = SiteLink(
    from_site="x", to_site="y", round_trip_seconds=Known(value=0.01), bandwidth_bytes_per_second=Known(value=1e8)
)  # fmt: skip


def access(
    node: str,
    last_mile: float,
    up: float,
    down: float,
    position: tuple[float, ...] | None = None,
    age: float = 0.0,
) -> NodeAccess:
    """With known readings, all as old."""
    return NodeAccess(
        node=node,
        round_trip_seconds=Known(value=last_mile, age_seconds=age),
        upload_bytes_per_second=Known(value=up, age_seconds=age),
        download_bytes_per_second=Known(value=down, age_seconds=age),
        position_seconds=position,
    )


def matrices(
    *given: NodeAccess, links: tuple[LinkCapacity, ...] = (), least: float = 0.0, site: SiteLink = SITES
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Round trips, bandwidths and what was left out, of nodes a, b and c."""
    snapshot = CapacitySnapshot(nodes=NODES, links=links, site_links=(site,), access=given)
    question = Question(
        graph=tiny_question().graph,
        snapshot=snapshot,
        constraints=Constraints(minimum_bandwidth_bytes_per_second=least),
    )
    return link_matrices(question, list(NODES))


def test_access_adds_last_miles_and_limits_the_bandwidth_of_sites() -> None:
    """Both last miles are on top, and the narrowest of upload, sites and download counts, by direction."""
    trip, band, _ = matrices(access("a", 0.002, 4e7, 9e9), access("b", 0.001, 9e9, 5e7))
    assert trip[0, 1] == pytest.approx(0.013)
    assert band[0, 1] == 4e7
    assert band[1, 0] == 0, "nobody said anything of y to x"


def test_without_access_the_reading_of_sites_stands() -> None:
    """A snapshot written before there was any access means what it meant."""
    trip, band, _ = matrices()
    assert (trip[0, 1], band[0, 1]) == (0.01, 1e8)


def test_positions_speak_where_sites_do_not() -> None:
    """Distance and last miles; not where one end has no position, and not in place of the sites' reading."""
    here, there = (0.0, 0.0, 0.0), (0.003, 0.0, 0.004)
    given = (
        access("a", 0.001, 1e8, 1e8, here),
        access("b", 0.001, 1e8, 1e8),
        access("c", 0.002, 3e7, 2e7, there),
    )
    trip, band, _ = matrices(*given)
    assert trip[0, 2] == pytest.approx(0.008)
    assert (band[0, 2], band[2, 0]) == (2e7, 3e7)
    assert band[1, 2] == 0, "b has no position"
    assert trip[0, 1] == pytest.approx(0.012), "the sites' reading"


def test_sites_whose_reading_was_left_out_are_not_replaced_by_positions() -> None:
    """Unknown is an answer."""
    unknown = SiteLink(from_site="x", to_site="y", round_trip_seconds=Unknown(unknown="cut"), bandwidth_bytes_per_second=Known(value=1e8))  # fmt: skip
    here = (0.0, 0.0, 0.0)
    _, band, dead = matrices(access("a", 0, 1e8, 1e8, here), access("b", 0, 1e8, 1e8, here), site=unknown)
    assert band[0, 1] == 0
    assert dead == ["x to y: unknown: cut"]


def test_a_measured_link_wins_over_everything() -> None:
    """Its own reading, and its own unknown."""
    measured = LinkCapacity(from_node="a", to_node="b", round_trip_seconds=Known(value=0.5), bandwidth_bytes_per_second=Known(value=7.0))  # fmt: skip
    given = access("a", 0.002, 4e7, 9e9), access("b", 0.001, 9e9, 5e7)
    trip, band, _ = matrices(*given, links=(measured,))
    assert (trip[0, 1], band[0, 1]) == (0.5, 7.0)
    _, band, dead = matrices(*given, links=(LinkCapacity(from_node="a", to_node="b"),))
    assert band[0, 1] == 0
    assert dead == ["a to b: unknown: never measured"]


def test_unknown_access_leaves_a_node_without_unmeasured_links_and_says_so() -> None:
    """Too few samples, or stale: never the sites' reading alone."""
    for bad, why in (
        (NodeAccess(node="a", round_trip_seconds=Unknown(unknown="2 readings")), "2 readings"),
        (access("a", 0.001, 1e8, 1e8, age=500.0), "stale: 500 s old"),
    ):
        _, band, dead = matrices(bad, access("b", 0.001, 1e8, 1e8))
        assert band[0, 1] == 0
        assert dead[0].startswith(f"a, where nobody measured: access unknown: {why}")


def test_estimated_links_below_the_minimum_are_counted() -> None:
    """A million of them would be no message."""
    _, band, dead = matrices(access("a", 0, 4e7, 4e7), access("b", 0, 4e7, 4e7), least=5e7)
    assert band[0, 1] == 0
    assert dead == ["1 links that nobody measured: estimated below the minimum of 50,000,000 B/s"]


def test_access_of_nobody_and_access_said_twice_are_refused() -> None:
    """By field."""
    for given, field in (
        ((access("z", 0, 1, 1),), r"access\[0\]"),
        ((access("a", 0, 1, 1),) * 2, r"access\[1\]"),
    ):
        with pytest.raises(OptimizerInputError, match=field):
            CapacitySnapshot(nodes=NODES, access=given)
