"""The cost model: seconds of a block on a node and of a hop over a link. Formulas, units, sources.

With ``p`` the bytes of a block's weights, ``kv`` its bytes of KV per token, ``f`` its FLOPs per token, ``B`` a node's
achieved memory bandwidth, ``F`` its achieved FLOP/s, ``u`` its background utilisation, ``b`` the rows of a decode
step, ``L`` the typical context, ``q`` the tokens of a prefill chunk, ``n`` the chunks of the prompt (the last counted by its
share; both depend on the number of segments, see `splitinfer.optimizer.chunking`), ``k`` the micro-batches:

    decode block   (max((p + b L kv) / B, b f_decode / F) + block_overhead) / (1 - u)              seconds per step
    prefill block  (max(p / B, q f_prefill / F) + block_overhead) / (1 - u)                        seconds per chunk
    segment        step_overhead / (1 - u)                                                         seconds per frame
    hop            RTT / 2 + bytes / bandwidth + bytes / serialise(from) + bytes / serialise(to)   seconds per frame

The roofline (the larger of memory time and arithmetic time; Williams, Waterman and Patterson, CACM 2009) is taken per
block, so that a range's time is the sum of its blocks'. Overheads are measured. A node that others use at ``u`` has
``1 - u`` of itself left.

    ring        entry + sum of segments and blocks + sum of hops, the one back to the entry included
    busy(v)     sum of decode blocks and segment overheads on node v (the entry's on its own node)
    TPOT        max(ring, k max(busy, bytes / bandwidth of any hop))
    TTFT        prefill of one chunk around the ring + (n - 1) x the slowest node or link of a chunk
    throughput  concurrency / TPOT

Only the rows that are sampled from go back to the entry: one per prompt. With ``k = 1`` the ring is TPOT.

    latency      TPOT + TTFT / output_tokens                                           seconds per output token
    utilisation  sum of busy(v) k / pace + sum of prefill busy(v) n / (output pace) concurrency     nodes
    exposure     sum of sensitivity (1 - trust) / sum of sensitivity                           fraction
    move         sum over blocks that move of bytes / load + min(KV over the link, replay),
                 and embed and head if the entry does                                               seconds

    cost         alpha latency + beta utilisation + gamma exposure + alpha move / horizon

A second of moving is charged like a second of latency, thinned over the horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitinfer.optimizer.graph import ModelGraph, Unit
from splitinfer.optimizer.wanted import Workload

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class NodeSpeeds:
    """Speeds of eligible nodes as arrays, in their units: one entry per node.

    ``free`` is ``1 - background utilisation``.
    """

    bandwidth: Floats
    flops: Floats
    block_overhead: Floats
    step_overhead: Floats
    serialise: Floats
    free: Floats


def decode_seconds(graph: ModelGraph, units: Sequence[Unit], nodes: NodeSpeeds, work: Workload) -> Floats:
    """Seconds that one decode step takes in each unit on each node: ``[units, nodes]``."""
    weights = np.array([graph.bytes_of(unit) for unit in units], dtype=np.float64)
    kv = np.array([unit.kv_bytes_per_token for unit in units], dtype=np.float64)
    flops = np.array([unit.decode_flops_per_token for unit in units], dtype=np.float64)
    read = weights + work.rows * work.typical_context_tokens * kv
    return _roofline(read, work.rows * flops, nodes)


def prefill_seconds(
    graph: ModelGraph, units: Sequence[Unit], nodes: NodeSpeeds, tokens: Sequence[float]
) -> Floats:
    """Seconds that so many tokens at once take in each unit on each node: ``[units, nodes]``."""
    weights = np.array([graph.bytes_of(unit) for unit in units], dtype=np.float64)
    flops = np.array([unit.prefill_flops_per_token for unit in units], dtype=np.float64)
    return _roofline(weights, np.asarray(tokens, dtype=np.float64) * flops, nodes)


def _roofline(read_bytes: Floats, flops: Floats, nodes: NodeSpeeds) -> Floats:
    memory = read_bytes[:, None] / nodes.bandwidth[None, :]
    arithmetic = flops[:, None] / nodes.flops[None, :]
    return (np.maximum(memory, arithmetic) + nodes.block_overhead[None, :]) / nodes.free[None, :]


def hop_seconds(frame_bytes: float, round_trip: Floats, bandwidth: Floats, nodes: NodeSpeeds) -> Floats:
    """Seconds of a frame from each node to each node: ``[from, to]``; infinite where no link is known.

    On the diagonal (the entry to a host on its own node) only serialisation is left, on both sides.
    """
    serialise = frame_bytes / nodes.serialise
    seconds = round_trip / 2 + occupied_seconds(frame_bytes, bandwidth)
    np.fill_diagonal(seconds, 0.0)
    result: Floats = seconds + serialise[:, None] + serialise[None, :]
    return result


def occupied_seconds(frame_bytes: float, bandwidth: Floats) -> Floats:
    """Seconds that a frame keeps each link busy; infinite where no bandwidth is known (0 stands for that)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        seconds = np.where(bandwidth > 0, frame_bytes / bandwidth, np.inf)
    np.fill_diagonal(seconds, 0.0)
    return seconds
