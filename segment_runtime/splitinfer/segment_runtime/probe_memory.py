"""How a probe takes time, and the memory that it reads to empty the caches and to see how fast memory is."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitinfer.segment_runtime.engine.cpu import largest_cache_bytes

FLUSH_BYTES = 96 << 20
"""Read to empty the caches where the machine does not say how large they are."""


@dataclass(frozen=True, slots=True)
class Timer:
    """How a step is timed: by which clock, and which of the repeats counts."""

    clock: Callable[[], float]
    pick: Callable[[Sequence[float]], float]
    more: int = 1
    """So many times as often where the shortest counts: one that nobody disturbed must be among them."""

    def seconds(self, work: Callable[[], object]) -> float:
        """Of one run."""
        began = self.clock()
        work()
        return self.clock() - began

    def best(self, work: Callable[[], object], repeats: int) -> float:
        """Of so many runs, after one that warms."""
        return self.pick([self.seconds(work) for _ in range(repeats + 1)][1:])


class Memory:
    """A buffer larger than the caches."""

    def __init__(self, threads: int, nbytes: int) -> None:
        self._parts: Sequence[NDArray[np.float32]] = np.array_split(_resident(nbytes), threads)
        self._nbytes = nbytes
        self._pool = None if threads == 1 else ThreadPoolExecutor(threads)

    def read(self) -> None:
        """All of it, by all threads; numpy lets go of the interpreter while it sums."""
        for _ in map(np.sum, self._parts) if self._pool is None else self._pool.map(np.sum, self._parts):
            pass

    def bytes_per_second(self, repeats: int, timer: Timer) -> float:
        """Achieved when it is read."""
        return self._nbytes / timer.best(self.read, repeats)


def _resident(nbytes: int) -> NDArray[np.float32]:
    """Values whose pages are there: asked for at once, a tenth of a second sooner than by touching huge pages."""
    if not hasattr(mmap, "MAP_POPULATE"):  # not on Linux
        return np.ones(nbytes // 4, np.float32)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    return np.frombuffer(mmap.mmap(-1, nbytes, flags=flags), np.float32)


def flush_bytes() -> int:
    """Enough to empty the caches: half as much again as the largest, in bounds that keep a probe cheap."""
    cache = largest_cache_bytes()
    return FLUSH_BYTES if cache is None else min(max(cache * 3 // 2, 32 << 20), 256 << 20)
