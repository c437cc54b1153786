"""What holds for every test."""

from __future__ import annotations

import signal

from tests.support.figures import pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]

# Children inherit what is ignored: SIGHUP under nohup, SIGINT in a shell's background. The tests start processes that
# are to obey both.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
