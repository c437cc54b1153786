"""The weights of one unit as the graphs take them: float matrices as the store has them, or few bits.

Holds every tensor of a unit against what the config asks for, by name and shape, before a graph is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinfer.segment_runtime.engine.onnx_recipes import Recipe
from splitinfer.segment_runtime.engine.port import LoadError, UnsupportedModel
from splitinfer.segment_runtime.store.converted import BITS, converted, is_matrix
from splitinfer.segment_runtime.store.index import block_unit
from splitinfer.segment_runtime.store.quantise import FewBits
from splitinfer.segment_runtime.store.reader import StoredModel
from splitinfer.segment_runtime.store.shapes import block_shapes

Floats = NDArray[np.float32]
DTYPES = ("float32", *BITS)


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer ``[out, in]``: either a float matrix or one of few bits; ``bias`` ``[out]`` or None."""

    matrix: Floats | None
    few: FewBits | None
    bias: Floats | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(part.nbytes for part in (self.matrix, self.few, self.bias) if part is not None)


def stacked(linears: Sequence[Linear]) -> Linear | None:
    """Layers of one source as one layer ``[sum of out, in]``; None unless all are of few bits.

    A graph of few bits has more, and shorter, nodes than one of floats, so a node less counts. Each output is the
    product of its own row, whichever rows are below it.
    """
    few = [linear.few for linear in linears if linear.few is not None]
    if len(few) < len(linears):
        return None
    first, offsets, bias = few[0], None, None
    if any(part.offsets is not None for part in few):
        offsets = np.concatenate(
            [
                np.zeros(part.codes.shape[:2], np.float32) if part.offsets is None else part.offsets
                for part in few
            ]
        )
    if any(linear.bias is not None for linear in linears):
        bias = np.concatenate(
            [
                np.zeros(part.rows, np.float32) if linear.bias is None else linear.bias
                for part, linear in zip(few, linears, strict=True)
            ]
        )
    whole = FewBits(
        rows=sum(part.rows for part in few),
        columns=first.columns,
        bits=first.bits,
        codes=np.concatenate([part.codes for part in few]),
        scales=np.concatenate([part.scales for part in few]),
        offsets=offsets,
        exact=all(part.exact for part in few),
    )
    return Linear(None, whole, bias)


@dataclass(frozen=True, slots=True)
class Weights:
    """One block: its linear layers and norms, by the store's names without ``.weight``."""

    linears: Mapping[str, Linear]
    norms: Mapping[str, Floats]

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(w.nbytes for w in self.linears.values()) + sum(n.nbytes for n in self.norms.values())


def check_dtype(dtype: str) -> None:
    """Raise UnsupportedModel, naming those there are, unless the engine has it."""
    if dtype not in DTYPES:
        raise UnsupportedModel(f"dtype: the onnx engine has no {dtype!r}; it has {', '.join(DTYPES)}")


def block_weights(model: StoredModel, recipe: Recipe, block: int, dtype: str) -> Weights:
    """The weights of one block.

    Raises:
        LoadError: tensors that are not those of the config, or not finite.
        StoreError: a damaged unit.
    """
    unit = block_unit(block)
    where = f"{model.name}: {unit}"
    # Few bits first: when the cache has them, the matrices of the unit itself are never touched.
    few = converted(model, unit, dtype, is_matrix).matrices if dtype in BITS else {}
    tensors = model.read_unit(unit)
    _check_shapes(where, tensors, block_shapes(recipe.model_type, model.config, recipe.dims))
    linears: dict[str, Linear] = {}
    norms: dict[str, Floats] = {}
    for name, array in tensors.items():
        layer = name.removesuffix(".weight")
        if name.endswith(".bias"):
            continue
        if array.ndim == 2:
            bias = tensors.get(f"{layer}.bias")
            matrix = None if name in few else floats(where, name, array)
            linears[layer] = Linear(
                matrix, few.get(name), None if bias is None else floats(where, name, bias)
            )
        else:
            norms[layer] = floats(where, name, array) + np.float32(recipe.family.norm_offset)
    return Weights(linears, norms)


def head_weights(model: StoredModel, recipe: Recipe, dtype: str) -> tuple[Floats, Linear]:
    """Final norm ``[hidden]`` and LM head ``[vocab, hidden]``, which is the token table where they are tied."""
    where = f"{model.name}: head"
    norm = floats(where, "norm.weight", model.read_unit("head")["norm.weight"])
    unit, name = ("embed", "tokens") if model.index.tied_embeddings else ("head", "lm_head.weight")
    if dtype in BITS:
        weight = Linear(None, converted(model, unit, dtype, is_matrix).matrices[name])
    else:
        weight = Linear(floats(f"{model.name}: {unit}", name, model.read_unit(unit)[name]), None)
    return norm + np.float32(recipe.family.norm_offset), weight


def floats(where: str, name: str, array: NDArray[Any]) -> Floats:
    """Float32, as it lies in the file where that is what it is. Raises LoadError for NaN and infinity."""
    found = np.ascontiguousarray(array, np.float32)
    if found.size and not (np.isfinite(found.min()) and np.isfinite(found.max())):
        raise LoadError(
            f"{where}: tensor {name!r} has values that are not finite in float32 (NaN or infinite); the checkpoint is "
            "broken: import the model again"
        )
    return found


def _check_shapes(
    where: str, tensors: Mapping[str, NDArray[Any]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    for name, shape in expected.items():
        if name not in tensors:
            raise LoadError(f"{where}: tensor {name!r} is missing; import the model again")
        if tensors[name].shape != shape:
            raise LoadError(
                f"{where}: tensor {name!r} has shape {tensors[name].shape}, config.json asks for {shape}"
            )
    for name in tensors:
        if name not in expected:
            raise LoadError(
                f"{where}: tensor {name!r} has no place in the architecture; import the model again"
            )
