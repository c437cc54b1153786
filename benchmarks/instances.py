"""Instances from a seed: nodes over ten times apart in speed, links of 0.2 to 80 ms, memory tight or loose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitinfer.optimizer.capacity import CapacitySnapshot, LinkCapacity, NodeCapacity, SiteLink
from splitinfer.optimizer.graph import ModelGraph, Unit, default_sensitivity
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.values import Known
from splitinfer.optimizer.wanted import Constraints, Weights, Workload


@dataclass(frozen=True, slots=True)
class Shape:
    """What an instance looks like.

    Attributes:
        links: ``sites`` places nodes at sites in a plane, with RTT by distance; ``random`` draws each pair by itself.
        memory: ``tight`` leaves about a third more room than the model needs on the best third of the nodes; ``loose``
            lets a node hold half the model and more.
    """

    blocks: int
    nodes: int
    memory: str = "tight"
    links: str = "sites"
    seed: int = 0
    max_segments: int = 24

    def __str__(self) -> str:
        return f"{self.blocks}x{self.nodes} {self.memory} {self.links} seed {self.seed}"


def graph_of(blocks: int, hidden: int = 4096) -> ModelGraph:
    """A decoder like Llama's: 12 h^2 weights per block, grouped keys and values, int4 weights."""
    weights = 12 * hidden * hidden

    def unit(name: str, values: int, kv: int, sensitivity: float) -> Unit:
        return Unit(
            name=name,
            parameter_bytes={"int4": values * 9 // 16},
            prefill_flops_per_token=2.0 * values,
            decode_flops_per_token=2.0 * values,
            kv_bytes_per_token=kv,
            activation_bytes_per_token=4 * hidden,
            sensitivity=sensitivity,
        )

    vocabulary = 32000 * hidden
    body = [unit(f"block[{i}]", weights, 4 * 2 * 1024, default_sensitivity(i, blocks)) for i in range(blocks)]
    return ModelGraph(
        name=f"decoder-{blocks}",
        dtype="int4",
        units=(unit("embed", vocabulary, 0, 0.0), *body, unit("head", vocabulary, 0, 0.0)),
    )


def question_of(shape: Shape) -> Question:
    """The question of a shape; the same shape gives the same question."""
    rng = np.random.default_rng([shape.seed, shape.blocks, shape.nodes, len(shape.memory), len(shape.links)])
    graph = graph_of(shape.blocks)
    work = Workload(concurrency=4, max_context_tokens=2048, prompt_tokens=256, output_tokens=128)
    block = graph.bytes_of(graph.blocks[0]) + work.kv_budget_tokens * graph.blocks[0].kv_bytes_per_token
    ends = graph.bytes_of(graph.embed) + graph.bytes_of(graph.head)
    sites = max(2, shape.nodes // 6)
    nodes = tuple(_node(rng, i, shape, block, ends, sites) for i in range(shape.nodes))
    links, site_links = _links(rng, nodes, sites, shape)
    return Question(
        graph=graph,
        snapshot=CapacitySnapshot(nodes=nodes, links=links, site_links=site_links),
        workload=work,
        constraints=Constraints(
            sensitive_blocks=(0, 1, shape.blocks - 1), max_segments=max(shape.max_segments, 4)
        ),
        weights=Weights(),
    )


def _node(
    rng: np.random.Generator, index: int, shape: Shape, block: int, ends: int, sites: int
) -> NodeCapacity:
    trusted = index % 4 == 0
    if shape.memory == "tight":
        # A plan needs about a third of the nodes, and at least 2.
        mean = 1.3 * shape.blocks / max(2.0, min(shape.nodes / 3, shape.max_segments / 2))
        holds = max(2.0, mean * rng.uniform(0.5, 1.5))
    else:
        holds = shape.blocks * rng.uniform(0.3, 1.2)
    speed = 10 ** rng.uniform(0, 1.2)
    return NodeCapacity(
        name=f"n{index}",
        site=f"s{index % sites}" if shape.links == "sites" else None,
        trusted=trusted,
        free_memory_bytes=Known(value=float(int(holds * block) + (ends if trusted else 0))),
        memory_bandwidth_bytes_per_second=Known(value=15e9 * speed),
        flops_per_second={"int4": Known(value=0.2e12 * speed * 10 ** rng.uniform(0, 0.6))},
        block_overhead_seconds=Known(value=rng.uniform(2e-5, 1e-4)),
        step_overhead_seconds=Known(value=rng.uniform(1e-4, 5e-4)),
        serialisation_bytes_per_second=Known(value=2e9),
        background_utilisation=Known(value=rng.uniform(0, 0.6)),
    )


def _links(
    rng: np.random.Generator, nodes: tuple[NodeCapacity, ...], sites: int, shape: Shape
) -> tuple[tuple[LinkCapacity, ...], tuple[SiteLink, ...]]:
    if shape.links == "random":
        pairs = [(a.name, b.name) for a in nodes for b in nodes if a is not b]
        trips = 2e-4 * 400 ** rng.uniform(0, 1, len(pairs))
        bands = 1.25e7 * 100 ** rng.uniform(0, 1, len(pairs))
        return tuple(
            LinkCapacity(
                from_node=a,
                to_node=b,
                round_trip_seconds=Known(value=float(trip)),
                bandwidth_bytes_per_second=Known(value=float(band)),
            )
            for (a, b), trip, band in zip(pairs, trips, bands, strict=True)
        ), ()
    at = rng.uniform(0, 1, (sites, 2))
    found = []
    for i in range(sites):
        for j in range(sites):
            distance = float(np.hypot(*(at[i] - at[j])))
            trip = 2e-4 if i == j else min(0.08, 5e-4 + 0.055 * distance * float(rng.uniform(1, 1.3)))
            band = 1.25e9 if i == j else 1.25e7 * 10 ** float(rng.uniform(0, 1.5))
            found.append(
                SiteLink(
                    from_site=f"s{i}",
                    to_site=f"s{j}",
                    round_trip_seconds=Known(value=trip),
                    bandwidth_bytes_per_second=Known(value=band),
                )
            )
    return (), tuple(found)
