"""One thread that computes for an event loop, job after job.

``concurrent.futures`` has the same, with a second future and a condition per job. Between two steps of a chain both
threads sleep, so what counts is how often one wakes the other: this way a job is back a quarter sooner, on every hop of
every token (``make bench`` measures both).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _Job:
    call: Callable[[], Any]
    future: asyncio.Future[Any] | None = None
    """None: nobody waits."""


class ComputeThread:
    """Runs what it is given in the order in which it was given it."""

    def __init__(self, name: str) -> None:
        """Start the thread. It ends with `close`, or with the process."""
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of a call on the thread, or its exception. A call that is cancelled before its turn is left out.

        Raises:
            RuntimeError: the thread was closed.
        """
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._put(_Job(lambda: call(*args, **kwargs), future))
        try:
            return await future
        finally:
            del future  # the error that it holds has this frame in its traceback

    def post(self, call: Callable[[], object]) -> None:
        """Run a call when its turn comes; nobody waits for it. Raises RuntimeError when the thread was closed."""
        self._put(_Job(call))

    def close(self) -> None:
        """Take no more jobs, leave out those that wait, and wait for the one under way. Repeating it is harmless."""
        self._closed = True
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None and job.future is not None:
                job.future.cancel()
        self._jobs.put(None)
        self._thread.join()

    def _put(self, job: _Job) -> None:
        if self._closed:
            raise RuntimeError(f"the {self._thread.name} thread is closed")
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._do(job)
            del job  # or what it names would live until the next one comes

    def _do(self, job: _Job) -> None:
        if job.future is not None and job.future.cancelled():
            return
        result, error = None, None
        try:
            result = job.call()
        except BaseException as raised:  # noqa: BLE001 - who waits is to have it, whatever it is
            error = raised
        if isinstance(error, StopIteration):  # no future takes it: whoever waits would wait for ever
            error = RuntimeError(f"the job raised {error!r}")
        if job.future is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                job.future.get_loop().call_soon_threadsafe(_settle, job.future, result, error)
        elif error is not None:
            log.error("a job of the thread %s failed", self._thread.name, exc_info=error)
        # The error's traceback has this frame, and the future has the error: they would keep one another alive.
        del job, error


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
