"""The relaxation: the cheapest chain when a node forgets, between two of its ranges, what it already holds.

Forward, with ``G[s, w]`` the cheapest way to have blocks ``[0, s)`` done and to arrive at node ``w``, and ``F[t, v]``
to have ``[0, t)`` done with the last range on ``v``:

    G[0, w] = start[w]
    G[s, w] = min over v != w of F[s, v] + hop[v, w]
    F[t, v] = min over s of G[s, v] + cost of blocks [s, t) on v,       [s, t) fitting v's room by itself

and backward the same from the end. A chain through ``(t, v)`` costs at least ``F[t, v] + B[t, v]``: a bound for every
state, by which states are eliminated. Time: O(N M^2 + N^2 M) for N blocks and M nodes; 2 ms for 126 x 128.

Only the memory of a node that is visited again is relaxed; the solver prices it (`splitinfer.optimizer.prices`).
"""

from __future__ import annotations

import numpy as np

from splitinfer.optimizer.compiled import compiled
from splitinfer.optimizer.cost import Floats
from splitinfer.optimizer.problem import Bools, Ints


@compiled
def forward(
    cost: Floats,
    hop: Floats,
    kind: Ints,
    memory: Ints,
    room: Ints,
    may_cut: Bools,
    may_stay: Bools,
    start: Floats,
    arrive: Floats,
    done: Floats,
) -> None:
    """Fill ``arrive`` (G) and ``done`` (F), both [N + 1, M]."""
    blocks, nodes = cost.shape
    arrive[:, :] = np.inf
    done[:, :] = np.inf
    arrive[0, :] = start
    for s in range(blocks):
        if s > 0 and may_cut[s]:
            g = arrive[s]
            for v in range(nodes):
                f = done[s, v]
                if f < np.inf:
                    row = hop[kind[s], v]
                    for w in range(v):
                        g[w] = min(g[w], f + row[w])
                    for w in range(v + 1, nodes):
                        g[w] = min(g[w], f + row[w])
        for w in range(nodes):
            total = arrive[s, w]
            if total == np.inf:
                continue
            left = room[w]
            for t in range(s, blocks):
                left -= memory[t]
                total += cost[t, w]
                if left < 0 or total == np.inf or (t > s and not may_stay[t]):
                    break
                done[t + 1, w] = min(done[t + 1, w], total)


@compiled
def backward(
    cost: Floats,
    hop_to: Floats,
    kind: Ints,
    memory: Ints,
    room: Ints,
    may_cut: Bools,
    may_stay: Bools,
    finish: Floats,
    begin: Floats,
    leave: Floats,
) -> None:
    """Fill ``begin[s, w]`` (a range starts at s on w) and ``leave[t, v]`` (a range ended at t on v): cost to the end.

    ``hop_to[kind, w, v]`` is the hop from v to w: the transpose, so that the inner loop reads in order.
    """
    blocks, nodes = cost.shape
    begin[:, :] = np.inf
    leave[:, :] = np.inf
    leave[blocks, :] = finish
    for s in range(blocks - 1, -1, -1):
        for w in range(nodes):
            total, left = 0.0, room[w]
            best = np.inf
            for t in range(s, blocks):
                left -= memory[t]
                total += cost[t, w]
                if left < 0 or total == np.inf or (t > s and not may_stay[t]):
                    break
                best = min(best, total + leave[t + 1, w])
            begin[s, w] = best
        if s > 0 and may_cut[s]:
            b = leave[s]
            for w in range(nodes):
                f = begin[s, w]
                if f < np.inf:
                    row = hop_to[kind[s], w]
                    for v in range(w):
                        b[v] = min(b[v], f + row[v])
                    for v in range(w + 1, nodes):
                        b[v] = min(b[v], f + row[v])
