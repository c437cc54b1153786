"""Writing units: what is finite and what is not, in every dtype, and what counts as equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from splitinfer.segment_runtime.store.checkpoint import TensorInfo
from splitinfer.segment_runtime.store.errors import DamagedSource
from splitinfer.segment_runtime.store.index import TensorIndex
from splitinfer.segment_runtime.store.safetensors_file import NUMPY_DTYPES
from splitinfer.segment_runtime.store.writer import check_finite, common_dtype, equal_tensors


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
class TestFinite:
    """By the bits, so that half widths cost no conversion."""

    @pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
    def test_refused(self, dtype: str, value: float) -> None:
        """Every NaN and infinity, wherever it is."""
        piece = np.ones((3, 5), NUMPY_DTYPES[dtype])
        piece[2, 3] = value
        with pytest.raises(DamagedSource, match="f: tensor 'x' holds NaN or infinity"):
            check_finite("f", "x", dtype, piece)

    def test_accepted(self, dtype: str) -> None:
        """The largest, the smallest, subnormals and both zeros."""
        finfo: Any = ml_dtypes.finfo
        info = finfo(NUMPY_DTYPES[dtype])
        values = [info.max, info.min, info.tiny, info.smallest_subnormal, 0.0, -0.0]
        check_finite("f", "x", dtype, np.array(values, NUMPY_DTYPES[dtype]))

    def test_agrees_with_numpy(self, dtype: str) -> None:
        """Every bit pattern of 16, and random ones of 32: refused if and only if it is not finite."""
        kind = NUMPY_DTYPES[dtype]
        width = np.uint16 if kind.itemsize == 2 else np.uint32
        bits = np.arange(65536, dtype=np.uint32)
        patterns = (bits if width == np.uint16 else bits * np.uint32(65536)).astype(width).view(kind)
        with np.errstate(invalid="ignore"):
            finite = np.isfinite(patterns.astype(np.float32))
        check_finite("f", "x", dtype, patterns[finite])
        for pattern in patterns[~finite][::97]:
            with pytest.raises(DamagedSource):
                check_finite("f", "x", dtype, np.array([pattern], kind))


class Two:
    """A checkpoint of two tensors in pieces."""

    source: str = "two"
    where: str = "two"
    config: Mapping[str, Any] = {}
    tokenizer: bytes | None = None
    chat_template: str | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __init__(self, a: NDArray[Any], b: NDArray[Any]) -> None:
        self.arrays = {"a": a, "b": b}
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(array.shape, str(array.dtype), "") for name, array in self.arrays.items()
        }

    def pieces(self, name: str) -> Iterator[NDArray[Any]]:
        """Row by row."""
        yield from self.arrays[name]


def test_equal_is_bit_for_bit() -> None:
    """Equal bits only: another shape, dtype, element, even the sign of a zero makes a difference."""
    a = np.zeros((3, 4), np.float32)
    last, sign = a.copy(), a.copy()
    last[2, 3] = 1
    sign[0, 0] = -0.0
    found = [
        equal_tensors(Two(a, b), "a", "b")
        for b in (a.copy(), last, sign, a.reshape(4, 3), a.astype(np.float16))
    ]
    assert found == [True, False, False, False, False]


def test_common_dtype() -> None:
    """Most elements, not most tensors."""
    few = [TensorIndex(shape=(2,), dtype="float32")] * 3
    assert common_dtype([*few, TensorIndex(shape=(4, 2), dtype="bfloat16")]) == "bfloat16"
