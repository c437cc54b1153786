"""From a stored model to the model graph that the optimizer plans with. Pure.

Bytes are those that a plan and a host count with (`splitinfer.optimizer.plan.weight_bytes`). With ``int8`` and ``int4``
activations and KV are float32, and the embedding and the head are counted so too: an upper bound of what the entry takes.
"""

from __future__ import annotations

from typing import get_args

from splitinfer.operator.local.models import ModelFacts
from splitinfer.optimizer.graph import ModelGraph, Unit, default_sensitivity
from splitinfer.optimizer.plan import DTypeName, activation_of, weight_bytes
from splitinfer.optimizer.wanted import Workload

DTYPES: tuple[DTypeName, ...] = get_args(DTypeName)


def graph_of(model: ModelFacts, dtype: DTypeName, work: Workload, sensitive: frozenset[int]) -> ModelGraph:
    """The graph of a stored model.

    FLOPs: 2 per weight and token, and attention on top: 4 x hidden size per token of context that a token looks at.
    """
    blocks = model.blocks
    hidden = model.hidden_size
    compute = weight_bytes(1, activation_of(dtype))  # of one activation, and one value of KV
    embed = model.unit_values.get("embed", 0)
    head = model.unit_values.get("head", 0) + (embed if model.tied else 0)

    def block(index: int) -> Unit:
        values = model.unit_values[f"block-{index:03d}"]
        return Unit(
            name=f"block[{index}]",
            parameter_bytes={name: weight_bytes(values, name) for name in DTYPES},
            prefill_flops_per_token=2.0 * values + 4.0 * hidden * work.prompt_tokens / 2,
            decode_flops_per_token=2.0 * values + 4.0 * hidden * work.typical_context_tokens,
            kv_bytes_per_token=model.kv_values_per_token * compute,
            activation_bytes_per_token=hidden * compute,
            sensitivity=1.0 if index in sensitive else default_sensitivity(index, blocks),
        )

    def end(name: str, values: int, loaded: int) -> Unit:
        return Unit(
            name=name,
            parameter_bytes={name: weight_bytes(loaded, activation_of(name)) for name in DTYPES},
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
