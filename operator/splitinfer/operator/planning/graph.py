"""From a stored model to the model graph that the optimizer plans with. Pure.

What each unit costs is the profiler's to say (`splitinfer.profiler.model_costs`); here it meets the workload and privacy.
"""

from __future__ import annotations

from splitinfer.operator.local.models import ModelFacts
from splitinfer.optimizer.graph import ModelGraph, Unit, default_sensitivity
from splitinfer.optimizer.plan import DTypeName
from splitinfer.optimizer.wanted import Workload
from splitinfer.profiler.model_costs import ModelShapes, UnitCosts, model_costs, prefill_looked_at


def graph_of(model: ModelFacts, dtype: DTypeName, work: Workload, sensitive: frozenset[int]) -> ModelGraph:
    """The graph of a stored model.

    Raises:
        ModelCostError: an index without a unit that every model has.
    """
    costs = model_costs(
        ModelShapes(
            digest=model.digest,
            hidden_size=model.hidden_size,
            kv_values_per_token=model.kv_values_per_token,
            tied=model.tied,
            units=model.shapes,
        ),
        dtype,
    )

    # With more segments a prompt goes in smaller chunks and looks at a few tokens less: an upper bound for those.
    looked_at = prefill_looked_at(work.prompt_tokens, work.chunking(1).tokens)

    def unit(name: str, found: UnitCosts, sensitivity: float = 0.0) -> Unit:
        return Unit(
            name=name,
            parameter_bytes=found.parameter_bytes,
            prefill_flops_per_token=found.flops_per_token(looked_at),
            decode_flops_per_token=found.flops_per_token(work.typical_context_tokens),
            kv_bytes_per_token=found.kv_bytes_per_token,
            activation_bytes_per_token=found.activation_bytes_per_token,
            sensitivity=sensitivity,
        )

    blocks = len(costs.blocks)
    return ModelGraph(
        name=model.name,
        dtype=dtype,
        units=(
            unit("embed", costs.embed),
            *(
                unit(f"block[{i}]", each, 1.0 if i in sensitive else default_sensitivity(i, blocks))
                for i, each in enumerate(costs.blocks)
            ),
            unit("head", costs.head),
        ),
    )
