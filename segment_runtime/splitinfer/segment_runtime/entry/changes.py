"""One change of plan against the hosts: fence, prepare, commit, and the sweep afterwards.

Errors
------
ChangeFailed              a change that was given up; says whether a host refused it
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import structlog

from splitinfer.optimizer.plan import Plan
from splitinfer.segment_runtime.channel import FrameLink, LinkError
from splitinfer.segment_runtime.entry.hosts import HostClient, HostError
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.wire import WEIGHT_DTYPES

log = structlog.get_logger()

DESCRIBE_SECONDS = 5.0
"""Long for an answer of a few bytes, because a host whose CPUs are all taken is not a dead one: a dead one's
connection breaks at once."""
COMMIT_SECONDS = 20.0
RELEASE_SECONDS = 20.0
FORGET_SECONDS = 5.0

T = TypeVar("T")
Clients = Mapping[str, HostClient]
Identities = Sequence[pb.Identity]


class ChangeFailed(Exception):
    """A change that was given up. ``refused``: a host said no, so the same plan would fail again."""

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


async def all_of(work: Mapping[str, Awaitable[T]]) -> dict[str, T]:
    """All of it, or the first HostError as ChangeFailed; the rest is cancelled then and waited for."""
    tasks = {name: asyncio.ensure_future(task) for name, task in work.items()}
    try:
        await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
    errors = [e for t in tasks.values() if not t.cancelled() and (e := t.exception()) is not None]
    for error in errors:
        if not isinstance(error, HostError):
            raise error
    if errors:
        refused = any(isinstance(error, HostError) and error.answered for error in errors)
        raise ChangeFailed("; ".join(str(error) for error in errors), refused=refused)
    return {name: task.result() for name, task in tasks.items()}


async def fence(plan: Plan, clients: Clients, keep: Plan | None) -> Plan:
    """The plan under an epoch that no host has seen; hosts drop what no entry serves any more.

    An entry that was restarted knows nothing of its predecessor's epochs; the hosts do.

    Args:
        plan: what is to serve.
        clients: its hosts.
        keep: the plan that serves, or whose blocks are worth keeping because the new plan may share them.

    Raises:
        ChangeFailed: a host does not answer, shuts down, or is another than it should be.
    """
    states = await all_of({node: client.describe(DESCRIBE_SECONDS) for node, client in clients.items()})
    for node, state in states.items():
        if state.draining:
            raise ChangeFailed(f"{node}: is shutting down", refused=False)
        if state.node != node:
            raise ChangeFailed(
                f"hosts.{node}: at {clients[node].address} answers {state.node}; give the address of {node}",
                refused=True,
            )
    for node, state in states.items():
        for stale in _stale(node, state, keep):
            with contextlib.suppress(HostError):
                await clients[node].release(stale, RELEASE_SECONDS)
    fences = max(state.fence for state in states.values())
    return plan if plan.epoch > fences else plan.with_epoch(fences + 1)


def prepare_request(plan: Plan, node: str, addresses: Mapping[str, str], back: str) -> pb.PrepareRequest:
    """What ``node`` has to load; ``back`` is where the last hop pushes to."""
    last = len(plan.segments) - 1

    def next_of(hop: int) -> str:
        return back if hop == last else addresses[plan.segments[hop + 1].node]

    return pb.PrepareRequest(
        epoch=plan.epoch,
        plan_digest=plan.digest,
        model_name=plan.model.name,
        model_digest=plan.model.digest,
        dtype=WEIGHT_DTYPES[plan.dtype],
        ranges=[
            pb.RangeSpec(hop=hop, start=s.start, stop=s.stop, next=next_of(hop))
            for hop, s in plan.ranges_of(node)
        ],
        kv_budget_tokens=plan.kv_budget_tokens,
        max_context_tokens=plan.max_context_tokens,
        node=node,
        hops=len(plan.segments),
    )


async def prepare(
    plan: Plan, clients: Clients, back: str, note: Callable[[str, int, int], None]
) -> Identities:
    """Have the hosts load; ``note(node, loaded, total)``. Raises ChangeFailed, and nothing stays loaded then.

    Returns:
        What computes each hop, in their order.
    """
    addresses = {node: client.address for node, client in clients.items()}

    async def one(node: str, client: HostClient) -> Sequence[pb.Identity]:
        request = prepare_request(plan, node, addresses, back)
        return await client.prepare(request, lambda done, total: note(node, done, total))

    try:
        found = await all_of({node: one(node, client) for node, client in clients.items()})
    except ChangeFailed:
        await release(plan.epoch, clients)
        raise
    hops = {
        hop: identity
        for node, identities in found.items()
        for (hop, _), identity in zip(plan.ranges_of(node), identities, strict=True)
    }
    return [identity for _, identity in sorted(hops.items())]


async def commit(
    plan: Plan,
    clients: Clients,
    on_error: Callable[[pb.StreamError], None],
    on_lost: Callable[[str], None],
) -> FrameLink:
    """Switch all hosts and open the link to the first. Raises ChangeFailed: the chain is broken then."""
    await all_of({node: client.commit(plan.epoch, COMMIT_SECONDS) for node, client in clients.items()})
    first = clients[plan.segments[0].node].address
    link = FrameLink(first, plan.epoch, 0, on_error=on_error, on_lost=on_lost)
    try:
        await link.open(COMMIT_SECONDS)
    except LinkError as error:
        raise ChangeFailed(str(error), refused=False) from error
    return link


async def release(epoch: int, clients: Clients) -> None:
    """Have hosts drop an epoch; one that does not answer has nothing left to drop, or is swept later."""
    await asyncio.gather(
        *(client.release(epoch, RELEASE_SECONDS) for client in clients.values()), return_exceptions=True
    )


async def forget(client: HostClient, epoch: int, session: int) -> None:
    """Have a host free a session at once. If that fails, the release in the next frame does it."""
    with contextlib.suppress(HostError):
        await client.forget(epoch, [session], FORGET_SECONDS)


async def sweep(serving: Plan, clients: Clients) -> set[str]:
    """Have hosts drop all but what serves. Gives the hosts that did not answer.

    Not to be called while a change is under way.
    """

    async def one(node: str, client: HostClient) -> None:
        state = await client.describe(DESCRIBE_SECONDS)
        for stale in _stale(node, state, serving):
            await client.release(stale, RELEASE_SECONDS)

    results = await asyncio.gather(*(one(n, c) for n, c in clients.items()), return_exceptions=True)
    return {name for name, result in zip(clients, results, strict=True) if isinstance(result, HostError)}


def _stale(node: str, state: pb.HostState, keep: Plan | None) -> set[int]:
    """Epochs on a host that are not of the plan to keep.

    On a host that the plan does not use every epoch is: an entry before this one may have left some that are newer
    than the plan's, or have its very number by chance.
    """
    kept = {keep.epoch} if keep is not None and node in keep.nodes else set[int]()
    return {r.epoch for r in state.ranges} - kept
