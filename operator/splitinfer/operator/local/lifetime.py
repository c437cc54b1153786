"""When ``up`` ends: a signal, or its own parent's end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

PARENT_POLL_SECONDS = 0.5


class Stop:
    """Set once something asks `up` to end; asked twice, ``again`` is called."""

    def __init__(self, again: Callable[[], None]) -> None:
        self._again = again
        self._asked = asyncio.Event()
        self.why = ""

    def ask(self, why: str) -> None:
        """Ask to end."""
        if self._asked.is_set():
            self._again()
        else:
            self.why = why
            self._asked.set()

    async def wait(self) -> None:
        """Until it is asked."""
        await self._asked.wait()

    def asked(self) -> bool:
        """Whether it was asked."""
        return self._asked.is_set()


def ask_on_signals(stop: Stop) -> None:
    """SIGINT and SIGTERM end `up`; so does SIGHUP, unless it is ignored as under ``nohup``."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, stop.ask, signal.Signals(number).name)


async def ask_when_orphaned(stop: Stop, parent: int) -> None:
    """End `up` when its parent is gone, unless SIGHUP is ignored: then it was meant to stay.

    The parent's id is watched and not asked of the kernel as a signal, since that is sent when the parent's
    *thread* ends, which need not be its end.
    """
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return
    while os.getppid() == parent:  # noqa: ASYNC110 - nothing wakes one up for this
        await asyncio.sleep(PARENT_POLL_SECONDS)
    stop.ask("the parent process ended")
