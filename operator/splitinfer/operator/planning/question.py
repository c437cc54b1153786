"""From a manifest, a stored model and a capacity snapshot to the optimizer's question. Pure."""

from __future__ import annotations

from splitinfer.operator.errors import UserError
from splitinfer.operator.local.models import ModelFacts
from splitinfer.operator.planning.graph import graph_of
from splitinfer.operator.spec.blocks import parse_blocks
from splitinfer.operator.spec.resource import LabelSelector, SplitInference
from splitinfer.optimizer.capacity import CapacitySnapshot, NodeCapacity
from splitinfer.optimizer.plan import DTypeName
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.values import OptimizerInputError
from splitinfer.optimizer.wanted import Constraints, Pin, Weights, Workload

HOST_OVERHEAD_BYTES = 512 << 20
"""Private memory of a host beside weights and KV: Python and torch, as `make bench` measures it, with some air."""
MIN_SESSIONS = 8
"""The entry divides a batch only while each micro-batch keeps so many sessions."""
DEFAULT_PACE_SECONDS = 0.1


def make_question(
    resource: SplitInference,
    model: ModelFacts,
    snapshot: CapacitySnapshot,
    context_tokens: int,
    dtype: DTypeName,
    hard_slo: bool = False,
) -> Question:
    """The question that a manifest asks of a snapshot.

    Args:
        resource: the manifest.
        model: the stored model.
        snapshot: capacity; its ``trusted`` counts where the manifest selects no trusted nodes.
        context_tokens: longest context, as the model allows it.
        dtype: of the weights.
        hard_slo: no plan may be predicted to miss the objectives.

    Raises:
        UserError: a block or node that is not there, by the manifest's field.
    """
    spec = resource.spec
    sensitive = _blocks_of(spec.privacy.sensitive_blocks)
    tpot = spec.slo.tpot_milliseconds if spec.slo else None
    ttft = spec.slo.ttft_milliseconds if spec.slo else None
    prompt = min(spec.workload.prompt_tokens, max(1, context_tokens - 1))
    work = Workload(
        prompt_tokens=prompt,
        output_tokens=max(1, min(spec.workload.output_tokens, context_tokens - prompt)),
        concurrency=spec.workload.concurrency,
        max_context_tokens=context_tokens,
        micro_batches=max(1, min(spec.workload.concurrency // MIN_SESSIONS, spec.placement.max_segments)),
        pace_seconds=tpot / 1000 if tpot else DEFAULT_PACE_SECONDS,
        host_overhead_bytes=HOST_OVERHEAD_BYTES,
        entry_overhead_bytes=HOST_OVERHEAD_BYTES,
    )
    pins = [(parse_blocks(pin.blocks), pin.node) for pin in spec.placement.pins]
    try:
        constraints = Constraints(
            sensitive_blocks=tuple(sorted(sensitive)),
            pins=tuple(Pin(start=start, stop=stop, node=node) for (start, stop), node in pins),
            forbidden_nodes=tuple(
                node.name for node in snapshot.nodes if not _selected(node, spec.placement.nodes)
            ),
            max_segments=spec.placement.max_segments,
            ttft_limit_seconds=ttft / 1000 if ttft and hard_slo else None,
            tpot_limit_seconds=tpot / 1000 if tpot and hard_slo else None,
        )
        constraints.check_against(model.blocks, frozenset(node.name for node in snapshot.nodes))
    except OptimizerInputError as error:
        raise UserError(_field(error.field), error.message) from None
    return Question(
        graph=graph_of(model, dtype, work, sensitive),
        snapshot=_trusting(snapshot, spec.privacy.trusted_nodes),
        workload=work,
        constraints=constraints,
        weights=Weights(
            latency=spec.objective.latency,
            utilisation=spec.objective.utilization,
            exposure=spec.objective.exposure,
            horizon_seconds=spec.objective.horizon_seconds,
        ),
    )


def _blocks_of(ranges: tuple[str, ...]) -> frozenset[int]:
    return frozenset(block for text in ranges for block in range(*parse_blocks(text)))


def _selected(node: NodeCapacity, selector: LabelSelector | None) -> bool:
    return selector is None or all(node.labels.get(k) == v for k, v in selector.match_labels.items())


def _trusting(snapshot: CapacitySnapshot, selector: LabelSelector | None) -> CapacitySnapshot:
    """The snapshot in which exactly the selected nodes are trusted."""
    if selector is None:
        return snapshot
    nodes = tuple(node.model_copy(update={"trusted": _selected(node, selector)}) for node in snapshot.nodes)
    return snapshot.model_copy(update={"nodes": nodes})


def _field(field: str) -> str:
    """A constraint's field in the words of the manifest."""
    if field.startswith("pins"):
        head, _, rest = field.partition(".")
        return f"spec.placement.{head}" + {"stop": ".blocks", "node": ".node"}.get(rest, "")
    return {"sensitiveBlocks": "spec.privacy.sensitiveBlocks"}.get(field, f"spec.{field}")
