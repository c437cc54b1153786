"""From a stored model to the model graph that the optimizer plans with. Pure.

Weights of ``int8`` and ``int4`` carry a float32 scale per 32 values; the embedding and the head stay float32 with them, and
so do activations and KV.
"""

from __future__ import annotations

from collections.abc import Mapping

from splitinfer.operator.local.models import ModelFacts
from splitinfer.optimizer.graph import ModelGraph, Unit, default_sensitivity
from splitinfer.optimizer.wanted import Workload

WEIGHT_BYTES: Mapping[str, float] = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "int8": 1.0 + 4 / 32,
    "int4": 0.5 + 4 / 32,
}
"""Bytes of one weight of a block, by dtype."""
COMPUTE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 4, "int4": 4}
"""Bytes of one activation, and of one value of KV."""


def graph_of(model: ModelFacts, dtype: str, work: Workload, sensitive: frozenset[int]) -> ModelGraph:
    """The graph of a stored model.

    FLOPs: 2 per weight and token, and attention on top: 4 x hidden size per token of context that a token looks at.
    """
    blocks = model.blocks
    hidden = model.hidden_size
    compute = COMPUTE_BYTES[dtype]
    embed = model.unit_values.get("embed", 0)
    head = model.unit_values.get("head", 0) + (embed if model.tied else 0)

    def block(index: int) -> Unit:
        values = model.unit_values[f"block-{index:03d}"]
        return Unit(
            name=f"block[{index}]",
            parameter_bytes={name: int(values * size) for name, size in WEIGHT_BYTES.items()},
            prefill_flops_per_token=2.0 * values + 4.0 * hidden * work.prompt_tokens / 2,
            decode_flops_per_token=2.0 * values + 4.0 * hidden * work.typical_context_tokens,
            kv_bytes_per_token=model.kv_values_per_token * compute,
            activation_bytes_per_token=hidden * compute,
            sensitivity=1.0 if index in sensitive else default_sensitivity(index, blocks),
        )

    def end(name: str, values: int, loaded: int) -> Unit:
        return Unit(
            name=name,
            parameter_bytes={
                dtype: loaded * max(int(size), COMPUTE_BYTES[dtype]) for dtype, size in WEIGHT_BYTES.items()
            },
            prefill_flops_per_token=2.0 * values,
            decode_flops_per_token=2.0 * values,
            kv_bytes_per_token=0,
            activation_bytes_per_token=hidden * compute,
        )

    # A tied head is read in full for each row that is sampled; it is the embedding, which is not there twice.
    return ModelGraph(
        name=model.name,
        dtype=dtype,
        units=(
            end("embed", 0, 0 if model.tied else embed),
            *(block(index) for index in range(blocks)),
            end("head", head, head),
        ),
    )
