"""What a frame costs on this node beside the blocks: everything that a host does with it, as a step finds the machine.

A real `Hop` over a range that computes nothing takes a real frame, on a thread that computes for an event loop, as in a
host. Before each, the caches are emptied: between two frames a host has read all its weights, and what handles the frame
has been driven out, which makes it several times as slow as in a loop of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import cast

import numpy as np

from splitinfer.segment_runtime.compute import ComputeThread
from splitinfer.segment_runtime.engine.port import Array, LoadedRange, SessionRows
from splitinfer.segment_runtime.host.hop import Hop
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.store.reader import NUMPY_DTYPES
from splitinfer.segment_runtime.wire import Expectation, array_of, put_array

CONTEXT = 4096
"""Tokens that a session of the probe may have; more than there are frames."""
LARGE_ROWS = 512
"""Rows of a large frame: a prefill chunk."""


class _NoBlocks:
    """A range that gives back what it gets."""

    start = stop = 0

    def __init__(self) -> None:
        self._tokens = 0

    def open(self, session: int, capacity: int) -> None:
        """The one session."""

    def length(self, _session: int) -> int:
        """Tokens so far."""
        return self._tokens

    def step(self, hidden: Array, batch: Sequence[SessionRows], _interrupt: object = None) -> Array:
        """Nothing is computed."""
        self._tokens += sum(rows.count for rows in batch)
        return hidden


def frame_times(
    hidden_size: int, activation: str, repeats: int, empty_caches: Callable[[], None]
) -> tuple[float, float]:
    """CPU seconds of a decode frame of one row, and bytes per second of the rows of a large one, both ends.

    CPU time of the whole process, because two threads hand the frame over: it stands while others run.
    """
    kind = NUMPY_DTYPES[activation]
    small, large = (np.zeros((rows, hidden_size), kind) for rows in (1, LARGE_ROWS))

    def copied(array: Array) -> float:
        def work() -> None:
            frame = pb.Frame()
            put_array(frame, array, activation)
            array_of(pb.Frame.FromString(frame.SerializeToString()))

        return median(_cpu_seconds(work) for _ in range(repeats + 1))

    more = copied(large) - copied(small)
    one = asyncio.run(_handled(small, activation, repeats, empty_caches))
    return one, (large.nbytes - small.nbytes) / max(more, one / 10)  # too fast to tell: a lower bound


async def _handled(row: Array, activation: str, repeats: int, empty_caches: Callable[[], None]) -> float:
    expected = Expectation(
        epoch=1,
        hop=0,
        dtype=activation,
        hidden_size=row.shape[1],
        kv_budget_tokens=CONTEXT,
        max_context_tokens=CONTEXT,
    )
    hop = Hop(expected, cast("LoadedRange", _NoBlocks()), next_address="", last=False)
    taken = []
    with contextlib.closing(ComputeThread("probe")) as thread:
        for index in range(repeats + 1):
            frame = pb.Frame(epoch=1, step=index + 1, hop=0)
            frame.sessions.add(session=1, position=index, count=1, keep=1, capacity=CONTEXT, decode=index > 0)
            put_array(frame, row, activation)
            message = frame.SerializeToString()
            empty_caches()
            began = time.process_time()
            came = pb.Frame.FromString(message)
            outcome = await thread.run(hop.take, came, 0.0, time.perf_counter)
            assert outcome.frame is not None, outcome.error
            outcome.frame.SerializeToString()
            taken.append(time.process_time() - began)
    return median(taken[1:])  # the first warms


def _cpu_seconds(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began
