"""A program that says a line when it is up, for a block."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextmanager
def running(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its first line; its stdin stays open for the block, and it is killed on the way out."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        line = process.stdout.readline()
        assert line, f"{command[-6:]} ended with {process.wait()}"
        yield process, line.strip()
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()
        process.stdin.close()


def module(name: str, *options: str) -> tuple[str, ...]:
    """``python -m``, from the root of the repository."""
    return (sys.executable, "-m", name, *options)
