"""Small random questions, and every plan that they have: what the solver is held against."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import hypothesis.strategies as st

from splitinfer.optimizer.capacity import CapacitySnapshot, LinkCapacity, NodeCapacity
from splitinfer.optimizer.evaluate import Evaluation, Run, evaluate
from splitinfer.optimizer.graph import ModelGraph, Unit
from splitinfer.optimizer.plan import Segment
from splitinfer.optimizer.problem import Problem
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.values import Known, Unknown
from splitinfer.optimizer.wanted import Constraints, Pin, RunningPlan, Weights, Workload


def every_plan(problem: Problem) -> Iterator[tuple[int, tuple[Run, ...], Evaluation]]:
    """Every assignment of blocks to nodes, for every entry: M^N E of them."""
    for assignment in product(range(problem.node_count), repeat=problem.block_count):
        runs: list[Run] = []
        for block, node in enumerate(assignment):
            if runs and runs[-1][0] == node:
                runs[-1] = (node, runs[-1][1], block + 1)
            else:
                runs.append((node, block, block + 1))
        for entry in range(len(problem.entries)):
            yield entry, tuple(runs), evaluate(problem, entry, runs)


def brute_force(problem: Problem) -> float:
    """The least cost of any feasible plan; infinite where there is none."""
    return min((e.cost for _, _, e in every_plan(problem) if e.feasible), default=math.inf)


@st.composite
def questions(draw: st.DrawFn, max_blocks: int = 5, max_nodes: int = 4, plain: bool = False) -> Question:
    """A question of every kind: each constraint there or not and often at its edge, each weight zero now and then."""
    blocks = draw(st.integers(1, max_blocks))
    nodes = draw(st.integers(1, max_nodes))
    names = [f"n{i}" for i in range(nodes)]
    same_blocks = draw(st.booleans())
    sizes = [draw(st.integers(1, 5)) for _ in range(1 if same_blocks else blocks)] * (
        blocks if same_blocks else 1
    )

    def unit(name: str, size: int, kv: int, act: int) -> Unit:
        return Unit(
            name=name,
            parameter_bytes={"int8": size * 100},
            prefill_flops_per_token=float(size * 10),
            decode_flops_per_token=float(size * 8),
            kv_bytes_per_token=kv,
            activation_bytes_per_token=act,
            sensitivity=draw(st.sampled_from([0.0, 0.5, 1.0])),
        )

    kv = draw(st.sampled_from([0, 1]))
    acts = [draw(st.sampled_from([10, 10, 10, 40])) for _ in range(blocks + 1)]
    body = [unit(f"block[{i}]", sizes[i], kv, acts[i + 1]) for i in range(blocks)]
    graph = ModelGraph(
        name="m", dtype="int8", units=(unit("embed", 1, 0, acts[0]), *body, unit("head", 1, 0, 1))
    )
    work = Workload(
        prompt_tokens=draw(st.sampled_from([1, 4, 9])),
        output_tokens=draw(st.sampled_from([1, 10])),
        concurrency=draw(st.sampled_from([1, 2, 4])),
        max_context_tokens=10,
        micro_batches=1 if plain else draw(st.sampled_from([1, 1, 2])),
        prefill_chunk_tokens=512 if plain else draw(st.sampled_from([3, 512])),
        least_chunk_tokens=128 if plain else draw(st.sampled_from([1, 2, 128])),
        host_overhead_bytes=draw(st.sampled_from([0, 50])),
    )
    needs = [graph.bytes_of(u) + work.kv_budget_tokens * u.kv_bytes_per_token for u in graph.blocks]
    snapshot = CapacitySnapshot(
        nodes=tuple(_node(draw, name, needs, work) for name in names),
        links=tuple(_link(draw, a, b) for a in names for b in names if a != b),
    )
    sensitive = tuple(b for b in range(blocks) if draw(st.integers(0, 4)) == 0)
    constraints = Constraints(
        sensitive_blocks=sensitive,
        pins=_pins(draw, blocks, names),
        forbidden_nodes=tuple(n for n in names if draw(st.integers(0, 9)) == 0),
        max_segments=draw(st.sampled_from([1, 2, 3, 8])),
        minimum_bandwidth_bytes_per_second=draw(st.sampled_from([0.0, 1000.0])),
        ttft_limit_seconds=draw(st.sampled_from([None, None, 0.5, 2.0])),
        tpot_limit_seconds=draw(st.sampled_from([None, None, 0.3, 1.0])),
        fixed_cuts=None
        if plain or blocks == 1 or draw(st.integers(0, 4))
        else tuple(sorted(draw(st.sets(st.integers(1, blocks - 1), max_size=3)))),
    )
    weights = Weights(
        latency=draw(st.sampled_from([0.0, 1.0, 100.0])),
        utilisation=draw(st.sampled_from([0.0, 1.0])),
        exposure=draw(st.sampled_from([0.0, 1.0])),
        horizon_seconds=draw(st.sampled_from([1.0, 600.0])),
    )
    running = None
    if not plain and draw(st.integers(0, 3)) == 0:
        cut = draw(st.integers(0, blocks - 1))
        one, other = draw(st.sampled_from(names)), draw(st.sampled_from([*names, "gone"]))
        parts = [(one, 0, cut), (other, cut, blocks)] if cut else [(one, 0, blocks)]
        running = RunningPlan(
            entry=names[0],
            segments=tuple(Segment(node=n, start=a, stop=b) for n, a, b in parts),
            live_tokens=draw(st.sampled_from([0, 20])),
            load_bytes_per_second=1000.0,
        )
    return Question(graph, snapshot, work, constraints, weights, running)


def _node(draw: st.DrawFn, name: str, needs: list[int], work: Workload) -> NodeCapacity:
    """Room is drawn from what some of the blocks need exactly, a byte less, or plenty."""
    count = draw(st.integers(0, len(needs)))
    room = sum(needs[:count]) + work.host_overhead_bytes + draw(st.sampled_from([-1, 0, 0, 200, 10_000]))
    speed = draw(st.sampled_from([1.0, 3.0, 20.0]))
    unknown = draw(st.integers(0, 14)) == 0
    return NodeCapacity(
        name=name,
        trusted=draw(st.booleans()),
        trust=draw(st.sampled_from([None, None, 0.5])),
        free_memory_bytes=Known(value=float(max(0, room))),
        memory_bandwidth_bytes_per_second=Unknown() if unknown else Known(value=2000.0 * speed),
        flops_per_second={"int8": Known(value=1000.0 * speed)},
        block_overhead_seconds=Known(value=draw(st.sampled_from([0.0, 0.01]))),
        step_overhead_seconds=Known(value=draw(st.sampled_from([0.0, 0.02]))),
        serialisation_bytes_per_second=Known(value=1e5),
        background_utilisation=Known(value=draw(st.sampled_from([0.0, 0.5]))),
    )


def _link(draw: st.DrawFn, a: str, b: str) -> LinkCapacity:
    unknown = draw(st.integers(0, 14)) == 0
    return LinkCapacity(
        from_node=a,
        to_node=b,
        round_trip_seconds=Unknown() if unknown else Known(value=draw(st.sampled_from([0.0, 0.02, 0.3]))),
        bandwidth_bytes_per_second=Known(value=draw(st.sampled_from([500.0, 1000.0, 1e5]))),
    )


def _pins(draw: st.DrawFn, blocks: int, names: list[str]) -> tuple[Pin, ...]:
    if draw(st.integers(0, 3)):
        return ()
    start = draw(st.integers(0, blocks - 1))
    return (Pin(start=start, stop=draw(st.integers(start + 1, blocks)), node=draw(st.sampled_from(names))),)
