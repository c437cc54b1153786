"""Links that are truly thin or cut, while traffic runs: `tbf` at an end of a node's veth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from tests.support.netns import BRIDGE, DEVICE, Namespace, Node

MBIT = 1_000_000
"""Bits per second; what is counted are bytes of Ethernet frames, of which about 95% are what a connection carries."""
QUEUE_MILLISECONDS = 400
"""What waits in front of a thin link before frames are dropped: as a home router's, more than a round trip."""

Direction = Literal["out", "in"]


def _end(node: Node, direction: Direction) -> tuple[Namespace, str]:
    """What a node sends is held back at its own device, what it gets at the far end: a queue shapes what leaves it."""
    return (node.own, DEVICE) if direction == "out" else (node.bridge, node.port)


@contextmanager
def shape(
    node: Node, bits_per_second: float, direction: Direction = "out", burst_bytes: int = 16 << 10
) -> Iterator[None]:
    """Everything that the node sends (``out``) or gets (``in``), at this rate for the block.

    Args:
        node: whose link it is.
        bits_per_second: of Ethernet frames, on average.
        direction: the other one keeps its speed.
        burst_bytes: that pass at full speed after the link was idle.
    """
    where, device = _end(node, direction)
    where.do(
        "tc", "qdisc", "replace", "dev", device, "root", "tbf", "rate", f"{bits_per_second:.0f}bit",
        "burst", str(burst_bytes), "latency", f"{QUEUE_MILLISECONDS}ms",
    )  # fmt: skip
    try:
        yield
    finally:
        where.do("tc", "qdisc", "delete", "dev", device, "root")


def cut(node: Node) -> None:
    """The cable is pulled: nothing comes through any more, and nobody is told."""
    node.bridge.do("ip", "link", "set", node.port, "nomaster")


def mend(node: Node) -> None:
    """And put back."""
    node.bridge.do("ip", "link", "set", node.port, "master", BRIDGE)
    # A search for a neighbour that began while the cable was out fails seconds later, and with it what was begun since.
    node.own.do("ip", "neighbour", "flush", "dev", DEVICE)
