"""What others do, to compare with: one node, equal and memory-proportional splits, a greedy. No plan of theirs is trusted.

Each gives runs, which `evaluate` then judges; a rule that a baseline does not know of is broken there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from splitinfer.optimizer.evaluate import Run, evaluate
from splitinfer.optimizer.problem import Problem

Baseline = Callable[[Problem, int], tuple[Run, ...] | None]


def one_node(p: Problem, entry: int) -> tuple[Run, ...] | None:
    """All blocks on the node where that is cheapest."""
    home = int(p.entries[entry])
    room = p.room.copy()
    room[home] -= p.entry_memory
    fits = [v for v in range(p.node_count) if p.memory.sum() <= room[v]]
    plans = [((v, 0, p.block_count),) for v in fits]
    return min(plans, key=lambda runs: evaluate(p, entry, runs).cost, default=None)


def equal_split(p: Problem, entry: int) -> tuple[Run, ...] | None:
    """As many nodes as segments are allowed, the nearest to the entry, equal ranges."""
    nodes = _nearest(p, entry)[: min(p.max_segments, p.block_count)]
    return _dealt(p, nodes, np.ones(len(nodes)))


def memory_proportional(p: Problem, entry: int) -> tuple[Run, ...] | None:
    """Ranges in proportion to free memory, over the nearest nodes: what llama.cpp and exo do."""
    nodes = _nearest(p, entry)[: min(p.max_segments, p.block_count)]
    return _dealt(p, nodes, p.room[nodes].astype(np.float64))


def greedy(p: Problem, entry: int) -> tuple[Run, ...] | None:
    """From the entry on: the node on which the next range costs least per block, filled to its room."""
    home, at, start = int(p.entries[entry]), int(p.entries[entry]), 0
    room = p.room.copy()
    room[home] -= p.entry_memory
    runs: list[Run] = []
    while start < p.block_count:
        if len(runs) >= p.max_segments:
            return None
        best: tuple[float, int, int] | None = None
        for v in range(p.node_count):
            if runs and v == at:
                continue
            stop, total, left = start, float(p.hop_cost[p.hop_class[start], at, v]), int(room[v])
            while stop < p.block_count and p.memory[stop] <= left and np.isfinite(p.cost[stop, v]):
                left -= int(p.memory[stop])
                total += float(p.cost[stop, v])
                stop += 1
            if stop > start and np.isfinite(total):
                each = total / (stop - start)
                if best is None or each < best[0]:
                    best = (each, v, stop)
        if best is None:
            return None
        _, v, stop = best
        room[v] -= p.memory[start:stop].sum()
        runs.append((v, start, stop))
        at, start = v, stop
    return tuple(runs)


def _nearest(p: Problem, entry: int) -> list[int]:
    home = int(p.entries[entry])
    hop = p.hop_cost[0, home]
    usable = [v for v in range(p.node_count) if p.room[v] > 0 and (np.isfinite(hop[v]) or v == home)]
    return sorted(usable, key=lambda v: (hop[v], v))


def _dealt(
    p: Problem, nodes: list[int], share: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> tuple[Run, ...] | None:
    if not nodes or share.sum() <= 0:
        return None
    edges = np.rint(np.cumsum(share) / share.sum() * p.block_count).astype(int)
    runs, start = [], 0
    for node, stop in zip(nodes, edges, strict=True):
        if stop > start:
            runs.append((int(node), start, int(stop)))
            start = int(stop)
    return tuple(runs)


BASELINES: dict[str, Baseline] = {
    "one node": one_node,
    "equal split": equal_split,
    "memory-proportional split": memory_proportional,
    "greedy": greedy,
}
