"""Labels: partial chains that remember what a node they may meet again holds already.

A label at ``(t, v)`` is a chain over blocks ``[0, t)`` whose last range is on ``v``. It carries its cost, its priced
cost (see `splitinfer.optimizer.prices`), its segments, its share of TPOT and TTFT, and the memory taken on the nodes that
it remembers. At node ``w`` only nodes of the neighbourhood ``near[w]`` are remembered (the ng-route relaxation of
Baldacci, Mingozzi and Roberti, 2011, with memory in place of visits): a chain may then overfill a node that it forgot,
so its cost is a lower bound, and the solver widens the neighbourhoods along the chains that do, until the best does not.

A label is dropped when
- its priced cost and the priced completion bound of `chain.backward` reach the limit: nothing better comes of it;
- another at the same place is no worse in cost, priced cost, segments, times, and memory taken on each node remembered:
  whatever completes it completes the other.

Chains arrive at a node first and are compared there; then their range on it is grown block by block. Layers ``t`` are
processed in order, so that the caller can stop between them; what has not been processed then is a frontier that every
chain crosses, and its least bound a valid lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitinfer.optimizer.compiled import compiled
from splitinfer.optimizer.cost import Floats
from splitinfer.optimizer.problem import Bools, Ints

WIDTH = 24
"""Nodes that a label can remember; what does not fit is forgotten, which is a relaxation again."""

# Columns of a label.
NODE, START, STOP, PARENT, SEGMENTS, COUNT, NEXT, END = range(8)
COST, PRICED, RING, FIRST, BUSY, BUSY_FIRST = range(6)


@dataclass(slots=True)
class Store:
    """The labels of one pass, in arrays that grow between layers."""

    whole: Ints
    real: Floats
    who: NDArray[np.int32]
    taken: Ints
    busy: Floats
    heads: NDArray[np.int32]
    size: int = 0

    @classmethod
    def empty(cls, blocks: int, nodes: int, capacity: int, width: int, bottleneck: bool) -> Store:
        """Room for so many labels."""
        return cls(
            whole=np.empty((capacity, 8), np.int64),
            real=np.empty((capacity, 6)),
            who=np.empty((capacity, width), np.int32),
            taken=np.empty((capacity, width), np.int64),
            busy=np.empty((capacity if bottleneck else 1, width, 2)),
            heads=np.full((blocks + 1, nodes), -1, np.int32),
        )


@compiled
def _covers(
    a: int,
    b: int,
    near: Bools,
    who: NDArray[np.int32],
    taken: Ints,
    busy: Floats,
    whole: Ints,
    bottleneck: bool,
) -> bool:
    """Whether ``a`` has taken no more than ``b`` on every node of ``near`` that ``a`` remembers."""
    for x in range(whole[a, COUNT]):
        node = who[a, x]
        if not near[node]:
            continue
        found = False
        for y in range(whole[b, COUNT]):
            if who[b, y] == node:
                found = taken[a, x] <= taken[b, y]
                if bottleneck and (busy[a, x, 0] > busy[b, y, 0] or busy[a, x, 1] > busy[b, y, 1]):
                    found = False
                break
        if not found:
            return False
    return True


@compiled
def layer(
    t: int,
    cost: Floats,
    priced: Floats,
    ring: Floats,
    first: Floats,
    hop: Floats,
    hop_priced: Floats,
    hop_ring: Floats,
    hop_first: Floats,
    link_decode: Floats,
    link_prefill: Floats,
    step_decode: Floats,
    step_prefill: Floats,
    kind: Ints,
    memory: Ints,
    room: Ints,
    may_cut: Bools,
    may_stay: Bools,
    near: Bools,
    group: Ints,
    latest: Ints,
    begin: Floats,
    begin_in: Floats,
    leave: Floats,
    rest_ring: Floats,
    rest_first: Floats,
    rest_segments: Ints,
    limits: Floats,
    modes: Ints,
    whole: Ints,
    real: Floats,
    who: NDArray[np.int32],
    taken: Ints,
    busy: Floats,
    heads: NDArray[np.int32],
    size: int,
    counters: Ints,
) -> int:
    """Process the labels that end at ``t``; gives the new number of labels.

    -1 when the arrays are full, -2 when too much was compared: nothing of the layer counts then.

    - ``group``, ``latest``, ``begin``, ``begin_in``, ``leave``: priced completion bounds of `stays.backward_stays`; a label's
      column ``END`` is where its stay must end. Nodes of a group must be near each other.
    - ``rest_*[s, w]``: least ring, first chunk and segments from a range that starts at ``(s, w)`` to the end.
    - ``limits``: least cost not to reach, TPOT limit, TTFT limit, micro-batches, chunks - 1, constant of the prices, weight
      of latency.
    - ``modes``: most segments, labels kept per place (0: all), whether segments, times, bottlenecks are compared, most
      comparisons.
    - ``counters``: labels compared, labels made.
    """
    blocks, nodes = cost.shape
    limit, tpot, ttft, k, chunks, constant, weight = limits
    max_segments, keep, by_segments, by_times, bottleneck = modes[0], modes[1], modes[2], modes[3], modes[4]
    most_compared = modes[5]
    capacity = whole.shape[0]
    # The labels here, those that others make useless left out.
    live = np.empty(size, np.int64)
    lives = 0
    for v in range(nodes):
        count = 0
        x = heads[t, v]
        while x >= 0:
            if t == 0 or real[x, PRICED] + leave[v, t, whole[x, END]] - constant < limit:
                live[lives + count] = x
                count += 1
            x = whole[x, NEXT]
        if count == 0:
            continue
        order = live[lives : lives + count].copy()
        order = order[np.argsort(real[order, PRICED if keep else COST], kind="mergesort")]
        kept = 0
        for i in range(count):
            b = order[i]
            useless = False
            for j in range(kept):
                a = live[lives + j]
                counters[0] += 1
                if counters[0] > most_compared:
                    return -2
                if real[a, PRICED] > real[b, PRICED]:
                    continue
                if by_segments and whole[a, SEGMENTS] > whole[b, SEGMENTS]:
                    continue
                if by_times and (real[a, RING] > real[b, RING] or real[a, FIRST] > real[b, FIRST]):
                    continue
                if bottleneck and (
                    real[a, BUSY] > real[b, BUSY]
                    or real[a, BUSY_FIRST] > real[b, BUSY_FIRST]
                    or real[a, COST] - weight * real[a, RING] > real[b, COST] - weight * real[b, RING]
                ):
                    continue
                if _covers(a, b, near[v], who, taken, busy, whole, bottleneck):
                    useless = True
                    break
            if not useless:
                live[lives + kept] = b
                kept += 1
                if keep and kept >= keep:
                    break
        lives += kept
    if lives == 0 or t == blocks or not (may_cut[t] or t == 0):
        return size
    live = live[:lives]
    pick = np.empty(lives, np.int64)
    value = np.empty(lives)
    rank = np.empty(lives)
    for w in range(nodes):
        if begin[t, w] == np.inf:
            continue
        count = 0
        for i in range(lives):
            x = live[i]
            v = whole[x, NODE]
            if v == w and t > 0:
                continue
            rest = begin[t, w]
            if t > 0 and group[v] == group[w]:
                rest = begin_in[w, t, whole[x, END]]
            if real[x, PRICED] + hop_priced[kind[t], v, w] + rest - constant >= limit:
                continue
            if whole[x, SEGMENTS] + rest_segments[t, w] > max_segments:
                continue
            if by_times and (
                real[x, RING] + hop_ring[kind[t], v, w] + rest_ring[t, w] > tpot
                or real[x, FIRST] + hop_first[kind[t], v, w] + rest_first[t, w] > ttft
            ):
                continue
            pick[count] = x
            value[count] = real[x, COST] + hop[kind[t], v, w]
            count += 1
        if count == 0:
            continue
        if keep:  # a beam follows the priced cost, which leads away from what many want
            for i in range(count):
                rank[i] = real[pick[i], PRICED] + hop_priced[kind[t], whole[pick[i], NODE], w]
            order = np.argsort(rank[:count], kind="mergesort")
        else:
            order = np.argsort(value[:count], kind="mergesort")
        kept = 0
        for i in range(count):
            b = pick[order[i]]
            vb = whole[b, NODE]
            useless = False
            for j in range(kept):
                a = pick[order[j]]
                va = whole[a, NODE]
                counters[0] += 1
                if counters[0] > most_compared:
                    return -2
                if (
                    real[a, PRICED] + hop_priced[kind[t], va, w]
                    > real[b, PRICED] + hop_priced[kind[t], vb, w]
                ):
                    continue
                if by_segments and whole[a, SEGMENTS] > whole[b, SEGMENTS]:
                    continue
                if by_times and (
                    real[a, RING] + hop_ring[kind[t], va, w] > real[b, RING] + hop_ring[kind[t], vb, w]
                    or real[a, FIRST] + hop_first[kind[t], va, w] > real[b, FIRST] + hop_first[kind[t], vb, w]
                ):
                    continue
                if bottleneck and (
                    max(real[a, BUSY], link_decode[kind[t], va, w])
                    > max(real[b, BUSY], link_decode[kind[t], vb, w])
                    or max(real[a, BUSY_FIRST], link_prefill[kind[t], va, w])
                    > max(real[b, BUSY_FIRST], link_prefill[kind[t], vb, w])
                    or value[order[j]] - weight * (real[a, RING] + hop_ring[kind[t], va, w])
                    > value[order[i]] - weight * (real[b, RING] + hop_ring[kind[t], vb, w])
                ):
                    continue
                if _covers(a, b, near[w], who, taken, busy, whole, bottleneck):
                    useless = True
                    break
            if not useless:
                order[kept] = order[i]
                kept += 1
                if keep and kept >= keep:
                    break
        for i in range(kept):
            x = pick[order[i]]
            v = whole[x, NODE]
            c = real[x, COST] + hop[kind[t], v, w]
            p = real[x, PRICED] + hop_priced[kind[t], v, w]
            r = real[x, RING] + hop_ring[kind[t], v, w]
            f = real[x, FIRST] + hop_first[kind[t], v, w]
            before = 0
            own, own_first = step_decode[w], step_prefill[w]
            for y in range(whole[x, COUNT]):
                if who[x, y] == w:
                    before = taken[x, y]
                    if bottleneck:
                        own += busy[x, y, 0]
                        own_first += busy[x, y, 1]
            used = before
            end = latest[group[w], t]
            if t > 0 and group[v] == group[w]:
                end = whole[x, END]
            d0 = max(real[x, BUSY], link_decode[kind[t], v, w])
            f0 = max(real[x, BUSY_FIRST], link_prefill[kind[t], v, w])
            for s in range(t, end):
                used += memory[s]
                c += cost[s, w]
                p += priced[s, w]
                r += ring[s, w]
                f += first[s, w]
                own += ring[s, w]
                own_first += first[s, w]
                if used > room[w] or c == np.inf or (s > t and not may_stay[s]):
                    break
                if p + leave[w, s + 1, end] - constant >= limit:
                    continue
                d = max(d0, own)
                df = max(f0, own_first)
                if bottleneck and (k * d > tpot or f + chunks * df > ttft):
                    break
                if keep == 1 and heads[s + 1, w] >= 0 and real[heads[s + 1, w], PRICED] <= p:
                    continue
                if size >= capacity:
                    return -1
                whole[size, NODE] = w
                whole[size, START] = t
                whole[size, STOP] = s + 1
                whole[size, END] = end
                whole[size, PARENT] = x
                whole[size, SEGMENTS] = whole[x, SEGMENTS] + 1
                real[size, COST] = c
                real[size, PRICED] = p
                real[size, RING] = r
                real[size, FIRST] = f
                real[size, BUSY] = d
                real[size, BUSY_FIRST] = df
                who[size, 0] = w
                taken[size, 0] = used
                if bottleneck:
                    busy[size, 0, 0] = own
                    busy[size, 0, 1] = own_first
                n = 1
                for y in range(whole[x, COUNT]):
                    other = who[x, y]
                    if other != w and near[w, other] and n < who.shape[1]:
                        who[size, n] = other
                        taken[size, n] = taken[x, y]
                        if bottleneck:
                            busy[size, n, 0] = busy[x, y, 0]
                            busy[size, n, 1] = busy[x, y, 1]
                        n += 1
                whole[size, COUNT] = n
                whole[size, NEXT] = heads[s + 1, w]
                heads[s + 1, w] = size
                size += 1
                counters[1] += 1
    return size
