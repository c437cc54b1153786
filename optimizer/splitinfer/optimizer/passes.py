"""One pass of labels over a view: a beam that looks for plans, or the exact one that proves a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from splitinfer.optimizer import labels
from splitinfer.optimizer.budget import Timer
from splitinfer.optimizer.chain import backward
from splitinfer.optimizer.cost import Floats
from splitinfer.optimizer.evaluate import TOLERANCE, Run, exceeds
from splitinfer.optimizer.prices import Prices, priced
from splitinfer.optimizer.problem import Bools, Ints
from splitinfer.optimizer.view import View, solve_backward

FIRST_LABELS = 1 << 15
COMPARISONS_PER_SECOND = 2e7
"""A cautious guess, for stopping inside a layer: most machines do two to five times as many."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass found.

    Attributes:
        bound: no chain that the pass may give costs less; at most the pass's limit.
        chains: the chains that reached the end, cheapest first: ``(cost, runs)``; runs are the problem's.
        complete: it went through all layers; else ``bound`` is that of the frontier where it stopped.
    """

    bound: float
    chains: tuple[tuple[float, tuple[Run, ...]], ...]
    complete: bool


@dataclass(frozen=True, slots=True, eq=False)
class Rests:
    """Least ring, first chunk and segments to the end, from the start of a range: ``[N + 1, M]``.

    And whether they can matter at all.
    """

    ring: Floats
    first: Floats
    segments: Ints
    by_segments: bool
    by_times: bool


def rests_of(view: View) -> Rests:
    """Completion bounds for each limit; zeros for limits that are not set."""
    p = view.problem
    by_times = bool(np.isfinite(p.tpot_limit) or np.isfinite(p.ttft_limit))
    zero = np.zeros((p.block_count + 1, len(view.nodes)))
    allowed = np.where(np.isfinite(view.cost), 0.0, np.inf)
    ring = first = zero
    if by_times:
        ring = _least(view, view.ring + allowed, view.hop_ring)
        first = _least(view, view.first + allowed, view.hop_first)
    hop = np.where(np.isfinite(view.hop_cost), 1.0, np.inf)
    hop[-1] -= 1.0
    begin = _least(view, allowed, hop)
    segments = np.where(np.isfinite(begin), begin + 1, p.block_count + 1).astype(np.int64)
    return Rests(ring, first, segments, p.max_segments < p.block_count, by_times)


def _least(view: View, cost: Floats, hop: Floats) -> Floats:
    """The plain relaxation backward: ``begin``."""
    p = view.problem
    begin = np.empty((p.block_count + 1, len(view.nodes)))
    backward(
        cost,
        np.ascontiguousarray(hop.transpose(0, 2, 1)),
        *(p.hop_class, p.memory, view.room, p.may_cut, p.may_stay),
        np.ascontiguousarray(hop[-1][:, view.home]),
        begin,
        np.empty_like(begin),
    )
    return begin


def run_pass(
    view: View,
    prices: Prices,
    rests: Rests,
    near: Bools,
    limit: float,
    timer: Timer,
    keep: int = 0,
    most_labels: int | None = None,
) -> Outcome:
    """Labels over all layers, looking for chains that cost less than ``limit``.

    Args:
        view: entry and nodes.
        prices: for the completion bounds.
        rests: completion bounds of the limits.
        near: ``[M, M]``: at node w, which nodes are remembered.
        limit: cost not to reach.
        timer: stops it between layers.
        keep: labels kept at each place, 0 for all: a beam gives plans, and no bound.
        most_labels: stops it too.
    """
    p, arrays = view.problem, priced(view, prices)
    rest = solve_backward(view, arrays.cost, arrays.hop)
    bottleneck = not p.is_additive
    width = min(p.max_segments, p.block_count, labels.WIDTH) + 1  # the entry's node is one more
    most = min(most_labels or timer.labels, timer.labels)
    store = labels.Store.empty(p.block_count, len(view.nodes), min(FIRST_LABELS, most + 1), width, bottleneck)
    _root(store, view, bottleneck)
    limits = np.array(
        [
            limit,
            p.tpot_limit * (1 + TOLERANCE),
            p.ttft_limit * (1 + TOLERANCE),
            p.micro_batches,
            p.chunks - 1,
            arrays.constant,
            p.latency_weight,
        ]
    )
    modes = np.array([p.max_segments, keep, rests.by_segments, rests.by_times, bottleneck, 0], np.int64)
    counters = np.zeros(2, np.int64)
    fixed: tuple[Any, ...] = (
        *(view.cost, arrays.cost, view.ring, view.first),
        *(view.hop_cost, arrays.hop, view.hop_ring, view.hop_first),
        *(_pairs(view, p.link_decode), _pairs(view, p.link_prefill)),
        *(p.step_decode[view.nodes], p.step_prefill[view.nodes]),
        *(p.hop_class, p.memory, view.room, p.may_cut, p.may_stay, near),
        *(view.groups.of, view.groups.latest, rest.begin, rest.begin_in, rest.leave),
        *(rests.ring, rests.first, rests.segments, limits, modes),
    )
    for t in range(p.block_count):
        while True:
            heads = store.heads[t + 1 :].copy()
            modes[5] = counters[0] + int(min(COMPARISONS_PER_SECOND * timer.left(), 1e15))
            tables: tuple[Any, ...] = (
                store.whole,
                store.real,
                store.who,
                store.taken,
                store.busy,
                store.heads,
            )
            arguments: tuple[Any, ...] = (t, *fixed, *tables, store.size, counters)
            size = labels.layer(*arguments)
            if size >= 0:
                break
            if size == -2 or len(store.whole) > most or timer.expired():
                store.heads[t + 1 :] = heads
                return _stopped(store, t, rest.leave, limit, arrays.constant, timer, counters)
            store.heads[t + 1 :] = heads
            _grow(store, bottleneck)
        store.size = size
        if timer.expired():
            return _stopped(store, t + 1, rest.leave, limit, arrays.constant, timer, counters)
    timer.count("labels", int(counters[1]))
    return _finished(store, view, limit)


def _pairs(view: View, matrix: Floats) -> Floats:
    if view.problem.is_additive or len(view.nodes) == view.problem.node_count:
        return matrix  # not read where nothing is a bottleneck
    return np.ascontiguousarray(matrix[:, view.nodes][:, :, view.nodes])


def _root(store: labels.Store, view: View, bottleneck: bool) -> None:
    p = view.problem
    store.whole[0] = (view.home, 0, 0, -1, 0, 0, -1, 0)
    ring, first = float(p.entry_ring[view.entry]), float(p.entry_first[view.entry])
    store.real[0] = (view.entry_cost, view.entry_cost, ring, first, ring, first)
    if bottleneck:
        store.whole[0, labels.COUNT] = 1
        store.who[0, 0], store.taken[0, 0], store.busy[0, 0] = view.home, 0, (ring, first)
    store.heads[0, view.home] = 0
    store.size = 1


def _grow(store: labels.Store, bottleneck: bool) -> None:
    names = ["whole", "real", "who", "taken", *(["busy"] if bottleneck else [])]
    for name in names:
        old = getattr(store, name)
        new = np.empty((2 * len(old), *old.shape[1:]), old.dtype)
        new[: store.size] = old[: store.size]
        setattr(store, name, new)


def _at(store: labels.Store, t: int, node: int) -> list[int]:
    found, x = [], int(store.heads[t, node])
    while x >= 0:
        found.append(x)
        x = int(store.whole[x, labels.NEXT])
    return found


def _stopped(
    store: labels.Store,
    t: int,
    leave: Floats,
    limit: float,
    constant: float,
    timer: Timer,
    counters: Ints,
) -> Outcome:
    """Every chain that costs less than the limit goes through a label that ends at ``t`` or later."""
    timer.count("labels", int(counters[1]))
    stops = store.whole[: store.size, labels.STOP]
    open_ = np.flatnonzero((stops >= t) & (store.whole[: store.size, labels.PARENT] >= 0))
    parents = store.whole[open_, labels.PARENT]
    open_ = open_[store.whole[parents, labels.STOP] < max(t, 1)]
    if t == 0:
        return Outcome(-np.inf, (), False)
    ends = store.whole[open_]
    rest = leave[ends[:, labels.NODE], ends[:, labels.STOP], ends[:, labels.END]]
    bounds = store.real[open_, labels.PRICED] + rest - constant
    return Outcome(min(limit, float(bounds.min(initial=np.inf))), (), False)


def _finished(store: labels.Store, view: View, limit: float) -> Outcome:
    p, kind = view.problem, view.problem.hop_class[view.problem.block_count]
    ends = [x for v in range(len(view.nodes)) for x in _at(store, p.block_count, v)]
    found: list[tuple[float, int]] = []
    for x in ends:
        node = int(store.whole[x, labels.NODE])
        real = store.real[x]
        cost = float(real[labels.COST] + view.hop_cost[kind, node, view.home])
        ring = float(real[labels.RING] + view.hop_ring[kind, node, view.home])
        first = float(real[labels.FIRST] + view.hop_first[kind, node, view.home])
        tpot, ttft = ring, first
        if not p.is_additive:
            a, b = view.nodes[node], view.nodes[view.home]
            busy = max(float(real[labels.BUSY]), float(p.link_decode[kind, a, b]))
            busy_first = max(float(real[labels.BUSY_FIRST]), float(p.link_prefill[kind, a, b]))
            tpot, ttft = max(ring, p.micro_batches * busy), first + (p.chunks - 1) * busy_first
            cost += p.latency_weight * ((tpot - ring) + (ttft - first) / p.output_tokens)
        if exceeds(tpot, p.tpot_limit) or exceeds(ttft, p.ttft_limit):
            continue  # the way back is slower than the labels' own bounds could tell
        if cost < limit:
            found.append((cost, x))
    found.sort()
    chains = tuple((cost, _runs(store, view, x)) for cost, x in found[:64])
    return Outcome(min(limit, chains[0][0] if chains else np.inf), chains, True)


def _runs(store: labels.Store, view: View, x: int) -> tuple[Run, ...]:
    runs: list[Run] = []
    while store.whole[x, labels.PARENT] >= 0:
        node, start, stop = (int(value) for value in store.whole[x, :3])
        runs.append((int(view.nodes[node]), start, stop))
        x = int(store.whole[x, labels.PARENT])
    return tuple(reversed(runs))
