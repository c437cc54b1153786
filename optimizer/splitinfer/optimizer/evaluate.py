"""What a given plan costs, and which hard constraint it breaks: the one truth that every search is held against.

Plain arithmetic over a `Problem`, a few dozen operations per segment; the searches are fast, this is obvious.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from splitinfer.optimizer.problem import Problem

Run = tuple[int, int, int]
"""``(node, start, stop)``: blocks ``[start, stop)`` on a node, by index."""

TOLERANCE = 1e-9
"""Relative; sums in another order differ by less."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A plan in numbers. Seconds, nodes, fractions; ``cost`` is the weighted sum, ``broken`` what it breaks."""

    cost: float
    tpot_seconds: float
    ttft_seconds: float
    ring_seconds: float
    utilisation: float
    exposure: float
    move_seconds: float
    busy_seconds: dict[int, float]
    """Per node: busy time of one decode step."""
    node_utilisation: dict[int, float]
    """Per node: background and the plan's own share at the workload's pace."""
    broken: tuple[str, ...]

    @property
    def feasible(self) -> bool:
        """No hard constraint is broken."""
        return not self.broken


def evaluate(problem: Problem, entry: int, runs: Sequence[Run]) -> Evaluation:
    """Cost, predictions and broken constraints of ``runs`` with the entry at ``problem.entries[entry]``."""
    p, home = problem, int(problem.entries[entry])
    cost, ring, first = (float(a[entry]) for a in (p.entry_cost, p.entry_ring, p.entry_first))
    used: dict[int, int] = {home: p.entry_memory}
    busy = {home: ring}
    busy_first = {home: first}
    broken: list[str] = []
    link_decode = link_prefill = utilisation = exposure = move = 0.0
    utilisation += float(p.entry_utilisation[entry])
    move += float(p.entry_move[entry])
    at = home
    for index, (node, start, stop) in enumerate(runs):
        kind = p.hop_class[start]
        cost += float(p.hop_cost[kind, at, node])
        ring += float(p.hop_ring[kind, at, node])
        first += float(p.hop_first[kind, at, node])
        link_decode = max(link_decode, float(p.link_decode[kind, at, node]))
        link_prefill = max(link_prefill, float(p.link_prefill[kind, at, node]))
        utilisation += float(p.step_utilisation[node])
        decode = float(p.step_decode[node])
        prefill = float(p.step_prefill[node])
        if index and not p.may_cut[start]:
            broken.append("fixed_cuts")
        for block in range(start, stop):
            cost += float(p.cost[block, node])
            ring += float(p.ring[block, node])
            first += float(p.first[block, node])
            decode += float(p.ring[block, node])
            prefill += float(p.first[block, node])
            utilisation += float(p.utilisation[block, node])
            exposure += float(p.exposure[block, node])
            move += float(p.move[block, node])
            used[node] = used.get(node, 0) + int(p.memory[block])
            if block > start and not p.may_stay[block]:
                broken.append("fixed_cuts")
            if p.cost[block, node] == float("inf"):
                broken.append("placement")
        busy[node] = busy.get(node, 0.0) + decode
        busy_first[node] = busy_first.get(node, 0.0) + prefill
        at = node
    kind = p.hop_class[p.block_count]
    cost += float(p.hop_cost[kind, at, home])
    ring += float(p.hop_ring[kind, at, home])
    first += float(p.hop_first[kind, at, home])
    link_decode = max(link_decode, float(p.link_decode[kind, at, home]))
    link_prefill = max(link_prefill, float(p.link_prefill[kind, at, home]))
    tpot = max(ring, p.micro_batches * max(*busy.values(), link_decode))
    ttft = first + (p.chunks - 1) * max(*busy_first.values(), link_prefill)
    cost += p.latency_weight * ((tpot - ring) + (ttft - first) / p.output_tokens)
    if ring == float("inf"):
        broken.append("links")
    broken += ["memory" for node, bytes_ in used.items() if bytes_ > p.room[node]]
    if len(runs) > p.max_segments:
        broken.append("max_segments")
    if exceeds(tpot, p.tpot_limit):
        broken.append("tpot")
    if exceeds(ttft, p.ttft_limit):
        broken.append("ttft")
    if not _covers(runs, p.block_count):
        broken.append("coverage")
    share = p.micro_batches / p.pace_seconds
    return Evaluation(
        cost=cost,
        tpot_seconds=tpot,
        ttft_seconds=ttft,
        ring_seconds=ring,
        utilisation=utilisation,
        exposure=exposure,
        move_seconds=move,
        busy_seconds=busy,
        node_utilisation={
            node: float(p.background[node] + (1 - p.background[node]) * seconds * share)
            for node, seconds in busy.items()
        },
        broken=tuple(dict.fromkeys(broken)),
    )


def exceeds(value: float, limit: float) -> bool:
    """Whether a sum of floats is over a limit, and not by rounding alone."""
    return value > limit * (1 + TOLERANCE)


def _covers(runs: Sequence[Run], blocks: int) -> bool:
    at, last = 0, -1
    for node, start, stop in runs:
        if start != at or stop <= start or node == last:
            return False
        at, last = stop, node
    return at == blocks
