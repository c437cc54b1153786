"""From values to arrays: which nodes and links take part, and what everything costs on them.

Vectorised; a site of 1,000 nodes takes some hundred milliseconds, nearly all of it the link matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from splitinfer.optimizer.canonical import canonical
from splitinfer.optimizer.capacity import NodeCapacity, kind_of
from splitinfer.optimizer.chunking import Chunking
from splitinfer.optimizer.cost import (
    Floats,
    NodeSpeeds,
    decode_seconds,
    hop_seconds,
    occupied_seconds,
    prefill_seconds,
)
from splitinfer.optimizer.graph import ModelGraph
from splitinfer.optimizer.links import LinkMatrices, link_matrices
from splitinfer.optimizer.problem import Ineligible, Problem
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.values import Known, Unknown
from splitinfer.optimizer.wanted import Workload


def compile_problem(
    question: Question, chunking: Chunking | None = None, links: LinkMatrices = link_matrices
) -> Problem:
    """The arrays of a question.

    Args:
        question: what to compile.
        chunking: of a prompt; by default that of a chain of one segment.
        links: reads the snapshot's links, for who has a million of them in another form.

    Raises:
        OptimizerInputError: a constraint that names what is not there.
    """
    q, blocks = question, len(question.graph.blocks)
    chunking = chunking or q.workload.chunking(1)
    names = frozenset(node.name for node in q.snapshot.nodes)
    q.constraints.check_against(blocks, names)
    eligible, ineligible = _eligible(q)
    speeds = _speeds(q, eligible)
    round_trip, bandwidth, dead = links(q, eligible)
    decode = decode_seconds(q.graph, q.graph.blocks, speeds, q.workload)
    prefill = prefill_seconds(q.graph, q.graph.blocks, speeds, [float(chunking.tokens)] * blocks)
    hops = _hops(q, speeds, round_trip, bandwidth, chunking.tokens)
    allowed = _allowed(q, eligible)
    w, work = q.weights, q.workload
    decode_share = work.micro_batches / work.pace_seconds
    prefill_share = chunking.count * work.concurrency / (work.output_tokens * work.pace_seconds)
    utilisation = decode * decode_share + prefill * prefill_share
    exposure = _exposure(q, eligible)
    move = _move(q, eligible, bandwidth, speeds)
    cost = (
        w.latency * (decode + prefill / work.output_tokens)
        + w.utilisation * utilisation
        + w.exposure * exposure
        + w.latency * move / w.horizon_seconds
    )
    step = speeds.step_overhead / speeds.free
    step_utilisation = step * (decode_share + prefill_share)
    # A weight of zero times infinity is no number: where there is no link, the cost is infinite whatever the weights.
    linked = np.isfinite(hops.ring)
    seconds = np.where(linked, hops.ring + hops.first / work.output_tokens, 0.0)
    hop_cost = np.where(linked, w.latency * seconds, np.inf)
    hop_cost[:-1] += w.utilisation * step_utilisation[None, None, :]
    problem = Problem(
        nodes=tuple(node.name for node in eligible),
        cost=np.where(allowed, cost, np.inf),
        ring=decode,
        first=prefill,
        memory=_memory(q),
        room=_room(q, eligible),
        hop_class=hops.kinds,
        hop_cost=hop_cost,
        hop_ring=hops.ring,
        hop_first=hops.first,
        link_decode=hops.link_decode,
        link_prefill=hops.link_prefill,
        **_entries(q, eligible, speeds, decode_share, prefill_share),
        may_cut=_cut_flags(q, blocks)[0],
        may_stay=_cut_flags(q, blocks)[1],
        max_segments=q.constraints.max_segments,
        tpot_limit=q.constraints.tpot_limit_seconds or np.inf,
        ttft_limit=q.constraints.ttft_limit_seconds or np.inf,
        micro_batches=work.micro_batches,
        chunks=chunking.count,
        latency_weight=w.latency,
        output_tokens=work.output_tokens,
        exposure=exposure,
        utilisation=utilisation,
        move=move,
        step_decode=step,
        step_prefill=step,
        step_utilisation=step_utilisation,
        concurrency=work.concurrency,
        pace_seconds=work.pace_seconds,
        background=1.0 - speeds.free,
        ineligible=tuple(ineligible),
        dead_links=tuple(dead),
    )
    return canonical(problem)


def _known(reading: Known | Unknown) -> float:
    assert isinstance(reading, Known), "eligible nodes have known readings only"
    return reading.value


def _eligible(q: Question) -> tuple[list[NodeCapacity], list[Ineligible]]:
    eligible, ineligible = [], []
    for node in q.snapshot.nodes:
        if node.name in q.constraints.forbidden_nodes:
            ineligible.append(Ineligible(node.name, "forbidden"))
            continue
        unusable = [
            f"{name} {q.snapshot.why_unusable(reading, q.now, kind_of(name))}"
            for name, reading in node.readings(q.graph.dtype)
            if q.snapshot.usable(reading, q.now, kind_of(name)) is None
        ]
        if unusable:
            more = f" and {len(unusable) - 1} more" if len(unusable) > 1 else ""
            ineligible.append(Ineligible(node.name, f"unknown: {unusable[0]}{more}"))
        else:
            eligible.append(node)
    return eligible, ineligible


def _speeds(q: Question, nodes: list[NodeCapacity]) -> NodeSpeeds:
    def column(name: str) -> Floats:
        return np.array([_known(getattr(node, name)) for node in nodes], dtype=np.float64)

    return NodeSpeeds(
        bandwidth=column("memory_bandwidth_bytes_per_second"),
        flops=np.array([_known(node.flops_per_second[q.graph.dtype]) for node in nodes], dtype=np.float64),
        block_overhead=column("block_overhead_seconds"),
        step_overhead=column("step_overhead_seconds"),
        serialise=column("serialisation_bytes_per_second"),
        free=1.0 - column("background_utilisation"),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Hops:
    kinds: np.ndarray[tuple[int], np.dtype[np.int64]]
    ring: Floats
    first: Floats
    link_decode: Floats
    link_prefill: Floats


def _hops(q: Question, speeds: NodeSpeeds, round_trip: Floats, bandwidth: Floats, chunk_tokens: int) -> _Hops:
    """One matrix per size of activations (most models have one), and one for the return."""
    work = q.workload
    sizes = [unit.activation_bytes_per_token for unit in q.graph.units[:-1]]
    distinct = sorted(set(sizes[:-1]))
    kinds = np.array([*(distinct.index(size) for size in sizes[:-1]), len(distinct)], dtype=np.int64)
    step = speeds.step_overhead / speeds.free
    frames = [(work.rows * size, chunk_tokens * size) for size in distinct]
    frames.append((work.rows * sizes[-1], sizes[-1]))
    ring = np.stack([hop_seconds(decode, round_trip, bandwidth, speeds) for decode, _ in frames])
    first = np.stack([hop_seconds(prefill, round_trip, bandwidth, speeds) for _, prefill in frames])
    ring[:-1] += step[None, None, :]
    first[:-1] += step[None, None, :]
    return _Hops(
        kinds,
        ring,
        first,
        np.stack([occupied_seconds(decode, bandwidth) for decode, _ in frames]),
        np.stack([occupied_seconds(prefill, bandwidth) for _, prefill in frames]),
    )


def _allowed(q: Question, nodes: list[NodeCapacity]) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """``[blocks, nodes]``: trust mask and pins."""
    allowed = np.ones((len(q.graph.blocks), len(nodes)), dtype=np.bool_)
    trusted = np.array([node.trusted for node in nodes], dtype=np.bool_)
    for block in q.constraints.sensitive_blocks:
        allowed[block] &= trusted
    for pin in q.constraints.pins:
        allowed[pin.start : pin.stop] &= np.array([node.name == pin.node for node in nodes], dtype=np.bool_)
    return allowed


def _exposure(q: Question, nodes: list[NodeCapacity]) -> Floats:
    sensitivity = np.array([unit.sensitivity for unit in q.graph.blocks], dtype=np.float64)
    total = sensitivity.sum()
    distrust = np.array([1.0 - node.soft_trust for node in nodes], dtype=np.float64)
    result: Floats = sensitivity[:, None] * distrust[None, :] / (total if total > 0 else 1.0)
    return result


def _move(q: Question, nodes: list[NodeCapacity], bandwidth: Floats, speeds: NodeSpeeds) -> Floats:
    """Seconds to bring each block to each node from where it runs: weights, and KV by copy or by replay."""
    result = np.zeros((len(q.graph.blocks), len(nodes)))
    if q.running is None:
        return result
    running, blocks = q.running, q.graph.blocks
    weights = np.array([q.graph.bytes_of(unit) for unit in blocks], dtype=np.float64)
    kv = np.array([unit.kv_bytes_per_token for unit in blocks], dtype=np.float64) * running.live_tokens
    replay = prefill_seconds(q.graph, blocks, speeds, [float(running.live_tokens)] * len(blocks))
    if not running.live_tokens:
        replay = np.zeros_like(replay)
    index = {node.name: i for i, node in enumerate(nodes)}
    for segment in running.segments:
        source = index.get(segment.node)
        for block in range(segment.start, min(segment.stop, len(blocks))):
            copy = np.full(len(nodes), np.inf)
            if source is not None:
                usable = bandwidth[source] > 0
                copy[usable] = kv[block] / bandwidth[source][usable]
            result[block] = weights[block] / running.load_bytes_per_second + np.minimum(copy, replay[block])
            if source is not None:
                result[block, source] = 0.0
    return result


def _memory(q: Question) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    tokens = q.workload.kv_budget_tokens
    return np.array(
        [q.graph.bytes_of(unit) + tokens * unit.kv_bytes_per_token for unit in q.graph.blocks],
        dtype=np.int64,
    )


def _room(q: Question, nodes: list[NodeCapacity]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    free = [int(_known(node.free_memory_bytes)) for node in nodes]
    return np.array([max(0, value - q.workload.host_overhead_bytes) for value in free], dtype=np.int64)


def entry_bytes(graph: ModelGraph, workload: Workload) -> int:
    """Memory that the entry takes on its node: embed, head and its process."""
    return graph.bytes_of(graph.embed) + graph.bytes_of(graph.head) + workload.entry_overhead_bytes


def _entries(
    q: Question, nodes: list[NodeCapacity], speeds: NodeSpeeds, decode_share: float, prefill_share: float
) -> dict[str, Any]:
    """Where the entry may be, and its own part of cost, ring and first chunk.

    Embedding is a row per token and takes next to nothing; the head reads its whole matrix for the rows it samples.
    """
    need, work = entry_bytes(q.graph, q.workload), q.workload
    free = [int(_known(node.free_memory_bytes)) for node in nodes]
    at = [
        i
        for i, node in enumerate(nodes)
        if node.trusted and free[i] >= need and q.constraints.entry_node in (None, node.name)
    ]
    step = speeds.step_overhead / speeds.free
    ring = (decode_seconds(q.graph, [q.graph.head], speeds, work)[0] + step)[at]
    first = (prefill_seconds(q.graph, [q.graph.head], speeds, [1.0])[0] + step)[at]
    utilisation = ring * decode_share + first * prefill_share
    move = np.zeros(len(at))
    if q.running is not None:
        away = np.array([nodes[i].name != q.running.entry for i in at], dtype=np.bool_)
        weights = q.graph.bytes_of(q.graph.embed) + q.graph.bytes_of(q.graph.head)
        move = np.where(away, weights / q.running.load_bytes_per_second, 0.0)
    latency = q.weights.latency * (ring + first / work.output_tokens + move / q.weights.horizon_seconds)
    return {
        "entry_move": move,
        "entries": np.array(at, dtype=np.int64),
        "entry_ring": ring,
        "entry_first": first,
        "entry_utilisation": utilisation,
        "entry_cost": latency + q.weights.utilisation * utilisation,
        "entry_memory": need,
    }


def _cut_flags(
    q: Question, blocks: int
) -> tuple[np.ndarray[tuple[int], np.dtype[np.bool_]], np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    cut, stay = np.ones(blocks + 1, dtype=np.bool_), np.ones(blocks + 1, dtype=np.bool_)
    if q.constraints.fixed_cuts is not None:
        cut[1:blocks] = False
        for at in q.constraints.fixed_cuts:
            cut[at], stay[at] = True, False
    return cut, stay
