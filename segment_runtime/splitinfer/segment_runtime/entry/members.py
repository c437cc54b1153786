"""The hosts that an entry knows: where they are, which of them leave, which of them still hold what nobody uses."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from splitinfer.optimizer.plan import Plan
from splitinfer.segment_runtime.entry import changes
from splitinfer.segment_runtime.entry.hosts import HostClient, HostError
from splitinfer.segment_runtime.proto import runtime_pb2 as pb

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class HostView:
    """A host as last seen."""

    address: str
    state: pb.HostState | None


class Members:
    """Clients by node, and what is known of the hosts behind them.

    Attributes:
        draining: nodes whose host has said that it is about to leave.
        unswept: nodes whose host may hold epochs that nobody serves any more.
    """

    def __init__(self) -> None:
        self._clients: dict[str, HostClient] = {}
        self.draining: set[str] = set()
        self.unswept: set[str] = set()
        self._background: set[asyncio.Task[None]] = set()

    def clients(self, nodes: Iterable[str]) -> dict[str, HostClient]:
        """Clients of these nodes. Raises KeyError for one that nobody has told of."""
        return {node: self._clients[node] for node in nodes}

    def update(self, addresses: Mapping[str, str]) -> None:
        """New addresses of hosts; a host that restarted has another one."""
        for node, address in addresses.items():
            known = self._clients.get(node)
            if known is None or known.address != address:
                self._clients[node] = HostClient(node, address)
                self.draining.discard(node)
                if known is not None:
                    self._later(known.close())  # calls that wait on it fail as HostError

    def leaves(self, node: str) -> bool:
        """A host says that it is about to leave; whether that is news."""
        if node in self.draining:
            return False
        log.info("host draining", node=node)
        self.draining.add(node)
        return True

    def forget(self, plan: Plan, session: int) -> None:
        """Have the hosts of a plan free a session now, also one that they are computing."""
        for node in plan.nodes:
            if (client := self._clients.get(node)) is not None:
                self._later(changes.forget(client, plan.epoch, session))

    def to_sweep(self) -> None:
        """Every host may hold something of another epoch."""
        self.unswept = set(self._clients)

    async def sweep(self, serving: Plan) -> None:
        """Have those hosts drop all but what serves; one that does not answer is asked again next time."""
        self.unswept = await changes.sweep(serving, self.clients(self.unswept))

    async def views(self) -> dict[str, HostView]:
        """Every known host, asked now."""
        clients = dict(self._clients)
        states = await asyncio.gather(*(_state(client) for client in clients.values()))
        return {
            node: HostView(client.address, state)
            for (node, client), state in zip(clients.items(), states, strict=True)
        }

    async def close(self) -> None:
        """Close the connections; the hosts keep what they have."""
        await asyncio.gather(*(client.close() for client in self._clients.values()), *self._background)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _state(client: HostClient) -> pb.HostState | None:
    try:
        return await client.describe(changes.DESCRIBE_SECONDS)
    except HostError:
        return None
