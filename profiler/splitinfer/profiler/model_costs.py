"""What each unit of a model costs, whatever it runs on: bytes, FLOPs, KV and activations, from its shapes. Pure.

    parameter bytes      of what a step reads, per dtype: a matrix in few bits has a scale per 32 values of a row (and in
                         ``int4`` an offset), the last 32 of a row filled up; vectors stay float32 with it. With ``int8``
                         and ``int4`` the head and the token table have 8 bits
    FLOPs per token      2 per value of each matrix, and in a block 4 x attention width per token that is looked at
                         (one product with the keys, one with the values; grouped heads share keys, not products)
    tokens looked at     decode: the context. Prefill: all of a chunk's tokens and those before it, for a kernel
                         computes the rectangle and masks it: (prompt + chunk) / 2 in the mean over a prompt's chunks
    KV bytes per token   keys and values in the dtype of the activations
    activation bytes     per token on the wire: the hidden size in that dtype

Held against real engines in tests/runtime/engine/test_model_costs.py: bytes against what a loaded range and a head say they
hold, activations against a frame, FLOPs against torch's own counter. A window of attention is not counted: the FLOPs
of a model that has one are an upper bound past it. So are the bytes of ``int4`` where the source needs no offsets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import get_args

from splitinfer.optimizer.plan import FEW_BITS, ActivationName, DTypeName, activation_of

DTYPES: tuple[DTypeName, ...] = get_args(DTypeName)
VALUE_BYTES: Mapping[ActivationName, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
GROUP = 32
GROUP_BYTES: Mapping[DTypeName, int] = {"int8": 32 + 4, "int4": 16 + 4 + 4}
"""Codes, a scale, and in ``int4`` an offset, of a group of values."""
OUTER_DTYPE: DTypeName = "int8"
"""Of the head and the token table where the blocks have few bits."""

Shapes = Mapping[str, tuple[int, ...]]
"""Of a unit's tensors, by name."""


class ModelCostError(Exception):
    """Shapes that no costs can be told from; the message names the unit."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelShapes:
    """A model as its index describes it. Two with one digest are the same model: the digest covers all of it.

    Attributes:
        digest: of the index, without its name.
        hidden_size: width of the activations.
        kv_values_per_token: of one block.
        tied: the head multiplies by the token table.
        units: ``embed`` (with ``tokens`` [vocabulary, hidden size]), ``block-000`` and so on, ``head``.
    """

    digest: str
    hidden_size: int
    kv_values_per_token: int
    tied: bool
    units: Mapping[str, Shapes]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelShapes) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """One unit in one dtype of activations.

    Attributes:
        parameter_bytes: per dtype of the weights.
        matrix_flops: per token.
        attention_flops: per token and token that it looks at.
        kv_bytes_per_token: 0 for embed and head.
        activation_bytes_per_token: what it hands on.
    """

    parameter_bytes: Mapping[str, int]
    matrix_flops: int
    attention_flops: int
    kv_bytes_per_token: int
    activation_bytes_per_token: int

    def flops_per_token(self, looked_at: float) -> float:
        """FLOPs of a token that looks at so many, itself among them."""
        return self.matrix_flops + self.attention_flops * looked_at


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """All units: embed, the blocks in order, head."""

    embed: UnitCosts
    blocks: tuple[UnitCosts, ...]
    head: UnitCosts


def prefill_looked_at(prompt_tokens: int, chunk_tokens: int) -> float:
    """Tokens that a token of a prompt looks at, in the mean over its chunks."""
    return (prompt_tokens + chunk_tokens) / 2


@lru_cache(maxsize=64)
def model_costs(model: ModelShapes, dtype: DTypeName) -> ModelCosts:
    """Costs with the activations that go with weights of ``dtype``; kept by the model's digest and the dtype.

    Raises:
        ModelCostError: a unit that is not there, or has not the tensors that it must have.
    """
    count = sum(name.startswith("block-") for name in model.units)
    blocks = [f"block-{index:03d}" for index in range(count)]
    if not blocks:
        raise ModelCostError("units: has no block")
    embed, head = (_unit(model, name) for name in ("embed", "head"))
    # A tied head reads the token table in full for each row; it is the embedding's, which is not there twice.
    if model.tied:
        if "tokens" not in embed:
            raise ModelCostError("embed: has no tensor tokens, which a tied head multiplies by")
        head = {**head, "tokens": embed["tokens"]}
        embed = {name: shape for name, shape in embed.items() if name != "tokens"}
    value = VALUE_BYTES[activation_of(dtype)]
    activation = model.hidden_size * value

    def end(shapes: Shapes, flops: int) -> UnitCosts:
        sizes: dict[str, int] = {
            each: _bytes(shapes, OUTER_DTYPE if each in FEW_BITS else each) for each in DTYPES
        }
        return UnitCosts(sizes, flops, 0, 0, activation)

    def block(name: str) -> UnitCosts:
        shapes = _unit(model, name)
        return UnitCosts(
            parameter_bytes={each: _bytes(shapes, each) for each in DTYPES},
            matrix_flops=_matrix_flops(shapes),
            attention_flops=4 * _attention_width(shapes, model.hidden_size),
            kv_bytes_per_token=model.kv_values_per_token * value,
            activation_bytes_per_token=activation,
        )

    return ModelCosts(end(embed, 0), tuple(block(name) for name in blocks), end(head, _matrix_flops(head)))


def _unit(model: ModelShapes, name: str) -> Shapes:
    if name not in model.units:
        raise ModelCostError(f"{name}: no such unit in the index")
    return model.units[name]


def _matrix_flops(shapes: Shapes) -> int:
    return 2 * sum(prod(shape) for shape in shapes.values() if len(shape) == 2)


def _attention_width(shapes: Shapes, hidden_size: int) -> int:
    """Heads x size of a head: the input of the output projection; without one by that name it is the hidden size."""
    widths = [shape[1] for name, shape in shapes.items() if name.endswith("o_proj.weight")]
    return widths[0] if widths else hidden_size


def _bytes(shapes: Shapes, dtype: DTypeName) -> int:
    if dtype not in FEW_BITS:
        return sum(map(prod, shapes.values())) * VALUE_BYTES[activation_of(dtype)]
    return sum(
        shape[0] * -(-shape[1] // GROUP) * GROUP_BYTES[dtype]
        if len(shape) == 2
        else prod(shape) * VALUE_BYTES["float32"]
        for shape in shapes.values()
    )
