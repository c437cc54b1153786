"""Whoever waits for the solver to be compiled is told so."""

from __future__ import annotations

import threading

import pytest

from splitinfer.operator.planning.ready import ready_solver


def test_a_long_wait_is_told() -> None:
    """While it compiles, not afterwards."""
    told = threading.Event()
    ready_solver(lambda: None if told.wait(10) else pytest.fail("never told"), told.set, 0.01)
    assert told.is_set()


def test_a_short_one_is_not() -> None:
    """What comes out of the cache needs no word; nor does a solver that cannot be made ready."""
    told = threading.Event()
    ready_solver(lambda: None, told.set, 0.2)

    def fail() -> None:
        raise RuntimeError("no compiler")

    with pytest.raises(RuntimeError, match="no compiler"):
        ready_solver(fail, told.set, 0.2)
    assert not told.wait(0.5)
