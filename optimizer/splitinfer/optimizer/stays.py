"""The relaxation with stays: a chain may forget a node's memory, but not that of the site it has not left yet.

Where nodes lie close together (a rack, a site), the plain relaxation bounces between the two fastest of them for ever and
never pays for the long links that a real plan needs. So nodes are grouped, ``group[v]``, and the blocks of one
uninterrupted *stay* in a group must fit the group's room together: a stay that began at block ``b`` ends at the latest at
``latest[g, b]``. With ``b`` as part of the state,

    A[b, s, w] = G[s, w] if s = b, else min over v != w in w's group of D[b, s, v] + hop[v, w]
    D[b, t, v] = min over s of A[b, s, v] + cost of blocks [s, t) on v,       t <= latest[group[v], b]
    G[s, w]    = min over b, v outside w's group of D[b, s, v] + hop[v, w]

and backward the same with the end of the stay in the state. Any grouping gives a valid bound; groups of one node give the
relaxation of `splitinfer.optimizer.chain`. Time: O(N M^2 + N S M (R + g)) for stays of S blocks, ranges of R and groups
of g nodes; some 10 ms for 126 x 128.
"""

from __future__ import annotations

import numpy as np

from splitinfer.optimizer.compiled import compiled
from splitinfer.optimizer.cost import Floats
from splitinfer.optimizer.problem import Bools, Ints

GROUP = 8
"""Most nodes of a group."""


def group_nodes(hop: Floats, memory: Ints, room: Ints, most: int = GROUP) -> Ints:
    """Groups of nodes close together: pairs joined nearest first, while a group has at most ``most`` nodes.

    A group that has room for the whole model would bound nothing, and make labels remember more, so none is joined to it.

    O(M^2 log M). Ties go by canonical order.
    """
    count = len(hop)
    near = np.maximum(hop, hop.T)
    rows, columns = np.triu_indices(count, 1)
    distance = near[rows, columns]
    order = np.argsort(distance, kind="stable")
    parent, size = np.arange(count), np.ones(count, np.int64)
    total = np.maximum(room, 0).copy()
    _join(rows[order], columns[order], distance[order], parent, size, total, most, int(memory.sum()))
    roots = np.array([_root(parent, v) for v in range(count)], dtype=np.int64)
    _, groups = np.unique(roots, return_inverse=True)
    return groups.astype(np.int64)


@compiled
def _root(parent: Ints, v: int) -> int:
    while parent[v] != v:
        v = parent[v]
    return v


@compiled
def _join(
    rows: Ints,
    columns: Ints,
    distance: Floats,
    parent: Ints,
    size: Ints,
    room: Ints,
    most: int,
    most_room: int,
) -> None:
    for i in range(len(rows)):
        if distance[i] == np.inf:
            break
        a, b = _root(parent, rows[i]), _root(parent, columns[i])
        if a != b and size[a] + size[b] <= most and room[a] + room[b] < most_room:
            a, b = min(a, b), max(a, b)
            parent[b] = a
            size[a] += size[b]
            room[a] += room[b]


@compiled
def latest_ends(memory: Ints, room: Ints, group: Ints, groups: int) -> Ints:
    """``[groups, N + 1]``: the last block boundary that a stay which began at a block can reach."""
    blocks = len(memory)
    total = np.zeros(groups, np.int64)
    for v in range(len(room)):
        total[group[v]] += max(0, room[v])
    ends = np.empty((groups, blocks + 1), np.int64)
    for g in range(groups):
        end, used = 0, 0
        for b in range(blocks + 1):
            if end < b:
                end, used = b, 0
            while end < blocks and used + memory[end] <= total[g]:
                used += memory[end]
                end += 1
            ends[g, b] = end
            if b < blocks and end > b:
                used -= memory[b]
    return ends


@compiled
def first_begins(latest: Ints) -> Ints:
    """``[groups, N + 1]``: the first block at which a stay that reaches a boundary can have begun."""
    groups, size = latest.shape
    begins = np.empty((groups, size), np.int64)
    for g in range(groups):
        b = 0
        for t in range(size):
            while latest[g, b] < t:
                b += 1
            begins[g, t] = b
    return begins


@compiled
def forward_stays(
    cost: Floats,
    hop: Floats,
    kind: Ints,
    memory: Ints,
    room: Ints,
    may_cut: Bools,
    may_stay: Bools,
    start: Floats,
    hop_out: Floats,
    members: Ints,
    offsets: Ints,
    group: Ints,
    begins: Ints,
    arrive: Floats,
    done: Floats,
    inside: Floats,
    within: Floats,
) -> None:
    """Fill ``arrive`` (G) and ``done`` (min over b of D), [N + 1, M], and ``inside`` (A) and ``within`` (D), [M, N + 1, N + 1].

    The begin of the stay is the last axis of ``inside[w, s, b]`` and ``within[v, t, b]``, so that the inner loops run over
    neighbouring numbers. ``members[offsets[g]:offsets[g + 1]]`` are the nodes of group g; ``hop_out`` is ``hop`` with
    infinity inside groups. The tables hold nothing sensible outside of what a stay can be.
    """
    blocks, nodes = cost.shape
    arrive[:, :] = np.inf
    done[:, :] = np.inf
    for v in range(nodes):
        for t in range(blocks + 1):
            inside[v, t, begins[group[v], t] : t + 1] = np.inf
            within[v, t, begins[group[v], t] : t + 1] = np.inf
    arrive[0, :] = start
    for s in range(blocks + 1):
        if s > 0:
            for v in range(nodes):
                best = np.inf
                for b in range(begins[group[v], s], s):
                    best = min(best, within[v, s, b])
                done[s, v] = best
        if s == blocks:
            break
        if s > 0 and may_cut[s]:
            goal = arrive[s]
            for v in range(nodes):
                f = done[s, v]
                if f < np.inf:
                    row = hop_out[kind[s], v]
                    for w in range(nodes):
                        goal[w] = min(goal[w], f + row[w])
            for g in range(len(offsets) - 1):
                low = begins[g, s]
                for x in range(offsets[g], offsets[g + 1]):
                    v = members[x]
                    if done[s, v] == np.inf:
                        continue
                    source = within[v, s]
                    for y in range(offsets[g], offsets[g + 1]):
                        if x != y:
                            w = members[y]
                            step = hop[kind[s], v, w]
                            target = inside[w, s]
                            for b in range(low, s):
                                target[b] = min(target[b], source[b] + step)
        for w in range(nodes):
            inside[w, s, s] = arrive[s, w]
            total, left, g = 0.0, room[w], group[w]
            source = inside[w, s]
            for t in range(s, blocks):
                left -= memory[t]
                total += cost[t, w]
                if left < 0 or total == np.inf or (t > s and not may_stay[t]):
                    break
                target = within[w, t + 1]
                for b in range(begins[g, t + 1], s + 1):
                    target[b] = min(target[b], source[b] + total)


@compiled
def backward_stays(
    cost: Floats,
    hop_to: Floats,
    kind: Ints,
    memory: Ints,
    room: Ints,
    may_cut: Bools,
    may_stay: Bools,
    finish: Floats,
    hop_to_out: Floats,
    members: Ints,
    offsets: Ints,
    group: Ints,
    latest: Ints,
    begin: Floats,
    begin_in: Floats,
    leave: Floats,
    away: Floats,
) -> None:
    """Cost to the end.

    Fills ``begin[s, w]`` (a stay starts at s on w), ``begin_in[w, s, e]`` (a range starts at s on w in a stay that ends
    by e), and ``leave[v, t, e]`` (a range ended at t on v, in such a stay). ``away`` is scratch, [N + 1, M].
    """
    blocks, nodes = cost.shape
    begin[:, :] = np.inf
    away[:, :] = np.inf
    away[blocks, :] = finish
    for v in range(nodes):
        for t in range(blocks):
            leave[v, t, t : latest[group[v], t] + 1] = np.inf
            begin_in[v, t, t : latest[group[v], t] + 1] = np.inf
        leave[v, blocks, :] = finish[v]
    for s in range(blocks - 1, -1, -1):
        for w in range(nodes):
            end = latest[group[w], s]
            total, left = 0.0, room[w]
            target = begin_in[w, s]
            for t in range(s, end):
                left -= memory[t]
                total += cost[t, w]
                if left < 0 or total == np.inf or (t > s and not may_stay[t]):
                    break
                source = leave[w, t + 1]
                for e in range(t + 1, end + 1):
                    target[e] = min(target[e], total + source[e])
            begin[s, w] = target[end] if end > s else np.inf
        if s == 0 or not may_cut[s]:
            continue
        goal = away[s]
        for w in range(nodes):
            f = begin[s, w]
            if f < np.inf:
                row = hop_to_out[kind[s], w]
                for v in range(nodes):
                    goal[v] = min(goal[v], f + row[v])
        for g in range(len(offsets) - 1):
            end = latest[g, s]
            for x in range(offsets[g], offsets[g + 1]):
                v = members[x]
                target = leave[v, s]
                for e in range(s, end + 1):
                    target[e] = goal[v]
                for y in range(offsets[g], offsets[g + 1]):
                    if y != x:
                        w = members[y]
                        step = hop_to[kind[s], w, v]
                        source = begin_in[w, s]
                        for e in range(s + 1, end + 1):
                            target[e] = min(target[e], source[e] + step)


@compiled
def trace_stays(
    cost: Floats,
    hop: Floats,
    kind: Ints,
    memory: Ints,
    room: Ints,
    may_stay: Bools,
    finish: Floats,
    group: Ints,
    begins: Ints,
    done: Floats,
    inside: Floats,
    within: Floats,
    runs: Ints,
) -> int:
    """Write the cheapest chain into ``runs`` [N, 3] as (node, start, stop), last range first; how many there are.

    Parents are found again instead of stored: O(M + N) per range. Ties go to the first node in canonical order.
    """
    blocks, nodes = cost.shape
    at, best = -1, np.inf
    for v in range(nodes):
        if done[blocks, v] + finish[v] < best:
            at, best = v, done[blocks, v] + finish[v]
    count, t, stay = 0, blocks, -1
    while t > 0 and at >= 0:
        if stay < 0:
            for b in range(begins[group[at], t], t):
                if within[at, t, b] == done[t, at]:
                    stay = b
                    break
        start, total, left = -1, 0.0, room[at]
        closest = np.inf
        for s in range(t - 1, stay - 1, -1):
            left -= memory[s]
            total += cost[s, at]
            if left < 0 or total == np.inf:
                break
            error = abs(inside[at, s, stay] + total - within[at, t, stay])
            if inside[at, s, stay] < np.inf and error < closest:
                closest, start = error, s
            if not may_stay[s]:
                break
        runs[count, 0], runs[count, 1], runs[count, 2] = at, start, t
        count += 1
        t = start
        if t > 0:
            came, closest = -1, np.inf
            outside = t == stay
            for v in range(nodes):
                if v == at or (group[v] == group[at]) == outside:
                    continue
                f = done[t, v] if outside else within[v, t, stay]
                if f < np.inf:
                    error = abs(f + hop[kind[t], v, at] - inside[at, t, stay])
                    if error < closest:
                        closest, came = error, v
            at = came
            if outside:
                stay = -1
    return count


@compiled
def cheapest_through(inside: Floats, begin_in: Floats, group: Ints, latest: Ints, through: Floats) -> None:
    """``through[w]``: the cheapest relaxed chain that has a range on w (the entry's cost not in it)."""
    nodes, size, _ = inside.shape
    for w in range(nodes):
        best, g = np.inf, group[w]
        for s in range(size - 1):
            for b in range(s + 1):
                end = latest[g, b]
                if s < end and (b == s or s > 0):
                    best = min(best, inside[w, s, b] + begin_in[w, s, end])
        through[w] = best
