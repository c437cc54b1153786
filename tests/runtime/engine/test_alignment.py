"""Where tensors begin in memory: on some processors the bits of a product depend on it."""

from __future__ import annotations

import numpy as np
import torch

from splitinfer.segment_runtime.engine.torch_arrays import to_tensor
from splitinfer.segment_runtime.engine.torch_weights import load_tensors

LINE = 64
"""Bytes of a cache line; what torch's own allocator gives."""


def at(offset: int, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Random floats that begin ``offset`` bytes after a cache line, as in a mapped file."""
    count = int(np.prod(shape))
    memory = np.zeros(count * 4 + 2 * LINE, np.uint8)
    begin = -memory.ctypes.data % LINE + offset
    array = memory[begin : begin + count * 4].view(np.float32).reshape(shape)
    array[:] = np.random.default_rng(count).standard_normal(shape, dtype=np.float32)
    return array


def test_weights_begin_at_a_cache_line_wherever_the_file_has_them() -> None:
    """Odd sizes and odd places in the file: every loaded tensor is aligned, and has the file's values."""
    arrays = {"a": at(8, (3, 5)), "b": at(4, (7,)), "c": at(20, (2, 9))}
    loaded = load_tensors("test", arrays, torch.float32, torch.device("cpu"))
    for name, tensor in loaded.items():
        assert tensor.data_ptr() % LINE == 0, name
        assert np.array_equal(tensor.numpy(), arrays[name])


def test_one_row_has_the_same_bits_wherever_its_weights_were() -> None:
    """A decode step's product over weights that were loaded from aligned and unaligned places: the same bits.

    Without the copy they differ on processors without AVX-512 (seen with MKL on AVX2), for one row and weights off by
    4 or 8 bytes.
    """
    row = to_tensor(at(0, (1, 64)))
    results = []
    for offset in (0, 4, 8, 16):
        weights = load_tensors("test", {"w": at(offset, (96, 64))}, torch.float32, torch.device("cpu"))
        results.append(torch.nn.functional.linear(row, weights["w"]))
    assert all(torch.equal(results[0], other) for other in results[1:])
