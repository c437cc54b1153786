"""Leaks of a few hundred bytes per request: far below what resident memory shows, and exact where it is noise."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

NOTHING = 200
"""Bytes per request that are no leak: a number or two for the latest latencies, until their queue is full."""


@contextlib.contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Gives a function that says how many bytes this process holds of what it allocated since, in Python or numpy."""

    def held() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        yield held
    finally:
        tracemalloc.stop()


def leak(held: Sequence[int], requests: int) -> float:
    """Bytes per request that every round added; ``held`` was taken around rounds of that many requests.

    What leaks grows in every round. What warms up, is doubled or is cached grows in some of them.
    """
    return min(after - before for before, after in pairwise(held)) / requests
