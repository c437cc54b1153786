"""Who the solver is compared with. Each gives ``(cost, bound)`` of its best plan; a broken plan counts as none.

Rules that know nothing of the entry get the one that the solver chose; the exact models choose among all.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from itertools import product
from typing import Any, cast

import numpy as np

from splitinfer.optimizer.baselines import BASELINES, greedy
from splitinfer.optimizer.evaluate import Run, evaluate
from splitinfer.optimizer.problem import Problem

Rival = Callable[[Problem, int, float], tuple[float, float]]
NOTHING = (math.inf, -math.inf)
MOST_PLANS = 200_000


def _cost(problem: Problem, entry: int, runs: tuple[Run, ...] | None) -> float:
    if runs is None or entry < 0:
        return math.inf
    found = evaluate(problem, entry, runs)
    return found.cost if found.feasible else math.inf


def _rule(name: str) -> Rival:
    def rival(problem: Problem, entry: int, _seconds: float) -> tuple[float, float]:
        return _cost(problem, entry, BASELINES[name](problem, max(entry, 0))), -math.inf

    return rival


def brute_force(problem: Problem, _entry: int, _seconds: float) -> tuple[float, float]:
    """Every plan, where there are few enough."""
    if problem.node_count**problem.block_count * len(problem.entries) > MOST_PLANS:
        return NOTHING
    best = math.inf
    for nodes in product(range(problem.node_count), repeat=problem.block_count):
        runs = _merged(list(nodes))
        best = min(best, *(_cost(problem, e, runs) for e in range(len(problem.entries))))
    return best, best


def _merged(nodes: list[int]) -> tuple[Run, ...]:
    runs: list[Run] = []
    for block, node in enumerate(nodes):
        if runs and runs[-1][0] == node:
            runs[-1] = (node, runs[-1][1], block + 1)
        else:
            runs.append((node, block, block + 1))
    return tuple(runs)


def annealing(problem: Problem, entry: int, seconds: float) -> tuple[float, float]:
    """Simulated annealing over block-to-node assignments: shift a cut, change a segment's node, split, merge."""
    rng = random.Random(7)
    start = greedy(problem, max(entry, 0))
    nodes = [0] * problem.block_count
    for node, a, b in start or ((int(problem.entries[max(entry, 0)]), 0, problem.block_count),):
        nodes[a:b] = [node] * (b - a)
    entry = max(entry, 0)

    def value(assigned: list[int]) -> float:
        found = evaluate(problem, entry, _merged(assigned))
        if found.cost == math.inf:
            return 1e9
        return found.cost + 1e4 * len(found.broken)

    now = value(nodes)
    best = now if evaluate(problem, entry, _merged(nodes)).feasible else math.inf
    began, heat = time.perf_counter(), 0.2 * min(now, 100.0)
    while (passed := time.perf_counter() - began) < seconds:
        other = list(nodes)
        a = rng.randrange(problem.block_count)
        b = min(problem.block_count, a + 1 + int(rng.expovariate(0.3)))
        pick = rng.random()
        if pick < 0.4 and a > 0:
            other[a:b] = [other[a - 1]] * (b - a)
        elif pick < 0.7:
            old, new = other[a], rng.randrange(problem.node_count)
            other = [new if node == old else node for node in other]
        else:
            other[a:b] = [rng.randrange(problem.node_count)] * (b - a)
        cost = value(other)
        temperature = heat * (1 - passed / seconds) + 1e-9
        if cost <= now or rng.random() < math.exp(min(0.0, (now - cost) / temperature)):
            nodes, now = other, cost
            if cost < best and evaluate(problem, entry, _merged(nodes)).feasible:
                best = cost
    return best, -math.inf


def highs(problem: Problem, _entry: int, seconds: float) -> tuple[float, float]:
    """A MILP: x[i,v] block on node, y[i,u,v] >= x[i-1,u] + x[i,v] - 1 hop, z[e] entry, memory, segments."""
    import highspy

    p = problem
    blocks, count, entries = p.block_count, p.node_count, len(p.entries)
    h: Any = cast("Any", highspy).Highs()
    h.silent()
    h.setOptionValue("time_limit", seconds)
    h.setOptionValue("threads", 1)
    h.setOptionValue("mip_rel_gap", 1e-7)
    first, last = p.hop_class[0], p.hop_class[blocks]
    z = [h.addBinary(obj=float(p.entry_cost[e])) for e in range(entries)]
    x: list[list[Any]] = [
        [h.addBinary(obj=float(p.cost[i, v])) if np.isfinite(p.cost[i, v]) else None for v in range(count)]
        for i in range(blocks)
    ]
    h.addConstr(sum(z) == 1)
    for i in range(blocks):
        h.addConstr(sum(var for var in x[i] if var is not None) == 1)
    hops: list[Any] = []
    for i in range(1, blocks):
        # A flow between consecutive blocks: tighter than the usual product linearisation.
        flow = {}
        for u in range(count):
            for v in range(count):
                cost = 0.0 if u == v else float(p.hop_cost[p.hop_class[i], u, v])
                if x[i - 1][u] is not None and x[i][v] is not None and np.isfinite(cost):
                    flow[u, v] = h.addVariable(lb=0, ub=1, obj=cost)
        for u in range(count):
            if x[i - 1][u] is not None:
                h.addConstr(sum(f for (a, _), f in flow.items() if a == u) == x[i - 1][u])
        for v in range(count):
            if x[i][v] is not None:
                h.addConstr(sum(f for (_, b), f in flow.items() if b == v) == x[i][v])
        hops += [f for (a, b), f in flow.items() if a != b]
    for at, kind, forward in ((0, first, True), (blocks - 1, last, False)):
        flow = {}
        for e in range(entries):
            for v in range(count):
                home = p.entries[e]
                cost = float(p.hop_cost[kind, home, v] if forward else p.hop_cost[kind, v, home])
                if x[at][v] is not None and np.isfinite(cost):
                    flow[e, v] = h.addVariable(lb=0, ub=1, obj=cost)
        for e in range(entries):
            h.addConstr(sum(f for (a, _), f in flow.items() if a == e) == z[e])
        for v in range(count):
            if x[at][v] is not None:
                h.addConstr(sum(f for (_, b), f in flow.items() if b == v) == x[at][v])
    unit = float(max(p.memory))
    home_of = {int(node): e for e, node in enumerate(p.entries)}
    for v in range(count):
        used = [float(p.memory[i]) / unit * x[i][v] for i in range(blocks) if x[i][v] is not None]
        if v in home_of:
            used.append(p.entry_memory / unit * z[home_of[v]])
        if used:
            h.addConstr(sum(used) <= float(p.room[v]) / unit)
    if hops:
        h.addConstr(sum(hops) <= p.max_segments - 1)
    h.run()
    info = h.getInfo()
    if info.primal_solution_status != 2:
        return math.inf, float(info.mip_dual_bound)
    values = h.getSolution().col_value
    nodes = [
        next(v for v in range(count) if x[i][v] is not None and values[x[i][v].index] > 0.5)
        for i in range(blocks)
    ]
    entry = next(e for e in range(entries) if values[z[e].index] > 0.5)
    return _cost(p, entry, _merged(nodes)), float(info.mip_dual_bound)


def _between(p: Problem, block: int) -> Callable[[int, int], float]:
    """What the hop before a block costs between two nodes; none where it stays."""
    costs = p.hop_cost[p.hop_class[block]]
    return lambda a, b: 0.0 if a == b else float(costs[a, b])


def cp_sat(problem: Problem, _entry: int, seconds: float) -> tuple[float, float]:
    """CP-SAT over the same variables; costs in millionths, since it counts in whole numbers."""
    from ortools.sat.python import cp_model

    p, scale = problem, 1e6
    blocks, count, entries = p.block_count, p.node_count, len(p.entries)
    m = cp_model.CpModel()
    z = [m.new_bool_var(f"z{e}") for e in range(entries)]
    x: list[list[Any]] = [
        [m.new_bool_var(f"x{i},{v}") if np.isfinite(p.cost[i, v]) else None for v in range(count)]
        for i in range(blocks)
    ]
    m.add_exactly_one(z)
    objective: list[Any] = [round(scale * float(p.entry_cost[e])) * z[e] for e in range(entries)]
    hops = []
    for i in range(blocks):
        m.add_exactly_one(var for var in x[i] if var is not None)
        objective += [
            round(scale * float(p.cost[i, v])) * x[i][v] for v in range(count) if x[i][v] is not None
        ]

    def linked(
        left: list[Any], right: list[Any], cost: Callable[[int, int], float], count_hops: bool
    ) -> None:
        for a, one in enumerate(left):
            for b, other in enumerate(right):
                if one is None or other is None:
                    continue
                price = cost(a, b)
                if not np.isfinite(price):
                    m.add_bool_or(one.negated(), other.negated())
                elif price > 0:
                    both = m.new_bool_var("")
                    m.add_bool_or(one.negated(), other.negated(), both)
                    objective.append(round(scale * price) * both)
                    if count_hops:
                        hops.append(both)

    for i in range(1, blocks):
        linked(x[i - 1], x[i], _between(p, i), True)
    linked(z, x[0], lambda e, v: float(p.hop_cost[p.hop_class[0], p.entries[e], v]), False)
    linked(x[-1], z, lambda v, e: float(p.hop_cost[p.hop_class[blocks], v, p.entries[e]]), False)
    home_of = {int(node): e for e, node in enumerate(p.entries)}
    for v in range(count):
        used: list[Any] = [int(p.memory[i]) * x[i][v] for i in range(blocks) if x[i][v] is not None]
        if v in home_of:
            used.append(p.entry_memory * z[home_of[v]])
        m.add(sum(used) <= int(p.room[v]))
    m.add(sum(hops) <= p.max_segments - 1)
    m.minimize(sum(objective))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = 1
    status = solver.solve(m)
    bound = solver.best_objective_bound / scale
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return math.inf, bound
    nodes = [
        next(v for v in range(count) if x[i][v] is not None and solver.value(x[i][v])) for i in range(blocks)
    ]
    entry = next(e for e in range(entries) if solver.value(z[e]))
    return _cost(p, entry, _merged(nodes)), bound


RIVALS: dict[str, Rival] = {
    "brute force": brute_force,
    "HiGHS": highs,
    "CP-SAT": cp_sat,
    "annealing": annealing,
    "one node": _rule("one node"),
    "equal split": _rule("equal split"),
    "memory-proportional": _rule("memory-proportional split"),
    "greedy": _rule("greedy"),
}
