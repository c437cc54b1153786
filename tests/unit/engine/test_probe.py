"""The probe's lever, and what it does to a frame; without a model."""

from __future__ import annotations

import pytest

from splitinfer.segment_runtime.probe import MOST_BLOCKS, lever
from splitinfer.segment_runtime.probe_frames import frame_times

MIB = 1 << 20


@pytest.mark.parametrize(
    ("blocks", "weights", "cache", "expected"),
    [
        (30, 24 * MIB, 32 * MIB, 3),  # 72 MiB, twice the cache
        (30, 400 * MIB, 32 * MIB, 2),  # one alone is more than the cache; a difference takes two
        (30, MIB, 32 * MIB, MOST_BLOCKS),  # a toy
        (3, MIB, 32 * MIB, 3),  # all that the model has
        (1, MIB, 32 * MIB, 1),
        (30, 60 * MIB, None, 4),  # a machine that does not tell
    ],
)
def test_the_larger_range_does_not_fit_into_the_caches(
    blocks: int, weights: int, cache: int | None, expected: int
) -> None:
    """Twice over, in bounds."""
    assert lever(blocks, weights, cache) == expected


@pytest.mark.parametrize("activation", ["float32", "bfloat16"])
def test_a_frame_is_timed_as_a_step_finds_it(activation: str) -> None:
    """Before each frame that a hop takes, the caches are emptied once, and that is not part of its time."""
    emptied = []
    one, rate = frame_times(16, activation, 5, lambda: emptied.append(sum(range(2_000_000))))
    assert len(emptied) == 6
    assert 0 < one < 0.02
    assert rate > 0
