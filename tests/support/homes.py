"""A ``$SPLITINFER_HOME`` of a test's own, and `splitinfer` with fake processes run in it as a person would."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

SCRIPT = str(Path(__file__).with_name("up_with_fakes.py"))
TIMEOUT = 60.0


class Home:
    """A ``$SPLITINFER_HOME`` of its own, and the processes that were started in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pids_folder = path / "pids"
        self.pids_folder.mkdir(parents=True)
        self.behaviour = ""
        self._started: list[subprocess.Popen[str]] = []

    @property
    def environment(self) -> dict[str, str]:
        """What the processes see."""
        return {
            **os.environ,
            "SPLITINFER_HOME": str(self.path),
            "FAKE_PIDS": str(self.pids_folder),
            "FAKE_BEHAVIOUR": self.behaviour,
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "200",
        }

    def start(self, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start ``splitinfer`` with fake processes."""
        process = subprocess.Popen(
            [*launcher, sys.executable, SCRIPT, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
        )
        self._started.append(process)
        return process

    def run(self, *arguments: str, questions: str = "") -> subprocess.CompletedProcess[str]:
        """Run ``splitinfer`` to its end, with ``questions`` as its input."""
        return subprocess.run(
            [sys.executable, SCRIPT, *arguments],
            input=questions,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=TIMEOUT,
        )

    def pids(self, name: str = "*") -> list[int]:
        """Pids of the fake processes that ever started, oldest file first."""
        files = sorted(self.pids_folder.glob(f"{name}.*"), key=lambda path: path.stat().st_mtime_ns)
        return [int(path.suffix[1:]) for path in files]

    def clean_up(self) -> None:
        """Kill what a failed test left."""
        end_all_of(self.path)
        for process in self._started:
            process.communicate()


def end_all_of(home: Path) -> list[int]:
    """Kill whatever runs with this ``$SPLITINFER_HOME``, whoever started it; gives the pids.

    Only a test's own home is asked for, so only what the test has started is found. Again until there is nothing: a
    supervisor starts its processes anew.
    """
    ended: list[int] = []
    while found := [process for process in psutil.process_iter() if _lives_in(process, home)]:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
            ended.append(process.pid)
        assert all(wait_gone(process.pid) for process in found), "a process that SIGKILL does not end"
    return ended


def _lives_in(process: psutil.Process, home: Path) -> bool:
    try:
        return (
            process.environ().get("SPLITINFER_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.Error:
        return False  # it is gone, or not ours


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Output of a process up to the line that has ``text``; fails with all of it if it ends before."""
    assert process.stdout is not None, "started with a pipe"
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return "".join(seen)
    pytest.fail(f"{text!r} never came; the output was:\n{''.join(seen)}")


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_gone(pid: int, seconds: float = 30.0) -> bool:
    """Wait until a process has ended, by the kernel's word; False when it has not."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)
