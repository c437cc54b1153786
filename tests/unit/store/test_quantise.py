"""Matrices in few bits: exact where they can be, close where they cannot, and the layout that the kernels take."""

from __future__ import annotations

import numpy as np
import pytest

from splitinfer.segment_runtime.store.quantise import quantise, unpack


def random(rows: int, columns: int, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Like weights: most small, a few large."""
    return (np.random.default_rng(seed).standard_normal((rows, columns)) ** 3 / 50).astype(np.float32)


def q4_0(rows: int, columns: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """What a Q4_0 tensor dequantises to: float16 scales of either sign times -8 to 7, -8 in every block."""
    rng = np.random.default_rng(1)
    codes = rng.integers(-8, 8, (rows, columns // 32, 32))
    codes[..., 5] = -8
    scales = rng.standard_normal((rows, columns // 32, 1)).astype(np.float16).astype(np.float32)
    return (codes.astype(np.float32) * scales).reshape(rows, columns)


@pytest.mark.parametrize("bits", [4, 8])
def test_what_a_quantised_source_dequantises_to_is_repacked_exactly(bits: int) -> None:
    """Q4_0 in 4 and in 8 bits, also beside blocks of zeros: every value to the last bit, and it says so."""
    matrix = q4_0(7, 96)
    matrix[3] = 0
    few = quantise(matrix, bits)
    assert few.exact
    assert few.offsets is None
    assert np.array_equal(few.values(), matrix)


def test_q8_0_is_repacked_exactly_in_eight_bits() -> None:
    """Float16 scales times -127 to 127, one of them outermost."""
    rng = np.random.default_rng(2)
    codes = rng.integers(-127, 128, (6, 4, 32))
    codes[..., 9] = rng.choice([-127, 127], (6, 4))
    matrix = (codes * rng.random((6, 4, 1)).astype(np.float16).astype(np.float32)).reshape(6, 128)
    few = quantise(matrix.astype(np.float32), 8)
    assert few.exact
    assert np.array_equal(few.values(), matrix.astype(np.float32))
    assert not quantise(matrix.astype(np.float32), 4).exact


def test_q4_1_is_repacked_in_four_bits() -> None:
    """Float16 scales and minima that lie between codes: the same codes, values off by float32's rounding only."""
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 16, (6, 3, 32))
    codes[..., 4], codes[..., 20] = 0, 15  # both ends are in every block of the format
    scales = rng.random((6, 3, 1)).astype(np.float16).astype(np.float32)
    low = rng.standard_normal((6, 3, 1)).astype(np.float16).astype(np.float32)
    matrix = (scales * codes.astype(np.float32) + low).reshape(6, 96)
    few = quantise(matrix, 4)
    assert few.exact
    assert np.array_equal(unpack(few.codes, 4), codes)
    assert np.abs(few.values() - matrix).max() <= 1e-6 * np.abs(matrix).max()
    matrix[2, 40] += scales[2, 1, 0] / 100
    assert not quantise(matrix, 4).exact


def test_one_value_off_makes_it_a_second_quantisation() -> None:
    """Exact means every value: a matrix that is nearly of the form is rounded, and says so."""
    matrix = q4_0(5, 64)
    matrix[2, 40] = np.nextafter(matrix[2, 40], np.float32(9))
    assert not quantise(matrix, 4).exact


@pytest.mark.parametrize(("bits", "steps"), [(4, 15), (8, 254)])
@pytest.mark.parametrize("columns", [32, 48, 64, 96])
def test_rounding_is_off_by_half_a_step(bits: int, steps: int, columns: int) -> None:
    """Every value within half a step of its block, a last block that is half empty included; in 8 bits zero stays zero."""
    matrix = random(9, columns)
    matrix[:, 3] = 0
    few = quantise(matrix, bits)
    assert not few.exact
    for start in range(0, columns, 32):
        part = matrix[:, start : start + 32]
        span = 2 * np.abs(part).max(1)
        if bits == 4:
            empty = start + 32 > columns  # what fills a block up is zeros
            span = part.max(1).clip(0 if empty else None) - part.min(1).clip(None, 0 if empty else None)
        assert (np.abs(few.values()[:, start : start + 32] - part) <= span[:, None] / steps / 2 * 1.001).all()
    assert bits == 4 or (few.values()[:, 3] == 0).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_are_read_by_themselves(bits: int) -> None:
    """The embedding takes rows out of the middle; with the scales and offsets of their own."""
    few = quantise(random(20, 96), bits)
    rows = np.array([3, 0, 19], np.int64)
    assert np.array_equal(few.values(rows), few.values()[rows])


def test_a_matrix_in_pieces_is_the_matrix() -> None:
    """Conversions work on a few rows at once; the result does not depend on how many."""
    matrix = random(3000, 768)
    few = quantise(matrix, 4)
    assert np.array_equal(few.values(np.arange(2900, 3000)), quantise(matrix[2900:], 4).values())
