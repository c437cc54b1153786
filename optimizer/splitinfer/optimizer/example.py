"""A question small enough to be solved by hand: docs/optimizer.md does, and a test holds its numbers; warm-up solves it."""

from __future__ import annotations

from splitinfer.optimizer.capacity import CapacitySnapshot, LinkCapacity, NodeCapacity
from splitinfer.optimizer.compile import compile_problem
from splitinfer.optimizer.graph import ModelGraph, Unit
from splitinfer.optimizer.problem import Problem
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.values import Known
from splitinfer.optimizer.wanted import Constraints, Weights, Workload

MEGA = 1_000_000


def tiny_question(micro_batches: int = 1) -> Question:
    """Four blocks of 100 MB, a slow trusted box and a fast one that has room for two of them."""

    def unit(name: str, size: int, kv: int) -> Unit:
        return Unit(
            name=name,
            parameter_bytes={"float32": size},
            prefill_flops_per_token=size / 2,
            decode_flops_per_token=size / 2,
            kv_bytes_per_token=kv,
            activation_bytes_per_token=1000,
        )

    def node(name: str, trusted: bool, room: int, bandwidth: float) -> NodeCapacity:
        return NodeCapacity(
            name=name,
            trusted=trusted,
            free_memory_bytes=Known(value=room),
            memory_bandwidth_bytes_per_second=Known(value=bandwidth),
            flops_per_second={"float32": Known(value=1e12)},
            block_overhead_seconds=Known(value=0.0),
            step_overhead_seconds=Known(value=0.001),
            serialisation_bytes_per_second=Known(value=1e9),
            background_utilisation=Known(value=0.0),
        )

    def link(a: str, b: str) -> LinkCapacity:
        return LinkCapacity(
            from_node=a,
            to_node=b,
            round_trip_seconds=Known(value=0.004),
            bandwidth_bytes_per_second=Known(value=1e6),
        )

    blocks = [unit(f"block[{i}]", 100 * MEGA, 0) for i in range(4)]
    return Question(
        graph=ModelGraph(
            name="tiny",
            dtype="float32",
            units=(unit("embed", 50 * MEGA, 0), *blocks, unit("head", 50 * MEGA, 0)),
        ),
        snapshot=CapacitySnapshot(
            nodes=(
                node("box", True, 600 * MEGA, 10e9),
                node("gpu", False, 250 * MEGA, 100e9),
            ),
            links=(link("box", "gpu"), link("gpu", "box")),
        ),
        workload=Workload(
            prompt_tokens=1,
            output_tokens=100,
            concurrency=micro_batches,
            max_context_tokens=200,
            micro_batches=micro_batches,
        ),
        constraints=Constraints(sensitive_blocks=(0,), max_segments=4),
        weights=Weights(latency=100.0, utilisation=0.0, exposure=0.0),
    )


def tiny_problem(bottleneck: bool = False) -> Problem:
    """The same as arrays; with a bottleneck in its cost or without."""
    return compile_problem(tiny_question(2 if bottleneck else 1))
