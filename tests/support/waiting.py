"""Waiting for a condition with a deadline, for tests that look at other processes."""

from __future__ import annotations

import time
from collections.abc import Callable

_LOOK_SECONDS = 0.02


def until(condition: Callable[[], bool], *, seconds: float, what: str) -> float:
    """Look until ``condition`` holds; gives how many seconds that took. AssertionError after ``seconds``."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"waited {seconds:g} s for {what}"
        time.sleep(_LOOK_SECONDS)
    return time.monotonic() - began
