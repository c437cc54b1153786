"""One decision as arrays: what the solver, the brute force and the baselines all read.

Nodes stand in a canonical order that does not depend on their names or on the order they were given in (only nodes
that are alike in everything fall back to their names), so that ties break the same way whatever nodes are called.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from splitinfer.optimizer.cost import Floats

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Ineligible:
    """A node that takes no part, and why."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """N blocks, M nodes, E entries. All seconds and costs are float64, all bytes int64.

    Attributes:
        nodes: names, in canonical order.
        cost, ring, first: [N, M] of a block on a node: its share of the cost, of a decode ring, of a prefill chunk's
            way; ``cost`` is infinite where the block must not run there.
        busy_decode, busy_prefill: [N, M] seconds that it keeps the node busy (equal to ring and first).
        memory: [N] bytes of a block: weights and KV at the promised concurrency and context.
        room: [M] bytes that blocks may take on a node.
        hop_class: [N + 1] which hop matrix a boundary uses: N is the return to the entry.
        hop_cost, hop_ring, hop_first: [classes, M, M]; infinite where there is no link. The receiver's step overhead
            is in it, but for the return.
        link_decode, link_prefill: [classes, M, M] seconds that the frame keeps the link busy.
        entries: [E] nodes that may hold the entry; entry_cost, entry_ring, entry_first, entry_move, entry_memory: of
            each; its move is in its cost.
        may_cut, may_stay: [N + 1] whether the chain may, or may not, change nodes before a block.
        max_segments, tpot_limit, ttft_limit: hard bounds; infinite where there is none.
        micro_batches, chunks, latency_weight, output_tokens: for the parts of the cost that do not add up (``chunks``
            as `splitinfer.optimizer.chunking.Chunking` counts them):
            ``latency_weight x (max(ring, k busiest) - ring + (chunks - 1) busiest_prefill / output_tokens)``.
        exposure, utilisation, move: [N, M] the terms of ``cost`` by themselves, unweighted, for reports.
        step_decode, step_prefill: [M] a segment's overhead, busy time of the node.
    """

    nodes: tuple[str, ...]
    cost: Floats
    ring: Floats
    first: Floats
    memory: Ints
    room: Ints
    hop_class: Ints
    hop_cost: Floats
    hop_ring: Floats
    hop_first: Floats
    link_decode: Floats
    link_prefill: Floats
    entries: Ints
    entry_cost: Floats
    entry_ring: Floats
    entry_first: Floats
    entry_move: Floats
    entry_memory: int
    may_cut: Bools
    may_stay: Bools
    max_segments: int
    tpot_limit: float
    ttft_limit: float
    micro_batches: int
    chunks: float
    latency_weight: float
    output_tokens: int
    exposure: Floats
    utilisation: Floats
    move: Floats
    step_decode: Floats
    step_prefill: Floats
    step_utilisation: Floats
    entry_utilisation: Floats
    concurrency: int
    pace_seconds: float
    background: Floats
    ineligible: tuple[Ineligible, ...] = ()
    dead_links: tuple[str, ...] = field(default=())

    @property
    def block_count(self) -> int:
        """N."""
        return len(self.memory)

    @property
    def node_count(self) -> int:
        """M."""
        return len(self.nodes)

    @property
    def is_additive(self) -> bool:
        """Whether the cost is a sum over blocks and hops, with no bottleneck in it."""
        return self.micro_batches == 1 and self.chunks == 1
