"""The word that a step shall end early, given from another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Interrupt:
    """Set once. An engine looks at it between blocks, or has itself called when it is set."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = False
        self._calls: list[Callable[[], None]] = []

    def set(self) -> None:
        """Ask the step to end."""
        with self._lock:
            calls, self._calls = self._calls, []
            self._set = True
        for call in calls:
            call()

    def is_set(self) -> bool:
        """Whether it was asked to end."""
        return self._set

    def on_set(self, call: Callable[[], None]) -> None:
        """Call once it is set, from the thread that sets it; at once where it is set already."""
        with self._lock:
            if not self._set:
                self._calls.append(call)
                return
        call()
