"""Where the blocks of lost nodes go when the entry must act alone, before any better plan reaches it.

The neighbours of a hole grow into it, so that only the lost blocks are loaded and the chain gets no longer. Only
when they have no room are all blocks dealt anew. This is a repair, not an optimum: the operator's next plan is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from splitinfer.optimizer.plan import PlanError, Segment, check_segments


def redistribute(segments: Sequence[Segment], blocks: int, room: Mapping[str, int]) -> tuple[Segment, ...]:
    """Segments over the nodes that are left.

    Args:
        segments: the plan that broke; covers ``[0, blocks)``.
        blocks: blocks of the model.
        room: blocks that each live node has memory for, those it holds now counted in.

    Raises:
        PlanError: the live nodes together have no room for all blocks; says how many are missing.
    """
    capacity = {node: min(free, blocks) for node, free in room.items() if free > 0}
    if sum(capacity.values()) < blocks:
        raise PlanError(
            "nodes",
            f"the nodes left have room for {sum(capacity.values())} of {blocks} blocks "
            f"({', '.join(f'{n}: {c}' for n, c in sorted(capacity.items())) or 'none is left'}); bring a node back, "
            "add one, or lower kv_budget_tokens",
        )
    patched = _grow(segments, blocks, capacity)
    result = patched if patched is not None else _deal(segments, blocks, capacity)
    check_segments(result, blocks)
    return result


def _grow(
    segments: Sequence[Segment], blocks: int, capacity: Mapping[str, int]
) -> tuple[Segment, ...] | None:
    """Let the neighbours grow into each hole, the less loaded first; None where they have no room."""
    kept = [segment for segment in segments if segment.node in capacity]
    if not kept:
        return None
    load: dict[str, int] = {}
    for segment in kept:
        load[segment.node] = load.get(segment.node, 0) + segment.blocks
    edges = [[segment.start, segment.stop] for segment in kept]
    for index in range(len(kept) + 1):
        left = index - 1 if index > 0 else None
        right = index if index < len(kept) else None
        begin = edges[left][1] if left is not None else 0
        end = edges[right][0] if right is not None else blocks
        while begin < end:
            sides = [
                s for s in (left, right) if s is not None and load[kept[s].node] < capacity[kept[s].node]
            ]
            if not sides:
                return None
            side = min(sides, key=lambda s: (load[kept[s].node], s))
            load[kept[side].node] += 1
            if side == left:
                begin += 1
                edges[side][1] = begin
            else:
                end -= 1
                edges[side][0] = end
    grown = [Segment(node=s.node, start=a, stop=b) for s, (a, b) in zip(kept, edges, strict=True)]
    if any(load[node] > capacity[node] for node in load):
        return None
    return _merge(grown)


def _deal(segments: Sequence[Segment], blocks: int, capacity: Mapping[str, int]) -> tuple[Segment, ...]:
    """Deal all blocks anew, one range per node, as even as the room allows; old nodes first, in chain order."""
    order = [node for node in dict.fromkeys(s.node for s in segments) if node in capacity]
    order += sorted(set(capacity) - set(order))
    share = dict.fromkeys(order, 0)
    left = blocks
    while left:
        open_nodes = [node for node in order if share[node] < capacity[node]]
        for node in sorted(open_nodes, key=lambda n: (share[n], order.index(n)))[:left]:
            share[node] += 1
            left -= 1
    result, start = [], 0
    for node in order:
        if share[node]:
            result.append(Segment(node=node, start=start, stop=start + share[node]))
            start += share[node]
    return tuple(result)


def _merge(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Adjacent ranges of one node become one."""
    merged: list[Segment] = []
    for segment in segments:
        if merged and merged[-1].node == segment.node and merged[-1].stop == segment.start:
            merged[-1] = Segment(node=segment.node, start=merged[-1].start, stop=segment.stop)
        else:
            merged.append(segment)
    return tuple(merged)
