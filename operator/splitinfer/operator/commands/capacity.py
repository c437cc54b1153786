"""The flags of a Prometheus server, read: what `plan`, `up` and `profile` take from one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splitinfer.operator.planning.measured import Measured


def from_server(arguments: argparse.Namespace, digest: str, dtype: str, engine: str) -> Measured:
    """What the server knows, for a model in a dtype on an engine.

    Raises:
        UserError: the URL or a file of the settings cannot be used.
        CommandFailed: nothing was learned.
    """
    from splitinfer.operator.planning.measured import measured, server
    from splitinfer.profiler.node_speeds import Asked

    asked = Asked(digest, dtype, None if engine == "auto" else engine)
    of = server(
        arguments.prometheus,
        arguments.prometheus_config,
        arguments.nodes_file,
        dict(arguments.stale_after),
    )
    return measured(asked, of)


def refuse_without_server(arguments: argparse.Namespace, instead: str) -> None:
    """Raise UserError for a flag that means nothing where no server is asked; ``instead`` says what is asked."""
    from splitinfer.operator.errors import UserError

    for flag in ("--prometheus-config", "--nodes-file", "--stale-after"):
        if getattr(arguments, flag[2:].replace("-", "_")):
            raise UserError(flag, f"is of --prometheus; {instead}; remove it")
