"""Dtypes of weights and activations by name, and what they take. Without pydantic, because a probe counts its imports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

DTypeName = Literal["float32", "bfloat16", "float16", "int8", "int4"]
ActivationName = Literal["float32", "bfloat16", "float16"]

FEW_BITS: tuple[DTypeName, ...] = ("int8", "int4")
"""Dtypes of weights only: hidden states and KV are float32 with them."""

_BLOCK_BYTES: Mapping[DTypeName, float] = {
    "float32": 128,
    "bfloat16": 64,
    "float16": 64,
    "int8": 32 + 4,  # and a scale
    "int4": 16 + 4 + 4,  # and a scale and an offset
}
"""Bytes of 32 weights."""


def activation_of(dtype: DTypeName) -> ActivationName:
    """The dtype of hidden states and KV in a plan of ``dtype``."""
    return "float32" if dtype == "int8" or dtype == "int4" else dtype


def weight_bytes(values: int, dtype: DTypeName) -> int:
    """Bytes that ``values`` weights take, rounded up: exact for float dtypes, close for few bits (norms stay float32)."""
    return math.ceil(values * _BLOCK_BYTES[dtype] / 32)
