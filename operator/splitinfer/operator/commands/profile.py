"""``splitinfer profile``: measure this machine, or ask a Prometheus server, and print what is known.

The YAML is a snapshot for ``plan`` and ``up``. Exit code: 0 everything is known, 1 something is unknown (it is named), 2 the input is wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitinfer.operator.commands.arguments import DEVICE, device, prometheus
from splitinfer.operator.commands.capacity import from_server, refuse_without_server

if TYPE_CHECKING:
    from splitinfer.optimizer.capacity import CapacitySnapshot

DEFAULT_MODEL = "smollm2"
DEFAULT_NODES = 3
DEFAULT_DEVICE = "cpu"


def register(subparsers: Any) -> None:
    """Add ``profile``."""
    p = subparsers.add_parser(
        "profile",
        help="measure this machine and its links, or print what a Prometheus server knows",
        description="Measure this machine, or ask a Prometheus server, and print what is known. The YAML is a snapshot "
        "for plan and up.",
    )
    p.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME", help="whose blocks are timed")
    p.add_argument("--store", type=Path, metavar="DIR", help="model store (default $SPLITINFER_HOME/models)")
    p.add_argument("--dtype", choices=["float32", "bfloat16", "float16", "int8", "int4"], default="float32")
    p.add_argument("--engine", choices=["auto", "onnx", "torch"], default="auto")
    p.add_argument("--device", type=device, metavar=DEVICE, help=f"default {DEFAULT_DEVICE}")
    p.add_argument("--threads", type=int, metavar="T", help="default: the usable CPUs, divided by the nodes")
    p.add_argument(
        "--nodes", type=int, metavar="N", help=f"processes that stand for nodes (default {DEFAULT_NODES})"
    )
    prometheus(p)
    p.add_argument("-o", "--output", choices=["table", "json", "yaml"], default="table")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure or ask, and print; 1 when something is unknown."""
    import sys

    from splitinfer.operator.planning.capacity_table import busy, unknown_of

    taken = _measured(arguments) if arguments.prometheus is None else _given(arguments)
    _show(taken, arguments.dtype, arguments.output)
    if arguments.prometheus is None and (warning := busy(taken)):
        print(warning, file=sys.stderr)
    missing = unknown_of(taken, arguments.dtype)
    for line in missing:
        print(f"unknown: {line}", file=sys.stderr)
    return 1 if missing else 0


def _measured(arguments: argparse.Namespace) -> CapacitySnapshot:
    """This machine, now."""
    import asyncio

    from splitinfer.operator.errors import UserError
    from splitinfer.operator.local.agents import Probed, agents
    from splitinfer.operator.local.models import find_model, home
    from splitinfer.operator.local.request import MAX_THREADS

    refuse_without_server(arguments, "without it this machine is measured")
    count = DEFAULT_NODES if arguments.nodes is None else arguments.nodes
    if not 1 <= count <= 64:
        raise UserError("--nodes", f"{count}: from 1 to 64 processes")
    if arguments.threads is not None and not 1 <= arguments.threads <= MAX_THREADS:
        raise UserError("--threads", f"{arguments.threads}: from 1 to {MAX_THREADS}")
    model = find_model(f"store://{arguments.model}", arguments.store or home() / "models", "--model")
    device = arguments.device or DEFAULT_DEVICE
    probed = Probed(model, arguments.dtype, arguments.engine, device, arguments.threads, count)

    async def found() -> CapacitySnapshot:
        async with agents(probed) as local:
            return await local.measured([f"node-{i}" for i in range(count)])

    return asyncio.run(found())


def _given(arguments: argparse.Namespace) -> CapacitySnapshot:
    """What a Prometheus server knows; nothing is measured."""
    import sys

    from splitinfer.operator.errors import UserError
    from splitinfer.operator.local.models import find_model, home

    for flag in ("--nodes", "--threads", "--device"):
        if getattr(arguments, flag[2:]) is not None:
            raise UserError(
                flag, "is of measuring this machine; with --prometheus nothing is measured; remove it"
            )
    model = find_model(f"store://{arguments.model}", arguments.store or home() / "models", "--model")
    known = from_server(arguments, model.digest, arguments.dtype, arguments.engine)
    for note in known.notes:
        print(f"note: {note}", file=sys.stderr)
    return known.snapshot


def _show(taken: CapacitySnapshot, dtype: str, form: str) -> None:
    import json
    import sys

    from splitinfer.operator.planning.capacity_table import show_table

    if form == "table":
        show_table(taken, dtype)
        return
    data = taken.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if form == "json":
        json.dump(data, sys.stdout, indent=2)
        print()
    else:
        import yaml

        yaml.safe_dump(data, sys.stdout, sort_keys=False)
