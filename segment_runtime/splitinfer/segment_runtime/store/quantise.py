"""Matrices in few bits: codes, scales and offsets per block of 32 inputs. Pure numpy.

A value is ``scale * (code - middle)``, in 4 bits ``+ offset``. Before anything is rounded, a matrix is held against that
form: what a quantised source (GGUF's Q4_0, Q4_1, Q8_0) dequantises to has it, and is repacked without being quantised a
second time. An offset is a number of its own and not a code (a zero point), because Q4_1's offsets lie between codes:
rounding them to one moves all 32 values of a block to the same side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = 2
"""Of the codes that this module makes: another number makes caches of older ones stale."""
BLOCK = 32
_ROWS_AT_ONCE = 1 << 21
"""Values that are worked on at once, so that a conversion holds megabytes and not a matrix several times."""

_ROUNDING = np.float32(8 * np.finfo(np.float32).eps)
"""Of a product and a sum in the source's reader, and of a difference, a quotient, a product and two sums here."""

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class FewBits:
    """A matrix ``[rows, columns]`` of ``bits`` per value.

    Attributes:
        codes: ``[rows, blocks, 32 * bits / 8]``, in 4 bits the earlier value in the lower half.
        scales: ``[rows * blocks]``.
        offsets: ``[rows, blocks]``, the value of the middle code, 8; None: 0.0.
        exact: the codes are those of a quantised source: every value to the last bit, with offsets to the rounding
            of float32.
    """

    rows: int
    columns: int
    bits: int
    codes: Bytes
    scales: Floats
    offsets: Floats | None
    exact: bool
    block: int = BLOCK

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.offsets is None else self.offsets.nbytes)

    def values(self, rows: slice | NDArray[np.int64] = slice(None)) -> Floats:
        """Float32 ``[rows, columns]`` of some rows."""
        blocks = self.codes.shape[1]
        codes = unpack(self.codes[rows], self.bits)  # [rows, blocks, 32]
        scales = self.scales.reshape(self.rows, blocks)[rows]
        middle = np.float32(1 << (self.bits - 1))
        values = (codes.astype(np.float32) - middle) * scales[..., None]
        if self.offsets is not None:
            values += self.offsets[rows][..., None]
        return np.ascontiguousarray(values.reshape(len(codes), blocks * self.block)[:, : self.columns])


def quantise(matrix: NDArray[Any], bits: int) -> FewBits:
    """A matrix ``[rows, columns]`` in 4 or 8 bits: repacked where that is exact, else rounded.

    4 bits have an offset of their own per block, 8 bits are symmetric.
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
    if bits == 8:
        return _assemble(rows, columns, bits, [_symmetric(part) for part in parts], exact=False)
    affine = [_affine(part) for part in parts]
    same = all(_on_grid(part, *found) for part, found in zip(parts, affine, strict=True))
    return _assemble(rows, columns, bits, affine, exact=same)


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
    parts: Sequence[tuple[Bytes, Floats, Floats | None]],
    *,
    exact: bool,
) -> FewBits:
    codes = np.concatenate([_pack(part[0], bits) for part in parts])
    scales = np.concatenate([part[1].reshape(-1) for part in parts])
    offsets = None
    if parts and parts[0][2] is not None:
        offsets = np.concatenate([part[2] for part in parts if part[2] is not None])  # [rows, blocks]
    return FewBits(rows, columns, bits, codes, scales, offsets, exact)


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


def _affine(blocks: Floats) -> tuple[Bytes, Floats, Floats]:
    """4 bits from the smallest value of a block to the largest, as llama.cpp's Q4_1 has it."""
    low, high = blocks.min(axis=2), blocks.max(axis=2)
    scales = ((high - low) / np.float32(15)).astype(np.float32)
    codes = np.clip(np.rint((blocks - low[..., None]) * _inverse(scales)[..., None]), 0, 15).astype(np.uint8)
    return codes, scales, (low + 8 * scales).astype(np.float32)


def _on_grid(blocks: Floats, codes: Bytes, scales: Floats, offsets: Floats) -> bool:
    """Whether the values were codes of this form before: off by no more than float32 rounds on the way."""
    values = (codes.astype(np.float32) - 8) * scales[..., None] + offsets[..., None]
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    return bool((np.abs(values - blocks) <= _ROUNDING * largest).all())


def _inverse(scales: Floats) -> Floats:
    """1 / scale, 0 for a block of zeros."""
    return np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
