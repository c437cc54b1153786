"""Random changes of plan and random deaths of hosts, for the tests and the soak alike."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

from tests.support.fleet import Fleet, Load, random_plan
from tests.support.pipelines import Entry


class Churn:
    """What happens to a pipeline while its streams run."""

    def __init__(self, entry: Entry, fleet: Fleet, nodes: Sequence[str], rng: Random, context: int) -> None:
        self.entry = entry
        self.fleet = fleet
        self.nodes = nodes
        self.rng = rng
        self.context = context
        self.changes = 0
        self.kills = 0

    def post(self) -> int:
        """Post a random plan; gives its epoch."""
        plan = random_plan(self.rng, self.entry, self.nodes, context=self.context)
        self.entry.coordinator.accept(plan, {n: self.fleet[n].address for n in self.nodes})
        self.changes += 1
        return plan.epoch

    async def change(self, load: Load) -> None:
        """At a random moment another plan, or two quickly after one another, or none until the last one serves."""
        await load.more_tokens(self.rng.randint(0, 30))
        epoch = self.post()
        if self.rng.random() < 0.3:
            await asyncio.sleep(self.rng.random() * 0.05)  # a moment of the change, not a wait for it
            epoch = self.post()
        if self.rng.random() < 0.7:
            await self.entry.until_serving(epoch)

    async def kill(self, load: Load) -> None:
        """SIGKILL at a random moment, half of the time in the middle of a change; then the host comes back."""
        await load.more_tokens(self.rng.randint(0, 30))
        if self.rng.random() < 0.5:
            self.post()
            await asyncio.sleep(self.rng.random() * 0.3)  # prepare, pause or commit, as it happens
        plan = self.entry.pipeline.plan
        serving = plan.nodes if plan is not None else ()
        node = self.rng.choice(serving if serving and self.rng.random() < 0.8 else self.nodes)
        self.fleet.kill(node)
        self.kills += 1
        if self.rng.random() < 0.5:
            await load.more_tokens(self.rng.randint(1, 20))  # it goes on without that host
        self.entry.coordinator.update_hosts(await asyncio.to_thread(self.fleet.ensure, [node]))
        await load.more_tokens(1)
