"""``splitinfer profile``: measure this machine, and print what is known of it. The YAML is a snapshot for ``plan`` and ``up``.

Exit code: 0 everything was measured, 1 something is unknown (it is named), 2 the input is wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitinfer.operator.commands.arguments import DEVICE, device

if TYPE_CHECKING:
    from splitinfer.optimizer.capacity import CapacitySnapshot

DEFAULT_MODEL = "smollm2"
DEFAULT_NODES = 3
BUSY = 0.1
"""Share that others take, above which it is said."""


def register(subparsers: Any) -> None:
    """Add ``profile``."""
    p = subparsers.add_parser(
        "profile",
        help="measure this machine and its links",
        description="Measure this machine, and print what is known of it. The YAML is a snapshot for plan and up.",
    )
    p.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME", help="whose blocks are timed")
    p.add_argument("--store", type=Path, metavar="DIR", help="model store (default $SPLITINFER_HOME/models)")
    p.add_argument("--dtype", choices=["float32", "bfloat16", "float16", "int8", "int4"], default="float32")
    p.add_argument("--engine", choices=["auto", "onnx", "torch"], default="auto")
    p.add_argument("--device", default="cpu", type=device, metavar=DEVICE)
    p.add_argument("--threads", type=int, metavar="T", help="default: the usable CPUs, divided by the nodes")
    p.add_argument(
        "--nodes", type=int, default=DEFAULT_NODES, metavar="N", help="processes that stand for nodes"
    )
    p.add_argument("-o", "--output", choices=["table", "json", "yaml"], default="table")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; 1 when something is unknown."""
    import asyncio
    import sys
    import time

    from splitinfer.operator.errors import UserError
    from splitinfer.operator.local.models import find_model, home
    from splitinfer.operator.local.profiling import local_snapshot, measure
    from splitinfer.operator.local.request import MAX_THREADS

    if not 1 <= arguments.nodes <= 64:
        raise UserError("--nodes", f"{arguments.nodes}: from 1 to 64 processes")
    if arguments.threads is not None and not 1 <= arguments.threads <= MAX_THREADS:
        raise UserError("--threads", f"{arguments.threads}: from 1 to {MAX_THREADS}")
    model = find_model(f"store://{arguments.model}", arguments.store or home() / "models", "--model")
    found = asyncio.run(
        measure(
            model, arguments.dtype, arguments.engine, arguments.device, arguments.threads, arguments.nodes
        )
    )
    names = [f"node-{i}" for i in range(arguments.nodes)]
    taken = local_snapshot(found, arguments.dtype, names, time.time())
    missing = unknown_of(taken, arguments.dtype)
    _show(taken, arguments.dtype, arguments.output)
    for line in (*busy(taken), *missing):
        print(line, file=sys.stderr)
    return 1 if missing else 0


def busy(taken: CapacitySnapshot) -> list[str]:
    """A warning where others use the machine: what was measured holds for as long as they do."""
    from splitinfer.optimizer.values import Known

    loads = [node.background_utilisation for node in taken.nodes]
    most = max((load.value for load in loads if isinstance(load, Known)), default=0.0)
    if most < BUSY:
        return []
    return [
        "warning: other processes keep this machine busy: a host beside them is left "
        f"{100 * (1 - most):.0f} % of its speed, and the snapshot says so"
    ]


def unknown_of(taken: CapacitySnapshot, dtype: str) -> list[str]:
    """Everything that is not known, with its reason; one line for what all nodes, or all links, share."""
    from splitinfer.optimizer.values import Unknown

    reasons: dict[str, None] = {}
    for node in taken.nodes:
        for name, reading in node.readings(dtype):
            if isinstance(reading, Unknown):
                reasons[f"unknown: {name}: {reading.unknown}"] = None
    for link in taken.links:
        if isinstance(link.round_trip_seconds, Unknown):
            reasons[f"unknown: links: {link.round_trip_seconds.unknown}"] = None
    return list(reasons)


def _show(taken: CapacitySnapshot, dtype: str, form: str) -> None:
    import json
    import sys

    if form != "table":
        data = taken.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        if form == "json":
            json.dump(data, sys.stdout, indent=2)
            print()
        else:
            import yaml

            yaml.safe_dump(data, sys.stdout, sort_keys=False)
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"nodes, {dtype}")
    columns = ("node", "free memory", "memory GB/s", "GFLOP/s", "block ms", "step ms", "in use", "age s")
    for name in columns:
        table.add_column(name, justify="left" if name == "node" else "right")
    for node in taken.nodes:
        free, rate, block, step, _, load, flops = (reading for _, reading in node.readings(dtype))
        cells = ((free, 1e-9, 2, " GB"), (rate, 1e-9, 1, ""), (flops, 1e-9, 1, ""), (block, 1e3, 3, ""))
        more = ((step, 1e3, 3, ""), (load, 100.0, 0, "%"))
        table.add_row(
            node.name, *(_cell(*cell) for cell in (*cells, *more)), f"{getattr(free, 'age_seconds', 0):.0f}"
        )
    console.print(table)
    links = Table(title="links: round trip ms / bandwidth MB/s")
    links.add_column("from")
    for node in taken.nodes:
        links.add_column(node.name, justify="right")
    known = {
        (link.from_node, link.to_node): (
            f"{_cell(link.round_trip_seconds, 1e3, 2, '')} / {_cell(link.bandwidth_bytes_per_second, 1e-6, 0, '')}"
        )
        for link in taken.links
    }
    for node in taken.nodes:
        links.add_row(node.name, *(known.get((node.name, other.name), "") for other in taken.nodes))
    console.print(links)


def _cell(reading: Any, factor: float, digits: int, unit: str) -> str:
    value = getattr(reading, "value", None)
    return "unknown" if value is None else f"{value * factor:.{digits}f}{unit}"
