"""The command lines of the processes that make up a local pipeline."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol

from splitinfer.operator.local.request import Request

LOOPBACK = "127.0.0.1"
DRAIN_SECONDS = 5.0
"""What a process gives its requests to finish; less than the grace after which it is killed."""


class Commands(Protocol):
    """How the processes are started."""

    def host(self, request: Request, node: str) -> Sequence[str]:
        """Command of a node's host."""

    def entry(self, request: Request, port: int) -> Sequence[str]:
        """Command of the entry, its endpoint on ``port``."""

    def convert(self, request: Request) -> Sequence[str]:
        """Command that converts the model to the plan's dtype and ends."""


def _threads(request: Request) -> Sequence[str]:
    # The hosts share one machine. The entry's head is a stage of the chain like theirs.
    if request.threads is None:
        return ("--cpu-share", str(len(request.nodes)))
    return ("--threads", str(request.threads))


class RuntimeCommands:
    """The real processes: modules of the runtime, in this interpreter.

    ``-P`` keeps the working directory off their module path.
    """

    def host(self, request: Request, node: str) -> Sequence[str]:
        """A host that starts empty."""
        limit = request.memory_limit_bytes
        return (
            *self._module("splitinfer.segment_runtime.host"),
            *("--node", node),
            *("--listen", f"{LOOPBACK}:0"),
            *("--metrics-port", "0"),
            *("--store", str(request.model.root)),
            *("--engine", request.engine_of(node)),
            *("--device", request.device),
            *_threads(request),
            *(() if limit is None else ("--memory-limit-bytes", str(limit))),
            *("--grace-seconds", str(DRAIN_SECONDS)),
            "--exit-with-parent",
        )

    def entry(self, request: Request, port: int) -> Sequence[str]:
        """An entry without a plan."""
        return (
            *self._module("splitinfer.segment_runtime.entry"),
            *("--listen", f"{LOOPBACK}:{port}"),
            *("--control", f"{LOOPBACK}:0"),
            *("--data", f"{LOOPBACK}:0"),
            *("--store", str(request.model.root)),
            *("--model", request.model.name),
            *("--engine", request.engine),
            *("--device", request.device),
            *_threads(request),
            *("--grace-seconds", str(DRAIN_SECONDS)),
            "--exit-with-parent",
        )

    def convert(self, request: Request) -> Sequence[str]:
        """A conversion of the stored model."""
        return (
            *self._module("splitinfer.segment_runtime.convert"),
            *("--store", str(request.model.root)),
            *("--model", request.model.name),
            *("--dtype", request.plan.dtype),
            "--exit-with-parent",
        )

    def _module(self, name: str) -> Sequence[str]:
        return (sys.executable, "-P", "-m", name)
