"""The solver: the best plan within a budget, a proven lower bound, and the gap between them.

Steps, each of which leaves a valid plan and bound behind when time runs out:

1. The relaxation, shared by all entries: a bound for each entry, and nodes worth looking at.
2. A beam of labels: plans.
3. Prices by subgradient steps, entry by entry, best first: bounds, and beams along the priced cost.
4. Nodes that cannot be in a better plan are eliminated by their priced reduced cost.
5. Labels with neighbourhoods that widen until the cheapest chain overfills nothing: the optimum. They look for a
   plan below a limit that rises from the bound to the best plan, since a pass that finds none proves its limit.
6. What time is left goes to wider beams.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import numpy as np

from splitinfer.optimizer.budget import Budget, Timer
from splitinfer.optimizer.chain import backward, forward
from splitinfer.optimizer.evaluate import Evaluation, Run, evaluate
from splitinfer.optimizer.passes import Outcome, Rests, rests_of, run_pass
from splitinfer.optimizer.prices import Prices, improve, priced
from splitinfer.optimizer.problem import Bools, Ints, Problem
from splitinfer.optimizer.stays import cheapest_through
from splitinfer.optimizer.view import View, solve_backward, solve_forward, view_of

EPSILON = 1e-9
"""Relative; costs closer than that are the same."""
WIDE = 160
"""Nodes that a first look at a larger site is narrowed to."""
STEPS = 20
"""Subgradient steps before a look for plans."""
BURSTS = 6
"""So often, for the first entry; others start from its prices and get one."""
POLISH = (4, 16)
"""Widths of the beams before the proof: each plan that they find makes it shorter."""

Status = Literal["optimal", "feasible", "infeasible", "unknown"]


@dataclass(frozen=True, slots=True)
class Solution:
    """What is known when the budget ends.

    Attributes:
        status: ``optimal`` (proven), ``feasible``, ``infeasible`` (proven), ``unknown`` (no plan found, none ruled out).
        entry: index of the entry, -1 without a plan.
        runs: the ranges, by node index.
        evaluation: its numbers; None without a plan.
        bound: no plan costs less.
        work: relaxations, labels and the like.
        trail: ``(seconds since the start, cost)`` of each plan that was better than those before.
    """

    status: Status
    entry: int
    runs: tuple[Run, ...]
    evaluation: Evaluation | None
    bound: float
    work: dict[str, int]
    trail: tuple[tuple[float, float], ...] = ()

    @property
    def cost(self) -> float:
        """Cost of the plan; infinite without one."""
        return self.evaluation.cost if self.evaluation else float("inf")

    @property
    def gap(self) -> float:
        """How much cheaper than the plan any other may be, as a fraction of the plan's cost; 0 is proven optimal."""
        if self.evaluation is None:
            return float("inf")
        if self.evaluation.cost == 0:
            return 0.0
        return max(0.0, (self.cost - self.bound) / abs(self.cost))


def solve(
    problem: Problem,
    budget: Budget | None = None,
    hints: tuple[tuple[int, tuple[Run, ...]], ...] = (),
    any_plan: bool = False,
    cutoff: float = float("inf"),
) -> Solution:
    """The best plan for a problem.

    Args:
        problem: what to solve.
        budget: how long; without one, until it is proven.
        hints: ``(entry, runs)`` of plans worth trying first, such as the one that runs.
        any_plan: stop at the first plan: the question is only whether there is one.
        cutoff: only a plan that costs less is of interest. Where there is none, the status is ``unknown`` and the bound,
            at most, the cutoff.
    """
    if budget is not None:
        warm_up()  # before the clock starts: on a new machine compiling takes longer than most budgets
    return _Search(problem, (budget or Budget()).start(), any_plan=any_plan, cutoff=cutoff).run(hints)


@cache
def warm_up() -> None:
    """Compile everything, so that the first decision does not wait for it; for image builds and service starts."""
    from splitinfer.optimizer.example import tiny_problem

    for bottleneck in (False, True):
        solve(tiny_problem(bottleneck))


@dataclass(slots=True)
class _Entry:
    """What is known about one entry."""

    index: int
    bound: float
    prices: Prices | None = None


@dataclass(slots=True)
class _Search:
    problem: Problem
    timer: Timer
    any_plan: bool = False
    cutoff: float = float("inf")
    entry: int = -1
    runs: tuple[Run, ...] = ()
    best: Evaluation | None = None
    entries: list[_Entry] = field(default_factory=list)
    nodes: Ints | None = None
    trail: list[tuple[float, float]] = field(default_factory=list)
    began: float = 0.0

    @property
    def cost(self) -> float:
        return self.best.cost if self.best else float("inf")

    @property
    def limit(self) -> float:
        """Cost that a plan must be below to be news."""
        return min(self.cost - EPSILON * abs(self.cost) if self.best else float("inf"), self.cutoff)

    def run(self, hints: tuple[tuple[int, tuple[Run, ...]], ...]) -> Solution:
        p = self.problem
        self.began = self.timer.clock() if self.timer.clock else 0.0
        for entry, runs in hints:
            self.offer(entry, runs)
        if len(p.entries) and p.node_count:
            self._relax()
            if self._open():
                self._first_plans()
            if self._open() and not self.timer.expired():
                self._price()
            if self._open() and not self.timer.expired():
                self._prove()
            if self._open() and not self.timer.expired():
                self._widen()
        return self._solution()

    def offer(self, entry: int, runs: tuple[Run, ...]) -> bool:
        """Take a plan if it is feasible and better."""
        found = evaluate(self.problem, entry, runs)
        if not found.feasible or found.cost >= self.limit:
            return False
        self.entry, self.runs, self.best = entry, runs, found
        now = self.timer.clock() - self.began if self.timer.clock else 0.0
        self.trail.append((now, found.cost))
        return True

    def _open(self) -> list[_Entry]:
        """Entries that may hold a better plan, most promising first."""
        if self.any_plan and self.best:
            return []
        left = [e for e in self.entries if e.bound < self.limit]
        return sorted(left, key=lambda e: (e.bound, e.index))

    def _relax(self, prices: Prices | None = None) -> None:
        """Bounds of all entries at these prices, from two relaxations in which every entry starts and ends at once."""
        p = self.problem
        first, last = p.hop_class[0], p.hop_class[p.block_count]
        shape = (p.block_count + 1, p.node_count)
        arrive, done, begin, leave = (np.empty(shape) for _ in range(4))
        cost, hop, constant = p.cost, p.hop_cost, 0.0
        if prices is not None:
            # Room as it is before the entry takes its part: more than any entry leaves, so the bound holds for all.
            share = np.divide(prices.room, p.room, out=np.zeros(len(p.room)), where=p.room > 0)
            cost = cost + p.memory[:, None] * share[None, :]
            hop = hop.copy()
            hop[:-1] += prices.segment
            constant = float(prices.room.sum()) + prices.segment * p.max_segments
        start, finish = hop[first][p.entries].min(axis=0), hop[last][:, p.entries].min(axis=1)
        if prices is None or p.node_count > WIDE:
            rules = (p.hop_class, p.memory, p.room, p.may_cut, p.may_stay)
            forward(cost, hop, *rules, start, arrive, done)
            backward(cost, np.ascontiguousarray(hop.transpose(0, 2, 1)), *rules, finish, begin, leave)
        else:
            view = view_of(p, -1)
            done = solve_forward(view, cost, hop, start).done
            begin = solve_backward(view, cost, hop, finish).begin
        self.timer.count("relaxations", 2)
        ends = (done[p.block_count][:, None] + hop[last][:, p.entries]).min(axis=0)
        starts = (hop[first][p.entries] + begin[0][None, :]).min(axis=1)
        bounds = p.entry_cost + np.maximum(ends, starts) - constant
        if not self.entries:
            self.entries = [_Entry(e, float(bound)) for e, bound in enumerate(bounds) if np.isfinite(bound)]
            worth = np.minimum(arrive + begin, done + leave).min(axis=0)
            if p.node_count > WIDE:
                self.nodes = np.sort(np.argsort(worth, kind="stable")[:WIDE])
        for entry in self.entries:
            entry.bound = max(entry.bound, float(bounds[entry.index]))

    def _first_plans(self) -> None:
        """Beams of one label per place, for plans not far above the bound first: they are quick where one is there."""
        for reach in (1.15, 1.4, 2.0, float("inf")):
            for entry in self._open()[: 1 if reach < 2.0 else 3]:
                if self.timer.expired():
                    return
                view = view_of(self.problem, entry.index, self.nodes)
                limit = entry.bound + (reach - 1.0) * abs(entry.bound)
                self._beam(view, Prices.none(len(view.nodes)), 1, rests_of(view), limit)
            if self.best:
                return

    def _beam(
        self, view: View, prices: Prices, keep: int, rests: Rests, limit: float = float("inf")
    ) -> Outcome:
        full = np.ones((len(view.nodes), len(view.nodes)), np.bool_)
        outcome = run_pass(view, prices, rests, full, min(limit, self.limit), self.timer, keep=keep)
        for _, runs in outcome.chains[:4]:
            self.offer(view.entry, runs)
        return outcome

    def _price(self) -> None:
        """Prices for the most promising entry, tried on all; then the next, until the most promising has its own."""
        shared: Prices | None = None
        while not self.timer.expired():
            entry = next(iter(self._open()), None)
            if entry is None or entry.prices is not None:
                return
            view = view_of(self.problem, entry.index, self.nodes)
            start = shared.of(view.nodes) if shared else Prices.none(len(view.nodes))
            opening = shared is None
            better = self._bargain(entry, view, start, BURSTS if opening else 1)
            entry.prices = better.over(view.nodes, self.problem.node_count)
            if opening:
                shared = entry.prices
                self._relax(shared)

    def _bargain(self, entry: _Entry, view: View, prices: Prices, bursts: int) -> Prices:
        """Prices and plans in turn: a better plan makes longer steps right, and better prices lead beams to better plans."""
        bound = -np.inf
        for burst in range(bursts):
            target = self.limit if self.best else 1.5 * abs(entry.bound) + 1.0
            better = improve(view, prices, target, STEPS, self.timer)
            gained = better.bound - max(bound, entry.bound)
            prices, bound = better.prices, max(bound, better.bound)
            if self.nodes is None:
                entry.bound = max(entry.bound, bound)
            if entry.bound >= self.limit or self.timer.expired():
                break
            narrow, inside = self._narrow(view, prices)
            self._beam(narrow, inside, 1 if burst + 1 < bursts else POLISH[0], rests_of(narrow))
            if burst and gained < 0.001 * abs(bound):
                break
        return prices

    def _narrow(self, view: View, prices: Prices) -> tuple[View, Prices]:
        """The view without nodes that no better plan can use, by the reduced cost of every arrival there."""
        if not self.best:
            return view, prices
        arrays = priced(view, prices)
        chain = solve_forward(view, arrays.cost, arrays.hop)
        rest = solve_backward(view, arrays.cost, arrays.hop)
        self.timer.count("relaxations", 2)
        through = np.empty(len(view.nodes))
        cheapest_through(chain.inside, rest.begin_in, view.groups.of, view.groups.latest, through)
        through += view.entry_cost - arrays.constant
        keep = np.flatnonzero(through < self.limit)
        narrow = view_of(self.problem, view.entry, view.nodes[keep])
        inside = np.searchsorted(view.nodes, narrow.nodes)
        return narrow, prices.of(inside)

    def _prove(self) -> None:
        """Close the gap of each entry by labels, the least bound first."""
        tried: set[int] = set()
        for keep in POLISH:
            self._beams(keep, 2)
        while not self.timer.expired():
            entry = next((e for e in self._open() if e.index not in tried), None)
            if entry is None:
                return
            if entry.prices is None:
                self._price()
            tried.add(entry.index)
            self._close(entry)

    def _close(self, entry: _Entry) -> None:
        possible = self._possible(entry)
        if possible is not None and len(possible) > 2 * WIDE:
            return
        whole = view_of(self.problem, entry.index, possible)
        prices = entry.prices or Prices.none(self.problem.node_count)
        prices = prices.of(whole.nodes)
        view, prices = self._narrow(whole, prices)
        rests = rests_of(view)
        near = view.groups.same.copy()
        near[:, prices.room > 0] = True
        if not self.problem.is_additive:
            near[:, view.home] = True  # the entry's own work keeps its node busy from the start
        share = 0.2
        while entry.bound < self.limit and not self.timer.expired():
            limit = self.limit
            if self.best and limit - entry.bound > 0.002 * abs(limit):
                limit = entry.bound + share * (limit - entry.bound)
            outcome = run_pass(view, prices, rests, near, limit, self.timer)
            self.timer.count("passes")
            entry.bound = max(entry.bound, outcome.bound)
            if not outcome.complete:
                return
            if not outcome.chains:
                entry.bound = max(entry.bound, limit)
                share = min(1.0, 2 * share)
                if self.best:
                    tighter = view.nodes
                    view, prices = self._narrow(view, prices)
                    kept = np.searchsorted(tighter, view.nodes)
                    near = near[np.ix_(kept, kept)] | view.groups.same.copy()
                    rests = rests_of(view)
                continue
            for _, runs in outcome.chains:
                self.offer(entry.index, runs)
            cost, runs = outcome.chains[0]
            found = evaluate(self.problem, entry.index, runs)
            if found.feasible and found.cost <= cost + EPSILON * abs(cost):
                entry.bound = max(entry.bound, self.cost)
                return
            if not self._remember(view, near, outcome):
                return

    def _possible(self, entry: _Entry) -> Ints | None:
        """Of a large site, the nodes that a better plan through this entry may use, by the plain relaxation."""
        p = self.problem
        if p.node_count <= WIDE:
            return None
        prices = entry.prices or Prices.none(p.node_count)
        share = np.divide(prices.room, p.room, out=np.zeros(len(p.room)), where=p.room > 0)
        cost, hop = p.cost + p.memory[:, None] * share[None, :], p.hop_cost.copy()
        hop[:-1] += prices.segment
        home = p.entries[entry.index]
        shape = (p.block_count + 1, p.node_count)
        arrive, done, begin, leave = (np.empty(shape) for _ in range(4))
        rules = (p.hop_class, p.memory, p.room, p.may_cut, p.may_stay)
        first, last = p.hop_class[0], p.hop_class[p.block_count]
        forward(cost, hop, *rules, hop[first, home], arrive, done)
        finish = np.ascontiguousarray(hop[last, :, home])
        backward(cost, np.ascontiguousarray(hop.transpose(0, 2, 1)), *rules, finish, begin, leave)
        self.timer.count("relaxations", 2)
        constant = float(prices.room.sum()) + prices.segment * p.max_segments
        through = (arrive + begin).min(axis=0) + float(p.entry_cost[entry.index]) - constant
        return np.flatnonzero(through < self.limit)

    def _remember(self, view: View, near: Bools, outcome: Outcome) -> bool:
        """Widen the neighbourhoods along the cheapest chains that overfill or forget a node; whether that changed anything."""
        changed = False
        for _, runs in outcome.chains[:8]:
            local = [(int(np.searchsorted(view.nodes, node)), a, b) for node, a, b in runs]
            taken: dict[int, int] = {}
            for node, a, b in local:
                taken[node] = taken.get(node, 0) + int(self.problem.memory[a:b].sum())
            for node, amount in taken.items():
                visits = [i for i, (n, _, _) in enumerate(local) if n == node]
                # Where a bottleneck counts, forgetting how busy a node is makes a chain too cheap, room or not.
                if amount <= view.room[node] and (self.problem.is_additive or len(visits) == 1):
                    continue
                for other, _, _ in local[visits[0] : visits[-1] + 1]:
                    changed |= not near[other, node]
                    near[other, node] = True
        return changed

    def _widen(self) -> None:
        """Wider and wider beams over the entries that are still open."""
        keep = 4 * POLISH[-1] if self.nodes is None else POLISH[0]
        while not self.timer.expired() and keep <= 256:
            self._beams(keep, 3)
            keep *= 4

    def _beams(self, keep: int, entries: int) -> None:
        """Beams of a width for the most promising entries."""
        for entry in self._open()[:entries]:
            if self.timer.expired():
                return
            whole = view_of(self.problem, entry.index, self.nodes)
            prices = (entry.prices or Prices.none(self.problem.node_count)).of(whole.nodes)
            view, prices = self._narrow(whole, prices)
            self._beam(view, prices, keep, rests_of(view))

    def _solution(self) -> Solution:
        known = min(self.cost, self.cutoff)
        bound = min(known, *(e.bound for e in self.entries if e.bound < self.limit), known)
        if self.best:
            status: Status = "optimal" if bound >= self.limit else "feasible"
            bound = self.cost if status == "optimal" else bound
        else:
            status = "infeasible" if bound == float("inf") else "unknown"
        return Solution(
            status=status,
            entry=self.entry,
            runs=self.runs,
            evaluation=self.best,
            bound=bound,
            work=dict(self.timer.used),
            trail=tuple(self.trail),
        )
