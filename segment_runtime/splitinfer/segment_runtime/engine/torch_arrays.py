"""Between numpy arrays and tensors, with the bytes of bfloat16 kept as they are.

Tensors own memory that torch allocated, never that of a file or a message: kernels may take another path for
another alignment, and the last bits of a sum depend on the path.
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import torch

from splitinfer.segment_runtime.engine.port import Array, UnsupportedModel

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of a name of the port. Raises UnsupportedModel, naming those there are."""
    try:
        return TORCH_DTYPES[name]
    except KeyError:
        raise UnsupportedModel(
            f"dtype: the torch engine has no {name!r}; it has {', '.join(TORCH_DTYPES)}"
        ) from None


def to_tensor(array: Array) -> torch.Tensor:
    """A CPU tensor with a copy of ``array``; the array may be read-only and unaligned."""
    tensor = torch.empty(array.shape, dtype=torch_dtype(str(array.dtype)))
    np.copyto(to_array(tensor), array)
    return tensor


def fill(tensor: torch.Tensor, array: Array) -> None:
    """Copy ``array`` into a tensor of its shape, cast to the tensor's dtype as torch casts."""
    if tensor.device.type == "cpu" and tensor.dtype == torch_dtype(str(array.dtype)):
        np.copyto(to_array(tensor), array)
    else:
        tensor.copy_(to_tensor(array))


def to_array(tensor: torch.Tensor) -> Array:
    """A view on a contiguous CPU tensor."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(_BFLOAT16)
    array: Array = tensor.numpy()
    return array
