"""Prices: Lagrange multipliers that make the relaxation pay for what it forgets.

The relaxation may fill a node again and again. With a price ``price[v]`` on the room of each node, and one on segments,
TPOT and TTFT where they are bounded,

    L(price) = min over relaxed chains of  cost + sum over v of price[v] taken[v] / room[v] + ...  - sum of prices

is a lower bound for every price >= 0, and so is every completion bound that is priced alike. The best prices are sought
by subgradient steps of Polyak's length, ``step (target - L) / |g|^2`` with ``g[v] = taken[v] / room[v] - 1``
(Held, Wolfe and Crowder, 1974); one step costs one forward relaxation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from splitinfer.optimizer.budget import Timer
from splitinfer.optimizer.cost import Floats
from splitinfer.optimizer.problem import Ints
from splitinfer.optimizer.view import View, chain_runs, solve_forward


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """Of each node's whole room, of a segment, of a second of TPOT and of TTFT; in units of cost."""

    room: Floats
    segment: float = 0.0
    tpot: float = 0.0
    ttft: float = 0.0

    @classmethod
    def none(cls, nodes: int) -> Prices:
        """All zero: the plain relaxation."""
        return cls(np.zeros(nodes))

    def of(self, nodes: Ints) -> Prices:
        """The prices of some of the nodes."""
        return Prices(self.room[nodes], self.segment, self.tpot, self.ttft)

    def over(self, nodes: Ints, count: int) -> Prices:
        """The other way round: these are the prices of ``nodes``, the rest of ``count`` nodes has none."""
        room = np.zeros(count)
        room[nodes] = self.room
        return Prices(room, self.segment, self.tpot, self.ttft)


@dataclass(frozen=True, slots=True, eq=False)
class Priced:
    """Cost and hops with prices, and the constant to subtract from a priced cost."""

    cost: Floats
    hop: Floats
    constant: float


def priced(view: View, prices: Prices) -> Priced:
    """The arrays of a view at these prices."""
    p = view.problem
    if not (prices.room.any() or prices.segment or prices.tpot or prices.ttft):
        return Priced(view.cost, view.hop_cost, 0.0)
    share = np.divide(prices.room, view.room, out=np.zeros(len(view.room)), where=view.room > 0)
    cost = view.cost + p.memory[:, None] * share[None, :]
    hop = view.hop_cost
    constant = float(prices.room.sum())
    if prices.segment:
        hop = hop.copy()
        hop[:-1] += prices.segment
        constant += prices.segment * p.max_segments
    for price, each, way, limit, own in (
        (prices.tpot, view.ring, view.hop_ring, p.tpot_limit, p.entry_ring[view.entry]),
        (prices.ttft, view.first, view.hop_first, p.ttft_limit, p.entry_first[view.entry]),
    ):
        if price:
            cost, hop = cost + price * each, hop + price * way
            constant += price * (limit - float(own))
    return Priced(cost, hop, constant)


@dataclass(frozen=True, slots=True, eq=False)
class Priced0:
    """The best prices found and the bound they prove."""

    prices: Prices
    bound: float


def improve(
    view: View,
    prices: Prices,
    target: float,
    steps: int,
    timer: Timer,
    seen: Callable[[Ints], float] | None = None,
) -> Priced0:
    """Better prices, and the bound that they prove.

    Args:
        view: entry and nodes.
        prices: to start from.
        target: a cost that is thought reachable; at best the cost of a known plan.
        steps: most steps.
        timer: stops them early.
        seen: is shown each relaxed chain (runs, last first, by view), and gives the target of the next step.
    """
    best, bound, stale, length = prices, -np.inf, 0, 1.0
    now = prices
    for _ in range(steps):
        arrays = priced(view, now)
        chain = solve_forward(view, arrays.cost, arrays.hop)
        timer.count("relaxations")
        value = chain.bound - arrays.constant
        if value > bound + 1e-7 * abs(value):
            best, bound, stale = now, value, 0
        else:
            best, bound = (now, value) if value > bound else (best, bound)
            stale += 1
        if not np.isfinite(value) or bound >= target or timer.expired():
            break
        runs = chain_runs(view, arrays.cost, arrays.hop, chain)
        if seen is not None:
            target = min(target, seen(runs))
        if stale >= 8:
            length, stale, now = length / 2, 0, best
            if length < 0.02:
                break
            continue
        moved = _step(view, now, runs, max(target - value, 1e-6 * abs(value)) * length)
        if moved is None:
            break
        now = moved
    return Priced0(best, bound)


def _step(view: View, now: Prices, runs: Ints, gap: float) -> Prices | None:
    """One step; None where the chain breaks nothing that has a price, and so is optimal at these."""
    p = view.problem
    taken = np.zeros(len(view.nodes))
    ring, first = float(p.entry_ring[view.entry]), float(p.entry_first[view.entry])
    at = view.home
    for node, start, stop in runs[::-1]:
        taken[node] += p.memory[start:stop].sum()
        ring += view.ring[start:stop, node].sum() + view.hop_ring[p.hop_class[start], at, node]
        first += view.first[start:stop, node].sum() + view.hop_first[p.hop_class[start], at, node]
        at = node
    ring += view.hop_ring[p.hop_class[p.block_count], at, view.home]
    first += view.hop_first[p.hop_class[p.block_count], at, view.home]
    room = np.divide(taken, view.room, out=np.zeros(len(taken)), where=view.room > 0) - 1.0
    scale = max(abs(view.entry_cost), gap, 1e-12)
    more = np.array(
        [
            (len(runs) - p.max_segments) / p.max_segments,
            _over(ring, p.tpot_limit),
            _over(first, p.ttft_limit),
        ]
    )
    prices = np.array(
        [
            now.segment * p.max_segments,
            now.tpot * _finite(p.tpot_limit),
            now.ttft * _finite(p.ttft_limit),
        ]
    )
    room[(now.room <= 0) & (room < 0)] = 0.0
    more[(prices <= 0) & (more < 0)] = 0.0
    length = float(room @ room + more @ more)
    if length < 1e-18 or scale <= 0:
        return None
    step = gap / length
    prices = np.maximum(0.0, prices + step * more)
    return Prices(
        np.maximum(0.0, now.room + step * room),
        float(prices[0]) / p.max_segments,
        float(prices[1]) / _finite(p.tpot_limit),
        float(prices[2]) / _finite(p.ttft_limit),
    )


def _over(value: float, limit: float) -> float:
    return (value - limit) / limit if np.isfinite(limit) else -1.0


def _finite(limit: float) -> float:
    return limit if np.isfinite(limit) else 1.0
