"""Units in memory: tensors of the store copied into torch's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from splitinfer.segment_runtime.engine.port import Array, LoadError
from splitinfer.segment_runtime.engine.torch_arrays import fill
from splitinfer.segment_runtime.engine.torch_memory import carve


class LoadedUnit:
    """A module with its weights, or a single tensor (the token table), and the bytes they take."""

    __slots__ = ("__weakref__", "module", "nbytes", "tensors")

    def __init__(self, tensors: Mapping[str, torch.Tensor], module: nn.Module | None = None) -> None:
        self.tensors = tensors
        self.module = module
        self.nbytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def load_tensors(
    where: str, arrays: Mapping[str, Array], dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    """Copies of ``arrays`` in ``dtype`` on ``device``.

    Raises:
        LoadError: a tensor that is not finite, or not in ``dtype``.
    """
    tensors = carve({name: array.shape for name, array in arrays.items()}, dtype, device)
    for name, tensor in tensors.items():
        fill(tensor, arrays[name])
        if not _finite(tensor):
            kind = str(dtype).removeprefix("torch.")
            raise LoadError(
                f"{where}: tensor {name!r} has values that are not finite in {kind} (NaN or infinite); "
                "the checkpoint is broken, or the dtype is too narrow for it"
            )
    return tensors


def _finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite: one pass, no temporary of the tensor's size (NaN wins a minimum)."""
    if tensor.numel() == 0:
        return True
    low, high = tensor.aminmax()
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))


def check_shapes(where: str, arrays: Mapping[str, Array], module: nn.Module) -> None:
    """Hold tensor names and shapes against a module on the meta device.

    Raises:
        LoadError: naming the tensor that is missing, too much, or of another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for name, shape in expected.items():
        if name not in arrays:
            raise LoadError(f"{where}: tensor {name!r} is missing; import the model again")
        if tuple(arrays[name].shape) != shape:
            raise LoadError(
                f"{where}: tensor {name!r} has shape {tuple(arrays[name].shape)}, config.json asks for {shape}"
            )
    for name in arrays:
        if name not in expected:
            raise LoadError(
                f"{where}: tensor {name!r} has no place in the architecture; import the model again"
            )


def load_module(
    where: str,
    build: Callable[[], nn.Module],
    arrays: Mapping[str, Array],
    dtype: torch.dtype,
    device: torch.device,
) -> LoadedUnit:
    """A module built on the meta device and given ``arrays`` as its weights.

    Raises:
        LoadError: weights that do not match the config or are not finite.
    """
    with torch.device("meta"):
        module = build()
    module.requires_grad_(False).eval()
    check_shapes(where, arrays, module)
    tensors = load_tensors(where, arrays, dtype, device)
    module.load_state_dict(tensors, strict=True, assign=True)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:  # a buffer that is computed, not stored: the recipe must provide it
            raise LoadError(
                f"{where}: {name!r} is computed by transformers, and the torch engine does not know how"
            )
    _shorten_lookups(module)
    return LoadedUnit(tensors, module)


def _shorten_lookups(module: nn.Module) -> None:
    """Have children and weights found as ordinary attributes.

    ``nn.Module.__getattr__`` is asked only after an ordinary lookup failed, some 28 times per block: 3 to 5 % of a decode
    step of small blocks. Nothing is assigned to these modules any more, so the second place cannot go stale.
    """
    for part in module.modules():
        part.__dict__.update(part._modules)
        part.__dict__.update(part._parameters)
