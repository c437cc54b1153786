"""Which tensor of a checkpoint goes into which unit, with every tensor accounted for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from splitinfer.segment_runtime.store.architectures import Architecture
from splitinfer.segment_runtime.store.checkpoint import TensorInfo
from splitinfer.segment_runtime.store.dimensions import Dimensions
from splitinfer.segment_runtime.store.errors import DamagedSource, UnsupportedSource
from splitinfer.segment_runtime.store.index import block_unit
from splitinfer.segment_runtime.store.shapes import Shape, block_shapes, embed_shapes, head_shapes

UnitPlan = dict[str, str]
"""Name inside the unit -> name in the checkpoint."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Units in the order of the model, and the checkpoint's own LM head where the config says it is tied.

    Attributes:
        units: ``embed``, ``block-000`` ..., ``head``; the head without ``lm_head.weight`` if ``tied``.
        tied: the LM head is the embedding, as far as the names tell.
        tied_copy: checkpoint name of an LM head that should equal the embedding; whoever reads bytes decides.
    """

    units: Mapping[str, UnitPlan]
    tied: bool
    tied_copy: str | None

    def untied(self) -> Layout:
        """The same with the checkpoint's own LM head in the head: its bytes differ from the embedding."""
        if self.tied_copy is None:
            return self
        head = {**self.units["head"], "lm_head.weight": self.tied_copy}
        return Layout({**self.units, "head": head}, tied=False, tied_copy=None)


def lay_out(
    where: str,
    architecture: Architecture,
    config: Mapping[str, Any],
    dims: Dimensions,
    tensors: Mapping[str, TensorInfo],
) -> Layout:
    """Assign every tensor to a unit.

    Args:
        where: the file or folder that errors name.
        architecture: the entry of the allow list.
        config: the checkpoint's config, for options that add tensors.
        dims: the sizes out of that config.
        tensors: of the checkpoint; names may lack the model's outer prefix, as base-model checkpoints do.

    Raises:
        DamagedSource: a tensor that is missing, unexpected, or of another shape than the config says.
        UnsupportedSource: a dtype that the store does not hold.
    """
    expected = _expected(architecture, config, dims)
    found: dict[str, str] = {}
    for name, info in tensors.items():
        full = _full_name(architecture, name)
        if full not in expected and name.endswith(architecture.ignored):
            continue
        if full not in expected:
            raise DamagedSource(
                f"{where}: tensor {name!r} is not one that a {architecture.model_type} model of "
                f"{dims.blocks} blocks has; the config and the weights belong to different models"
            )
        if full in found:
            raise DamagedSource(f"{where}: tensor {name!r} is there twice, also as {found[full]!r}")
        found[full] = name
        _check(where, name, info, expected[full][2])
    head_name = _head_name(architecture)
    missing = [name for name in expected if name not in found and not (name == head_name and dims.tied)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DamagedSource(
            f"{where}: tensor {missing[0]!r}{more} is missing; the checkpoint is not complete"
        )
    units: dict[str, UnitPlan] = {}
    for full, (unit, inside, _shape) in expected.items():
        if not (full == head_name and dims.tied):
            units.setdefault(unit, {})[inside] = found[full]
    return Layout(units, tied=dims.tied, tied_copy=found.get(head_name) if dims.tied else None)


def _expected(
    architecture: Architecture, config: Mapping[str, Any], dims: Dimensions
) -> dict[str, tuple[str, str, Shape]]:
    """Checkpoint name -> (unit, name inside it, shape), in the order of the model."""
    shapes = embed_shapes(architecture, dims)
    expected = {name: ("embed", inside, shapes[inside]) for name, inside in architecture.embed.items()}
    block = block_shapes(architecture.model_type, config, dims)
    for index in range(dims.blocks):
        for inside, shape in block.items():
            expected[f"{architecture.block_prefix}.{index}.{inside}"] = (block_unit(index), inside, shape)
    shapes = head_shapes(architecture, dims)
    return expected | {name: ("head", inside, shapes[inside]) for name, inside in architecture.head.items()}


def _full_name(architecture: Architecture, name: str) -> str:
    """With the outer prefix: checkpoints of the base model (GPT-2's own) leave ``transformer.`` out."""
    outer = architecture.block_prefix.partition(".")[0] + "."
    if name == "lm_head.weight":  # GPT-NeoX calls it embed_out in files, and lm_head in memory
        return _head_name(architecture)
    return name if name.startswith(outer) or name in architecture.head else outer + name


def _head_name(architecture: Architecture) -> str:
    return next(name for name, unit in architecture.head.items() if unit == "lm_head.weight")


def _check(where: str, name: str, info: TensorInfo, shape: Shape) -> None:
    if info.shape != shape:
        raise DamagedSource(
            f"{where}: tensor {name!r} has shape {list(info.shape)}, the config says {list(shape)}"
        )
    if info.dtype is None:
        raise UnsupportedSource(
            f"{where}: tensor {name!r} has dtype {info.code}; the store holds float32, float16 and bfloat16"
        )
