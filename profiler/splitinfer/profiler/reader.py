"""Reading the capacity snapshot from a source: the one way for all who plan."""

from __future__ import annotations

from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.profiler.ages import StaleBounds
from splitinfer.profiler.assembly import assemble
from splitinfer.profiler.inventory import Inventory
from splitinfer.profiler.node_speeds import Asked
from splitinfer.profiler.sources import Gathered, Source

NOBODY = Inventory()
BOUNDS = StaleBounds()


async def read_snapshot(
    source: Source, asked: Asked, inventory: Inventory = NOBODY, bounds: StaleBounds = BOUNDS
) -> tuple[CapacitySnapshot, Gathered]:
    """The snapshot, and what it was made of: its ``failures`` say what could not be asked.

    Raises:
        SourceError: nothing was learned.
    """
    gathered = await source.gather()
    return assemble(gathered, asked, inventory, bounds), gathered
