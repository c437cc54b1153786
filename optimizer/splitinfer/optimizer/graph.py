"""The model graph: what each unit costs, in bytes and FLOPs, whatever it runs on.

Units in order: ``embed``, ``block[0]`` ... ``block[n-1]``, ``head``. Embed and head always run in the entry; blocks
are what is cut and placed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from splitinfer.optimizer.values import Fraction, Name, NonNegative, OptimizerInputError, Value

MAX_BLOCKS = 1024


class Unit(Value):
    """One unit of the model.

    Sources: bytes from the store index, FLOPs from the shapes (2 per weight and token, attention at the typical
    context on top), held against a real forward by the profiler.
    """

    name: Name
    parameter_bytes: Mapping[str, Annotated[int, Field(ge=0)]]
    """Bytes of its weights in memory, per dtype: ``{"float32": 14164992, "int4": ...}``."""
    prefill_flops_per_token: NonNegative
    decode_flops_per_token: NonNegative
    kv_bytes_per_token: Annotated[int, Field(ge=0)]
    """Keys and values that one token leaves in this unit; 0 for embed and head."""
    activation_bytes_per_token: Annotated[int, Field(ge=0)]
    """What this unit hands on per token, on the wire."""
    sensitivity: Fraction = 0.0
    """How much its activations tell about the prompt, 0 to 1; weighs exposure, forbids nothing."""


class ModelGraph(Value):
    """A model as a chain of units, in the dtype it is to run in."""

    name: Name
    dtype: Name
    units: Annotated[tuple[Unit, ...], Field(min_length=3, max_length=MAX_BLOCKS + 2)]

    def model_post_init(self, _context: object) -> None:
        """The chain is embed, blocks in order, head. Raises OptimizerInputError."""
        names = [unit.name for unit in self.units]
        expected = ["embed", *(f"block[{i}]" for i in range(len(names) - 2)), "head"]
        for index, (name, wanted) in enumerate(zip(names, expected, strict=True)):
            if name != wanted:
                twice = " (it is there already)" if name in names[:index] else ""
                raise OptimizerInputError(f"units[{index}].name", f"{name!r}{twice}; expected {wanted!r}")
            if self.dtype not in self.units[index].parameter_bytes:
                raise OptimizerInputError(
                    f"units[{index}].parameterBytes", f"has no bytes for dtype {self.dtype}; add them"
                )

    @property
    def blocks(self) -> tuple[Unit, ...]:
        """The units that are cut and placed."""
        return self.units[1:-1]

    @property
    def embed(self) -> Unit:
        """The first unit, in the entry."""
        return self.units[0]

    @property
    def head(self) -> Unit:
        """The last unit, in the entry: final norm, LM head, sampler."""
        return self.units[-1]

    def bytes_of(self, unit: Unit) -> int:
        """Bytes of a unit's weights in the graph's dtype."""
        return unit.parameter_bytes[self.dtype]


def default_sensitivity(block: int, blocks: int) -> float:
    """How much the activations of a block are assumed to tell: 1 at both ends, falling linearly to 0 in the middle.

    Inverting hidden states back to the prompt works best on the first blocks, and the last ones are a linear map
    away from the next token. The slope is an assumption, not a measurement: weigh it with ``objective.exposure``.
    """
    if blocks == 1:
        return 1.0
    return abs(2.0 * block - (blocks - 1)) / (blocks - 1)
