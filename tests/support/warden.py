"""Holds a control group, and ends everything in it when whoever asked for it goes, also by SIGKILL.

``python -I warden.py PATH`` makes the group, says ``ready``, waits for the end of its stdin, kills what is in the group and
in groups below it, and removes them. It is a process of its own because a test that is killed cleans up nothing, and a
group stays until it is removed. It imports the standard library only: it starts in some 20 ms.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

EMPTY_SECONDS = 10.0
"""A killed process leaves its group at once, unless the kernel holds it in a system call."""


def kill(group: Path) -> None:
    """Every process of a group; again until there is none, because one that forks meanwhile has a child in it."""
    last = time.monotonic() + EMPTY_SECONDS
    while members := (group / "cgroup.procs").read_text().split():
        if time.monotonic() > last:
            raise TimeoutError(f"{group}: {members} do not end")
        for member in members:
            try:
                os.kill(int(member), signal.SIGKILL)
            except ProcessLookupError:
                pass  # it went by itself
        time.sleep(0.005)  # a killed process leaves its group a little later, and nobody is told


def remove(group: Path) -> None:
    """A group with everything in it. Harmless where it is gone."""
    below = [Path(folder) for folder, _, _ in os.walk(group, topdown=False)]
    for folder in below:
        kill(folder)
        folder.rmdir()


def main() -> int:
    """One group, as long as stdin."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C ends the test, and that ends the group
    group = Path(sys.argv[1])
    group.mkdir()
    print("ready", flush=True)
    sys.stdin.buffer.read()
    remove(group)
    return 0


if __name__ == "__main__":
    sys.exit(main())
