"""Threads of the onnx engine share the work, not the bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import Engine, UnsupportedModel
from tests.support.chains import Chain
from tests.support.exact import Story, play
from tests.support.models import Case


@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_any_number_of_threads_gives_the_same_bits(
    case: Callable[[str, str], Case], onnx: Engine, dtype: str
) -> None:
    """One, two and three threads: work is divided by outputs, and no sum is."""
    stored, told = case("llama-even", "float32").stored, Story(list(range(3, 90)), [5, 6, 7])
    expected = play(Chain.load(onnx, stored, [2], dtype), told)
    for threads in (2, 3):
        found = play(Chain.load(create_engine("onnx", "cpu", threads), stored, [2], dtype), told)
        assert np.array_equal(found, expected), threads


def test_a_device_or_thread_count_that_cannot_be_had_is_refused_by_name() -> None:
    """A GPU, or no thread at all."""
    with pytest.raises(UnsupportedModel, match="the onnx engine runs on cpu; use --engine torch"):
        create_engine("onnx", "cuda", 1)
    with pytest.raises(UnsupportedModel, match="threads: 0"):
        create_engine("onnx", "cpu", 0)
