"""A capacity snapshot for a person: a table of nodes, and one of links while there are few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from splitinfer.optimizer.values import Known, Unknown

if TYPE_CHECKING:
    from rich.console import Console

    from splitinfer.optimizer.capacity import CapacitySnapshot, NodeCapacity

MATRIX_NODES = 12
"""Most nodes whose links are shown as a matrix."""
NAMES = 5
BUSY = 0.1
"""Share that others take, above which it is said."""
Reading = Known | Unknown


def short(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return ", ".join(names[:NAMES]) + more


def unknown_of(taken: CapacitySnapshot, dtype: str) -> list[str]:
    """Everything that is not known, with its reason; one line for what nodes, or links, share."""
    reasons: dict[str, list[str]] = {}
    for node in taken.nodes:
        for name, reading in node.readings(dtype):
            if isinstance(reading, Unknown):
                reasons.setdefault(f"{name}: {reading.unknown}", []).append(node.name)
    for link in taken.links:
        for reading in dict.fromkeys((link.round_trip_seconds, link.bandwidth_bytes_per_second)):
            if isinstance(reading, Unknown):
                pair = f"{link.from_node} to {link.to_node}"
                reasons.setdefault(f"links: {reading.unknown}", []).append(pair)
    everything = len(taken.nodes)
    return [
        why if len(of) == everything and not why.startswith("links") else f"{why} ({short(of)})"
        for why, of in reasons.items()
    ]


def busy(taken: CapacitySnapshot) -> str | None:
    """A warning where others use this machine: what was measured holds for as long as they do."""
    loads = [node.background_utilisation for node in taken.nodes]
    most = max((load.value for load in loads if isinstance(load, Known)), default=0.0)
    if most < BUSY:
        return None
    return (
        "warning: other processes keep this machine busy: a host beside them is left "
        f"{100 * (1 - most):.0f} % of its speed, and the snapshot says so"
    )


def show_table(taken: CapacitySnapshot, dtype: str) -> None:
    """Print both tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"nodes, {dtype}")
    numbers = ("free GB", "memory GB/s", "GFLOP/s", "block ms", "step ms", "in use")
    for name in ("node", *numbers, "age s", "source"):
        table.add_column(name, justify="left" if name in ("node", "source") else "right", overflow="fold")
    for node in taken.nodes:
        free, rate, block, step, _, load, flops = (reading for _, reading in node.readings(dtype))
        cells = ((free, 1e-9, 2, ""), (rate, 1e-9, 1, ""), (flops, 1e-9, 1, ""), (block, 1e3, 3, ""))
        more = ((step, 1e3, 3, ""), (load, 100.0, 0, "%"))
        table.add_row(
            node.name,
            *(_cell(*cell) for cell in (*cells, *more)),
            " / ".join(filter(None, (_age(free, load), _age(rate, flops, block, step)))),
            _sources(node, dtype),
        )
    console.print(table)
    trusted = [node.name for node in taken.nodes if node.trusted]
    line = f"age: of memory and load / of speeds. Trusted: {short(trusted) or 'no node'}."
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    _show_links(taken, console)


def _show_links(taken: CapacitySnapshot, console: Console) -> None:
    from rich.table import Table

    if len(taken.nodes) > MATRIX_NODES:
        known = sum(isinstance(link.round_trip_seconds, Known) for link in taken.links)
        pairs = len(taken.nodes) * (len(taken.nodes) - 1)
        console.print(f"links: {known:,} of {pairs:,} ordered pairs are known; -o yaml lists them")
        return
    links = Table(title="links: round trip ms / bandwidth MB/s")
    links.add_column("from")
    for node in taken.nodes:
        links.add_column(node.name, justify="right")
    cells = {
        (link.from_node, link.to_node): (
            f"{_cell(link.round_trip_seconds, 1e3, 2, '')} / {_cell(link.bandwidth_bytes_per_second, 1e-6, 0, '')}"
        )
        for link in taken.links
    }
    for node in taken.nodes:
        links.add_row(node.name, *(cells.get((node.name, other.name), "") for other in taken.nodes))
    console.print(links)


def _cell(reading: Reading, factor: float, digits: int, unit: str) -> str:
    if isinstance(reading, Unknown):
        return "unknown"
    return f"{reading.value * factor:.{digits}f}{unit}"


def _age(*readings: Reading) -> str:
    """The oldest that is known."""
    ages = [reading.age_seconds for reading in readings if isinstance(reading, Known)]
    return f"{max(ages):.0f}" if ages else ""


def _sources(node: NodeCapacity, dtype: str) -> str:
    return ", ".join(sorted({r.source for _, r in node.readings(dtype) if isinstance(r, Known)}))
