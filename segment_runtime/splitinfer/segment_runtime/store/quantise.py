"""Matrices in few bits: codes, scales and zero points per block of 32 inputs. Pure numpy.

A value is ``scale * (code - zero)``. Before anything is rounded, a matrix is held against that form: what a quantised
source (GGUF's Q4_0, Q8_0) dequantises to has it exactly, and is repacked without being quantised a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = 1
"""Of the codes that this module makes: another number makes caches of older ones stale."""
BLOCK = 32
_ROWS_AT_ONCE = 1 << 21
"""Values that are worked on at once, so that a conversion holds megabytes and not a matrix several times."""

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class FewBits:
    """A matrix ``[rows, columns]`` of ``bits`` per value.

    Attributes:
        codes: ``[rows, blocks, 32 * bits / 8]``, in 4 bits the earlier value in the lower half.
        scales: ``[rows * blocks]``.
        zeros: the code of 0.0 of each block, ``[rows * ceil(blocks * bits / 8)]``; None: the middle, 8 or 128.
        exact: every value is that of the source, to the last bit.
    """

    rows: int
    columns: int
    bits: int
    codes: Bytes
    scales: Floats
    zeros: Bytes | None
    exact: bool
    block: int = BLOCK

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes)

    def values(self, rows: slice | NDArray[np.int64] = slice(None)) -> Floats:
        """Float32 ``[rows, columns]`` of some rows."""
        blocks = self.codes.shape[1]
        codes = unpack(self.codes[rows], self.bits)  # [rows, blocks, 32]
        scales = self.scales.reshape(self.rows, blocks)[rows]
        if self.zeros is None:
            zeros: Any = np.float32(1 << (self.bits - 1))
        else:
            packed = self.zeros.reshape(self.rows, -1)[rows]
            zeros = unpack(packed, self.bits)[:, :blocks, None].astype(np.float32)
        values = (codes.astype(np.float32) - zeros) * scales[..., None]
        return np.ascontiguousarray(values.reshape(len(codes), blocks * self.block)[:, : self.columns])


def quantise(matrix: NDArray[Any], bits: int) -> FewBits:
    """A matrix ``[rows, columns]`` in 4 or 8 bits: repacked where that is exact, else rounded.

    4 bits have a zero point of their own per block, 8 bits are symmetric.
    """
    assert bits in (4, 8), bits
    rows, columns = matrix.shape
    step = max(1, _ROWS_AT_ONCE // columns)
    parts = [_blocks(matrix[at : at + step]) for at in range(0, rows, step)] if rows else []
    exact: list[tuple[Bytes, Floats, None]] = []
    for part in parts:
        found = _exact(part, bits)
        if found is None:  # most matrices that are not of this kind are told by their first rows
            break
        exact.append((*found, None))
    if len(exact) == len(parts):
        return _assemble(rows, columns, bits, exact, exact=True)
    round_off = _asymmetric if bits == 4 else _symmetric
    return _assemble(rows, columns, bits, [round_off(part) for part in parts], exact=False)


def unpack(packed: Bytes, bits: int) -> Bytes:
    """Codes of the last axis, one per byte."""
    if bits == 8:
        return packed
    pairs = np.stack((packed & 15, packed >> 4), axis=-1)
    return pairs.reshape(*packed.shape[:-1], -1)


def _pack(codes: Bytes, bits: int) -> Bytes:
    if bits == 8:
        return codes
    return np.ascontiguousarray(codes[..., 0::2] | (codes[..., 1::2] << 4))


def _blocks(matrix: NDArray[Any]) -> Floats:
    """``[rows, blocks, 32]``, the last block filled with zeros."""
    rows, columns = matrix.shape
    blocks = -(-columns // BLOCK)
    padded = np.zeros((rows, blocks * BLOCK), np.float32)
    padded[:, :columns] = matrix
    return padded.reshape(rows, blocks, BLOCK)


def _assemble(
    rows: int,
    columns: int,
    bits: int,
    parts: Sequence[tuple[Bytes, Floats, Bytes | None]],
    *,
    exact: bool,
) -> FewBits:
    codes = np.concatenate([_pack(part[0], bits) for part in parts])
    scales = np.concatenate([part[1].reshape(-1) for part in parts])
    zeros = None
    if parts[0][2] is not None:
        whole = np.concatenate([part[2] for part in parts if part[2] is not None])  # [rows, blocks]
        if bits == 4 and whole.shape[1] % 2:
            whole = np.concatenate((whole, np.zeros((rows, 1), np.uint8)), axis=1)
        zeros = _pack(whole, bits).reshape(-1)
    return FewBits(rows, columns, bits, codes, scales, zeros, exact)


def _exact(blocks: Floats, bits: int) -> tuple[Bytes, Floats] | None:
    """Codes ``[rows, blocks, 32]`` and scales that give these very values with the zero in the middle, or None.

    The largest value of a block is its scale times some code, in what llama.cpp writes the outermost one.
    """
    half = 1 << (bits - 1)
    flat = blocks.reshape(-1, BLOCK)
    largest = np.take_along_axis(flat, np.abs(flat).argmax(axis=1)[:, None], axis=1)[:, 0]
    scales = np.zeros(len(flat), np.float32)
    codes = np.full(flat.shape, half, np.uint8)
    left = np.flatnonzero(largest != 0)
    for outermost in (-half, half - 1, 1 - half):
        if not left.size:
            break
        scale = (largest[left] / np.float32(outermost)).astype(np.float32)
        values = flat[left]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            steps = np.rint(values / scale[:, None])
            fits = (steps * scale[:, None] == values) & (steps >= -half) & (steps < half)
        good = fits.all(axis=1)
        chosen = left[good]
        scales[chosen] = scale[good]
        codes[chosen] = (steps[good] + half).astype(np.uint8)
        left = left[~good]
    if left.size:
        return None
    return codes.reshape(blocks.shape), scales.reshape(blocks.shape[:2])


def _symmetric(blocks: Floats) -> tuple[Bytes, Floats, None]:
    """8 bits around 128."""
    scales = np.abs(blocks).max(axis=2) / np.float32(127)
    steps = np.rint(blocks * _inverse(scales)[..., None])
    return (np.clip(steps, -127, 127) + 128).astype(np.uint8), scales.astype(np.float32), None


def _asymmetric(blocks: Floats) -> tuple[Bytes, Floats, Bytes]:
    """4 bits from the smallest value to the largest, 0.0 being a code."""
    low = np.minimum(blocks.min(axis=2), 0)
    high = np.maximum(blocks.max(axis=2), 0)
    scales = ((high - low) / np.float32(15)).astype(np.float32)
    inverse = _inverse(scales)
    zeros = np.clip(np.rint(-low * inverse), 0, 15).astype(np.float32)
    codes = np.clip(np.rint(blocks * inverse[..., None]) + zeros[..., None], 0, 15).astype(np.uint8)
    return codes, scales, zeros.astype(np.uint8)


def _inverse(scales: Floats) -> Floats:
    """1 / scale, 0 for a block of zeros."""
    return np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
