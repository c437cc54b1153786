"""A problem as one entry sees it, over the nodes that are still in question: what the kernels are called with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from splitinfer.optimizer.cost import Floats
from splitinfer.optimizer.evaluate import Run
from splitinfer.optimizer.problem import Bools, Ints, Problem
from splitinfer.optimizer.stays import (
    backward_stays,
    first_begins,
    forward_stays,
    group_nodes,
    latest_ends,
    trace_stays,
)


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Nodes of a view in groups, and how far a stay in each can reach."""

    of: Ints
    members: Ints
    offsets: Ints
    latest: Ints
    begins: Ints
    same: Bools
    """[M, M]: whether two nodes are in one group."""


def groups_of(hop: Floats, memory: Ints, room: Ints) -> Groups:
    """Groups by closeness."""
    of = group_nodes(hop, memory, room)
    count = int(of.max()) + 1
    members = np.argsort(of, kind="stable")
    offsets = np.searchsorted(of[members], np.arange(count + 1)).astype(np.int64)
    latest = latest_ends(memory, room, of, count)
    return Groups(of, members, offsets, latest, first_begins(latest), np.equal.outer(of, of))


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One entry, some nodes. ``nodes`` maps an index here to one of the problem; the last of them is the entry's.

    The entry's node is always in it, since the chain starts and ends there.
    """

    problem: Problem
    entry: int
    nodes: Ints
    home: int
    room: Ints
    cost: Floats
    ring: Floats
    first: Floats
    hop_cost: Floats
    hop_ring: Floats
    hop_first: Floats
    groups: Groups
    scratch: Floats
    """Four tables [M, N + 1, N + 1] that the relaxation overwrites: fresh memory each time would cost more than it."""

    @property
    def entry_cost(self) -> float:
        """Cost of the entry itself."""
        return float(self.problem.entry_cost[self.entry])

    def runs(self, raw: Ints) -> tuple[Run, ...]:
        """Runs of this view, last first, as runs of the problem, first first."""
        return tuple((int(self.nodes[node]), int(start), int(stop)) for node, start, stop in raw[::-1])


def view_of(problem: Problem, entry: int, keep: Ints | None = None) -> View:
    """The view of an entry over the nodes ``keep`` (and its own); None keeps all.

    Entry -1 stands for all of them at once: no node gives room to it, and bounds hold whichever it is.
    """
    p, home = problem, int(problem.entries[entry])
    everything = keep is None
    nodes = np.arange(p.node_count) if keep is None else np.unique(np.append(keep, home))
    room = p.room[nodes].copy()
    place = int(np.searchsorted(nodes, home))
    if entry >= 0:
        room[place] -= p.entry_memory
    # Room that no whole block can use is none: it tightens the bounds, and changes no plan.
    grain = int(np.gcd.reduce(p.memory))
    room = np.maximum(0, room) // grain * grain if grain > 0 else np.maximum(0, room)

    def columns(a: Floats) -> Floats:
        return a if everything else np.ascontiguousarray(a[:, nodes])

    def pairs(a: Floats) -> Floats:
        return a if everything else np.ascontiguousarray(a[:, nodes][:, :, nodes])

    return View(
        problem=p,
        entry=entry,
        nodes=nodes,
        home=place,
        room=room,
        cost=columns(p.cost),
        ring=columns(p.ring),
        first=columns(p.first),
        hop_cost=pairs(p.hop_cost),
        hop_ring=pairs(p.hop_ring),
        hop_first=pairs(p.hop_first),
        groups=groups_of(pairs(p.hop_cost)[0], p.memory, room),
        scratch=np.empty((4, len(nodes), p.block_count + 1, p.block_count + 1)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """The relaxation solved forward: its bound (the entry's cost in it), and the tables behind it, good until the next."""

    bound: float
    arrive: Floats
    done: Floats
    inside: Floats
    within: Floats


def solve_forward(view: View, cost: Floats, hop: Floats, start: Floats | None = None) -> Chain:
    """`stays.forward_stays` from the view's entry, or with ``start`` as the cost of arriving first at each node.

    ``bound`` is infinite where no chain exists.
    """
    p, g = view.problem, view.groups
    arrive = np.empty((p.block_count + 1, len(view.nodes)))
    done = np.empty_like(arrive)
    inside, within = view.scratch[0], view.scratch[1]
    arguments: tuple[Any, ...] = (
        *(cost, hop, p.hop_class, p.memory, view.room, p.may_cut, p.may_stay),
        hop[p.hop_class[0], view.home] if start is None else start,
        np.where(g.same, np.inf, hop),
        *(g.members, g.offsets, g.of, g.begins, arrive, done, inside, within),
    )
    forward_stays(*arguments)
    finish = hop[p.hop_class[p.block_count], :, view.home]
    bound = float((done[p.block_count] + finish).min()) + view.entry_cost
    return Chain(bound, arrive, done, inside, within)


def chain_runs(view: View, cost: Floats, hop: Floats, chain: Chain) -> Ints:
    """The runs behind `solve_forward`, last first."""
    p = view.problem
    runs = np.empty((p.block_count, 3), np.int64)
    finish = np.ascontiguousarray(hop[p.hop_class[p.block_count], :, view.home])
    arguments: tuple[Any, ...] = (
        *(cost, hop, p.hop_class, p.memory, view.room, p.may_stay, finish),
        *(view.groups.of, view.groups.begins, chain.done, chain.inside, chain.within, runs),
    )
    count = trace_stays(*arguments)
    return runs[:count]


@dataclass(frozen=True, slots=True, eq=False)
class Rest:
    """The relaxation solved backward: least cost to the end. Good until the view's next.

    ``begin[s, w]`` of a stay that starts at s on w; ``begin_in[w, s, e]`` of a range in a stay that ends by e;
    ``leave[v, t, e]`` after a range in such a stay.
    """

    begin: Floats
    begin_in: Floats
    leave: Floats


def solve_backward(view: View, cost: Floats, hop: Floats, finish: Floats | None = None) -> Rest:
    """`stays.backward_stays` to the view's entry, or with ``finish`` as the cost of ending at each node."""
    p, g = view.problem, view.groups
    blocks, nodes = p.block_count, len(view.nodes)
    begin, away = np.empty((blocks + 1, nodes)), np.empty((blocks + 1, nodes))
    begin_in, leave = view.scratch[2], view.scratch[3]
    hop_to = np.ascontiguousarray(hop.transpose(0, 2, 1))
    if finish is None:
        finish = np.ascontiguousarray(hop[p.hop_class[blocks], :, view.home])
    arguments: tuple[Any, ...] = (
        *(cost, hop_to, p.hop_class, p.memory, view.room, p.may_cut, p.may_stay, finish),
        np.where(g.same, np.inf, hop_to),
        *(g.members, g.offsets, g.of, g.latest, begin, begin_in, leave, away),
    )
    backward_stays(*arguments)
    return Rest(begin, begin_in, leave)
