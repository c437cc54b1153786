"""What holds for every test."""

from __future__ import annotations

import signal

from tests.support.figures import pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]

# Under nohup SIGHUP is ignored, and children inherit that; `up` then rightly outlives its parent, but the tests that
# start it ask for what it does otherwise.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
