"""Where the blocks of lost nodes go when the entry must act alone, before any better plan reaches it.

The neighbours of a hole grow into it, so that only the lost blocks are loaded and the chain gets no longer. Only
when they have no room are all blocks dealt anew. This is a repair, not an optimum: the operator's next plan is.
A sensitive block goes to a trusted node or nowhere: then there is no repair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from splitinfer.optimizer.plan import PlanError, Segment, check_privacy, check_segments
from splitinfer.optimizer.privacy import Privacy

EVERYWHERE = Privacy()
"""No block is sensitive."""


def redistribute(
    segments: Sequence[Segment], blocks: int, room: Mapping[str, int], privacy: Privacy = EVERYWHERE
) -> tuple[Segment, ...]:
    """Segments over the nodes that are left.

    Args:
        segments: the plan that broke; covers ``[0, blocks)``.
        blocks: blocks of the model.
        room: blocks that each live node has memory for, those it holds now counted in.
        privacy: of the plan.

    Raises:
        PlanError: the live nodes together have no room for all blocks, or the trusted ones for the sensitive; says how
            many are missing.
    """
    capacity = {node: min(free, blocks) for node, free in room.items() if free > 0}
    if sum(capacity.values()) < blocks:
        raise PlanError(
            "nodes",
            f"the nodes left have room for {sum(capacity.values())} of {blocks} blocks "
            f"({', '.join(f'{n}: {c}' for n, c in sorted(capacity.items())) or 'none is left'}); bring a node back, "
            "add one, or lower kv_budget_tokens",
        )
    patched = _grow(segments, blocks, capacity, privacy)
    result = patched if patched is not None else _deal(segments, blocks, capacity, privacy)
    check_segments(result, blocks)
    check_privacy(result, privacy)
    return result


def _grow(
    segments: Sequence[Segment], blocks: int, capacity: Mapping[str, int], privacy: Privacy
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
                side
                for side, block in ((left, begin), (right, end - 1))
                if side is not None
                and load[kept[side].node] < capacity[kept[side].node]
                and privacy.may(kept[side].node, block)
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


def _deal(
    segments: Sequence[Segment], blocks: int, capacity: Mapping[str, int], privacy: Privacy
) -> tuple[Segment, ...]:
    """Deal all blocks anew as even as the room allows; old nodes first, in chain order.

    Stretch by stretch, a node having one range in each; the sensitive ones choose first, for they have less choice.
    """
    order = [node for node in dict.fromkeys(s.node for s in segments) if node in capacity]
    order += sorted(set(capacity) - set(order))
    left = dict(capacity)
    result: list[Segment] = []
    for start, stop, sensitive in sorted(privacy.stretches(blocks), key=lambda s: (not s[2], s[0])):
        nodes = [node for node in order if not sensitive or node in privacy.trusted_nodes]
        if (free := sum(left[node] for node in nodes)) < stop - start:
            raise PlanError(
                "nodes",
                f"the trusted nodes left have room for {free} of the {stop - start} sensitive blocks from {start} on; "
                "bring one back, add one, or lower kv_budget_tokens",
            )
        at = start
        for node, count in _level(stop - start, nodes, left).items():
            if count:
                result.append(Segment(node=node, start=at, stop=at + count))
                at += count
                left[node] -= count
    return _merge(sorted(result, key=lambda s: s.start))


def _level(count: int, nodes: Sequence[str], room: Mapping[str, int]) -> dict[str, int]:
    """``count`` blocks over nodes that have room for them, as even as that allows."""
    share = dict.fromkeys(nodes, 0)
    while count:
        open_nodes = [node for node in nodes if share[node] < room[node]]
        for node in sorted(open_nodes, key=lambda n: (share[n], nodes.index(n)))[:count]:
            share[node] += 1
            count -= 1
    return share


def _merge(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Adjacent ranges of one node become one."""
    merged: list[Segment] = []
    for segment in segments:
        if merged and merged[-1].node == segment.node and merged[-1].stop == segment.start:
            merged[-1] = Segment(node=segment.node, start=merged[-1].start, stop=segment.stop)
        else:
            merged.append(segment)
    return tuple(merged)
