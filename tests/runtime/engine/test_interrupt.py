"""A step that nobody wants any more, given up in the middle."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import SessionRows, StepInterrupted
from tests.support.models import random_case


class LateInterrupt(threading.Event):
    """Is set the third time that somebody looks: a step is in its third block then."""

    looks = 0

    def is_set(self) -> bool:
        """Count looks."""
        self.looks += 1
        return self.looks >= 3


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_an_interrupted_step_changes_no_session(tmp_path: Path, name: str) -> None:
    """A prompt and a decoding session share a step that ends in its third block: done again, it gives the same bits."""
    case = random_case("qwen3", tmp_path)
    engine = create_engine(name, "cpu", 1)
    part = engine.load_range(case.stored, 0, 5, "float32")
    rng = np.random.default_rng(0)
    first, both = (rng.standard_normal((rows, 48), dtype=np.float32) for rows in (3, 5))
    batch = [SessionRows(1, 3, 1, decode=True), SessionRows(2, 0, 4)]
    results = []
    for interrupted in (False, True):
        part.open(1, 10)
        part.open(2, 10)
        part.step(first, [SessionRows(1, 0, 3)])
        if interrupted:
            word = LateInterrupt()
            with pytest.raises(StepInterrupted):
                part.step(both, batch, word)
            assert word.looks == 3
            assert (part.length(1), part.length(2)) == (3, 0)
        results.append(part.step(both, batch))
        part.close(1)
        part.close(2)
    assert np.array_equal(results[0], results[1])
