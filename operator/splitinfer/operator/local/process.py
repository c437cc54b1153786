"""One child process: started with a pipe as its lifeline, known by the line it prints when it listens.

The child reads its standard input until the end and then leaves, so it never outlives the supervisor, even
one that is killed. It runs in its own process group: Ctrl-C reaches the supervisor alone, which then stops
the children in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_LINE = 1 << 16

Heard = Callable[[Mapping[str, Any]], None]
"""Is given each line of a child's output that is a JSON object with an event."""


class Child:
    """A running child. `exit_code` is None while it runs."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, heard: Heard) -> None:
        self._process = process
        self._heard = heard
        self.log = log
        self.listening: Mapping[str, Any] | None = None
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, command: Sequence[str], log: Path, changed: Callable[[], None], heard: Heard = lambda _: None
    ) -> Child:
        """Start ``command``; ``changed`` is called when it listens and when it has left, ``heard`` by what it says.

        Raises:
            OSError: the program cannot be started.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                process_group=0,
                limit=MAX_LINE,
            )
        child = cls(process, log, heard)
        child._watch = asyncio.create_task(child._observe(changed))
        return child

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.returncode

    async def _observe(self, changed: Callable[[], None]) -> None:
        stdout = self._process.stdout
        assert stdout is not None, "stdout is piped"
        while True:
            try:
                line = await stdout.readline()
            except ValueError:
                continue  # a line longer than any of ours; what is left of it is read on
            if not line:
                break
            if (said := _said(line)) is None:
                continue
            self._heard(said)
            if self.listening is None and said["event"] == "listening":
                self.listening = said
                changed()
        await self._process.wait()
        self._signal_group(signal.SIGKILL)
        changed()

    def _signal_group(self, number: int) -> None:
        # The group may be gone, with all its processes.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def terminate(self) -> None:
        """Ask it to drain and leave."""
        if self.exit_code is None:
            self._signal_group(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, and whatever it started."""
        if self.exit_code is None:
            self._signal_group(signal.SIGKILL)

    async def stop(self, grace_seconds: float) -> None:
        """Terminate, wait, kill what is left; returns when it is gone."""
        self.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), grace_seconds)
        except TimeoutError:
            self.kill()
        if self._watch is not None:
            await self._watch

    def last_words(self, lines: int = 5) -> list[str]:
        """The end of its log, for a report; structured lines are reduced to their message."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - MAX_LINE))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return []
        return [_message(line) for line in text.splitlines() if line.strip()][-lines:]


def _said(line: bytes) -> Mapping[str, Any] | None:
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and "event" in said else None


def _message(line: str) -> str:
    try:
        record = json.loads(line)
    except ValueError:
        return line
    if not isinstance(record, dict):
        return line
    extra = {k: v for k, v in record.items() if k not in ("event", "level", "timestamp", "logger")}
    return " ".join([str(record.get("event", "")), *(f"{key}={value}" for key, value in extra.items())])
