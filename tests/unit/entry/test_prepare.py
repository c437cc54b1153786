"""What hosts say at prepare, put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from splitinfer.optimizer.plan import ModelRef, Plan, Segment
from splitinfer.segment_runtime.entry import changes
from splitinfer.segment_runtime.proto import runtime_pb2 as pb


class SaysWhatComputes:
    """A host that is ready at once, with an engine of its own for each range."""

    def __init__(self, node: str) -> None:
        self.address = f"{node}:1"
        self._node = node

    async def prepare(
        self, request: pb.PrepareRequest, _note: Callable[[int, int], None]
    ) -> Sequence[pb.Identity]:
        """In the order of the request's ranges."""
        return [pb.Identity(engine=f"{self._node}{r.start}") for r in request.ranges]


async def test_what_computes_each_hop_is_told_in_the_order_of_the_hops() -> None:
    """Also where a node has the first and the last of them: the answers of nodes are not the order of the chain."""
    segments = [
        Segment(node=node, start=i, stop=i + 1) for i, node in enumerate(("far", "near", "mid", "far"))
    ]
    plan = Plan(
        epoch=1,
        model=ModelRef(name="m", digest="ab" * 32),
        dtype="float32",
        blocks=4,
        segments=tuple(segments),
        max_context_tokens=8,
        kv_budget_tokens=8,
    )
    clients = cast("changes.Clients", {node: SaysWhatComputes(node) for node in ("near", "mid", "far")})
    found = await changes.prepare(plan, clients, "entry:1", lambda *_: None)
    assert [one.engine for one in found] == ["far0", "near1", "mid2", "far3"]
