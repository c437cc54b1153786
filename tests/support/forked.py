"""Host processes forked from one that has imported everything: torch takes seconds to import, a fork does not.

Only for tests that need many hosts. They are processes of their own like any other (SIGKILL, SIGSTOP, sockets);
what a host does from its command line on is tested with `pipelines.start_host`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

START_SECONDS = 60

_context: ForkServerContext | None = None


def _forkserver() -> ForkServerContext:
    global _context
    if _context is None:
        _context = multiprocessing.get_context("forkserver")
        _context.set_forkserver_preload(
            [
                "splitinfer.segment_runtime.host.__main__",
                "splitinfer.segment_runtime.engine.torch_engine",
                "transformers.models.llama.modeling_llama",
            ]
        )
    return _context


def _host(arguments: Sequence[str], parent: Connection, says: Connection, log: str) -> None:
    """In the child: the streams of a process that was started from a command line, then its main."""
    os.dup2(parent.fileno(), 0)
    os.dup2(says.fileno(), 1)
    says.close()
    errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    sys.argv = ["splitinfer-host", *arguments]
    from splitinfer.segment_runtime.host.__main__ import main

    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@dataclass
class ForkedHost:
    """One host process. `address` is where it listens."""

    node: str
    process: ForkServerProcess
    parent: Connection
    address: str
    metrics: str
    log: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.is_alive()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.join()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def stop(self) -> None:
        """End it as its parent's end would, and wait."""
        self.parent.close()
        self.process.join(15)
        ended = not self.process.is_alive()
        self.kill()
        assert ended, f"host {self.node} did not end: {self.log.read_text()}"


def run_host(logs: Path, *arguments: str) -> tuple[int | None, bytes, str]:
    """Run a host that is expected to end by itself: (exit code, stdout, stderr)."""
    log = logs / f"ended-{os.urandom(3).hex()}.log"
    process, parent, heard = _start(arguments, log)
    with os.fdopen(os.dup(heard.fileno()), "rb") as stdout:
        said = stdout.read()
    process.join(START_SECONDS)
    parent.close()
    process.kill()  # where it did not end by itself
    return process.exitcode, said, log.read_text()


def _start(arguments: Sequence[str], log: Path) -> tuple[ForkServerProcess, Connection, Connection]:
    context = _forkserver()
    stdin, parent = context.Pipe(duplex=False)
    heard, says = context.Pipe(duplex=False)
    process = context.Process(target=_host, args=(arguments, stdin, says, str(log)), daemon=True)
    process.start()
    stdin.close()
    says.close()
    return process, parent, heard


def fork_host(store: Path, node: str, logs: Path, *options: str) -> ForkedHost:
    """Start a host on one thread and wait for its line on stdout."""
    log = logs / f"{node}-{os.urandom(3).hex()}.log"
    arguments = ["--node", node, "--listen", "127.0.0.1:0", "--store", str(store), "--threads", "1"]
    arguments += ["--engine", "torch"]  # an option wins over it
    process, parent, heard = _start([*arguments, "--exit-with-parent", *options], log)
    with os.fdopen(os.dup(heard.fileno()), "rb") as stdout:
        line = stdout.readline()
    assert line, f"host {node} ended: {log.read_text()}"
    said = json.loads(line)
    return ForkedHost(node, process, parent, said["grpc"], said["metrics"], log)
