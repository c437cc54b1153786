"""``splitinfer`` with the fake runtime in place of the real one; everything else is as in production."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from splitinfer.operator import cli
from splitinfer.operator.local import pipeline
from splitinfer.operator.local.request import Request

FAKE = str(Path(__file__).with_name("fake_runtime.py"))


class FakeCommands:
    """Starts `fake_runtime`; ``-S -E -I`` keep its start short."""

    def host(self, request: Request, node: str) -> Sequence[str]:
        """A fake host."""
        return (sys.executable, "-I", "-S", FAKE, "host", node, "")

    def entry(self, request: Request, port: int) -> Sequence[str]:
        """A fake entry."""
        return (sys.executable, "-I", "-S", FAKE, "entry", "entry", f"127.0.0.1:{port}")

    def convert(self, request: Request) -> Sequence[str]:
        """A fake conversion."""
        return (sys.executable, "-I", "-S", FAKE, "convert", "convert", request.plan.dtype)


if __name__ == "__main__":
    vars(pipeline)["RuntimeCommands"] = FakeCommands
    real = pipeline.Settings
    pipeline.Settings = lambda **given: dataclasses.replace(real(**given), grace_seconds=1.0)  # type: ignore[assignment,misc]
    sys.exit(cli.main())
