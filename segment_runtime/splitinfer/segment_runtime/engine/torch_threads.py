"""Which threads of the process may run in parallel.

libgomp counts the threads of every team that any thread of the process has opened. As soon as they are more than
the CPUs, it stops letting workers wait actively, and a decode step, some hundred short parallel regions, takes
about twice as long (docs/performance.md). So a load, which runs on a thread of its own beside the steps, must not
open a team: it runs on one thread, and the threads stay with the steps.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class ComputeThreads:
    """Gives ``count`` CPU threads to whoever steps, one to whoever loads. torch keeps the number per thread."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._local = threading.local()

    def compute(self) -> None:
        """The calling thread runs steps. Cheap when it did before."""
        if getattr(self._local, "count", None) != self.count:
            torch.set_num_threads(self.count)
            self._local.count = self.count

    @contextmanager
    def load(self) -> Iterator[None]:
        """The calling thread loads: one thread while it does."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        self._local.count = 1
        try:
            yield
        finally:
            torch.set_num_threads(before)
            self._local.count = before
