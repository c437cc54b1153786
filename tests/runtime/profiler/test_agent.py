"""The agent as a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(60)

AGENT = (sys.executable, "-P", "-m", "splitinfer.profiler.agent", "--node", "n", "--listen")


def test_two_agents_do_not_share_a_port() -> None:
    """The second is refused by its option; shared, each would answer some of the other's probes."""
    first = subprocess.Popen(
        [*AGENT, "127.0.0.1:0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdin is not None
    assert first.stdout is not None
    try:
        port = first.stdout.readline().rpartition(":")[2].strip(' "}\n')
        second = subprocess.run(
            [*AGENT, f"127.0.0.1:{port}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
    finally:
        first.stdin.close()
        first.wait(30)
    assert second.returncode == 2, second.stdout
    assert f"error: --listen: 127.0.0.1:{port} cannot be bound" in second.stderr
