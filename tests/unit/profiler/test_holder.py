"""The last snapshot while its source does not answer: it ages, by a clock that nobody sets, and says why."""

from __future__ import annotations

import pytest

from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.profiler import series as s
from splitinfer.profiler.ages import StaleBounds
from splitinfer.profiler.assembly import assemble
from splitinfer.profiler.holder import Held, Holder, clock
from splitinfer.profiler.inventory import Inventory
from splitinfer.profiler.node_speeds import Asked
from splitinfer.profiler.sources import Gathered, SourceError
from tests.support.agent_values import DTYPE, MODEL, node_values, samples


class World:
    """A source whose clock and answers the test sets, and a monotonic clock beside it."""

    def __init__(self) -> None:
        self.server = 1_000_000.0
        self.own = 50.0
        self.memory = 1e9
        self.fails: str | None = None
        self.slow = 0.0
        self.holder = Holder(self.read, lambda: self.own)

    async def read(self) -> CapacitySnapshot:
        """What the source knows; its samples are 5 s old."""
        if self.fails is not None:
            raise SourceError(self.fails)
        of = samples("a", node_values(memory=self.memory), at=self.server - 5)
        taken = assemble(Gathered(of, self.server), Asked(MODEL, DTYPE), Inventory(), StaleBounds())
        self.own += self.slow
        return taken

    def pass_(self, seconds: float) -> None:
        """On both clocks."""
        self.server += seconds
        self.own += seconds


def usable(held: Held) -> dict[str, float | None]:
    """What the optimizer would still use, by name."""
    assert held.snapshot is not None
    node = held.snapshot.nodes[0]
    return {
        "memory": held.snapshot.usable(node.free_memory_bytes, held.now_seconds),
        "speed": held.snapshot.usable(node.memory_bandwidth_bytes_per_second, held.now_seconds, "speed"),
    }


async def test_before_anything_was_learned_nothing_is_held_and_the_reason_is_there() -> None:
    """No empty snapshot in its place."""
    world = World()
    assert world.holder.held() == Held(None, 0.0)
    world.fails = "refused"
    assert await world.holder.refresh() == Held(None, 0.0, "refused", 0.0)


async def test_a_source_that_is_down_leaves_the_last_snapshot_to_grow_old() -> None:
    """State first, then speeds, until nothing is known; the reason and since when are beside it, and gone when it is back."""
    world = World()
    assert (await world.holder.refresh()).last_error is None
    world.fails = "no route"
    world.pass_(10)
    held = await world.holder.refresh()
    assert (held.last_error, held.failing_seconds) == ("no route", 0.0)
    assert usable(held) == {"memory": 1e9, "speed": 8e9}
    world.pass_(103)  # 2 + 5 s old when it was read
    assert usable(await world.holder.refresh()) == {"memory": 1e9, "speed": 8e9}
    world.pass_(1)
    held = await world.holder.refresh()
    assert usable(held) == {"memory": None, "speed": 8e9}
    assert held.failing_seconds == 104
    world.pass_(500)
    assert usable(world.holder.held()) == {"memory": None, "speed": None}
    world.fails, world.memory = None, 2e9
    held = await world.holder.refresh()
    assert (held.last_error, held.failing_seconds) == (None, 0.0)
    assert usable(held) == {"memory": 2e9, "speed": 8e9}


async def test_the_time_that_an_answer_takes_counts() -> None:
    """A slow one is as old as its question."""
    world = World()
    world.slow = 120.0
    assert usable(await world.holder.refresh())["memory"] is None


async def test_a_clock_of_the_source_that_goes_back_makes_nothing_young() -> None:
    """What it has from before has times that are yet to come, or look new: the last snapshot ages on until it has caught up."""
    world = World()
    await world.holder.refresh()
    world.pass_(100)
    world.server -= 3600
    world.memory = 3e9
    held = await world.holder.refresh()
    assert held.last_error == (
        "the clock of the source went back by 3500 s: what it has is older than it looks"
    )
    assert usable(held)["memory"] == 1e9
    world.pass_(20)
    assert usable(await world.holder.refresh())["memory"] is None
    world.pass_(3490)
    assert usable(await world.holder.refresh())["memory"] == 3e9


async def test_a_clock_of_the_source_that_goes_forward_makes_everything_old_at_most() -> None:
    """Its samples have times of before the jump: unknown until there are new ones, and then as before."""
    world = World()
    await world.holder.refresh()
    of = samples("a", node_values(), at=1_000_000 - 5)
    jumped = assemble(Gathered(of, 1_003_600.0), Asked(MODEL, DTYPE), Inventory(), StaleBounds())

    async def read() -> CapacitySnapshot:
        return jumped

    held = await Holder(read, lambda: 0.0).refresh()
    assert usable(held) == {"memory": None, "speed": None}
    world.server += 3600
    assert usable(await world.holder.refresh())["memory"] == 1e9


async def test_two_servers_behind_one_address_may_differ_a_little() -> None:
    """Their clocks do, by less than what would matter."""
    world = World()
    await world.holder.refresh()
    world.server -= 4
    world.memory = 2e9
    held = await world.holder.refresh()
    assert held.last_error is None
    assert usable(held)["memory"] == 2e9


async def test_another_fault_is_not_taken_for_an_answer_that_failed() -> None:
    """A fault of ours is raised, and not shown as the source's."""

    async def broken() -> CapacitySnapshot:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Holder(broken).refresh()


def test_the_clock_only_goes_on() -> None:
    """And no NODE_AGE is made of it: ages of the source are its own."""
    assert clock() <= clock()
    assert s.NODE_AGE.name.endswith("_seconds")
