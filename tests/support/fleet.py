"""Several real host processes for many tests, load on a pipeline, and plans drawn at random."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from splitinfer.optimizer.plan import Plan, Segment, cuts_at
from splitinfer.segment_runtime.channel import open_channel
from splitinfer.segment_runtime.entry.generate import GenerationError
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.proto import runtime_pb2_grpc as rpc
from tests.support.forked import ForkedHost, fork_host
from tests.support.pipelines import Entry, plan_for
from tests.support.twins import Twin

SETTLE_SECONDS = 30


class Fleet:
    """Host processes by node name. They outlive tests, so epochs only grow; `running_entry` copes with that."""

    def __init__(self, store: Path, logs: Path, *options: str) -> None:
        self.options = options
        self.store = store
        self.logs = logs
        self._hosts: dict[str, ForkedHost] = {}

    def ensure(self, nodes: Iterable[str]) -> dict[str, str]:
        """Start those of ``nodes`` that do not run; gives the addresses of all of them."""
        nodes = list(nodes)
        dead = [n for n in nodes if n not in self._hosts or not self._hosts[n].alive]
        for node in dead:
            self._hosts[node] = fork_host(self.store, node, self.logs, *self.options)
        return {node: self._hosts[node].address for node in nodes}

    def __getitem__(self, node: str) -> ForkedHost:
        return self._hosts[node]

    def kill(self, node: str) -> None:
        """SIGKILL a host."""
        self._hosts[node].kill()

    def freeze(self, node: str) -> None:
        """SIGSTOP."""
        self._hosts[node].signal(signal.SIGSTOP)

    def thaw(self, node: str) -> None:
        """SIGCONT."""
        self._hosts[node].signal(signal.SIGCONT)

    def resident_bytes(self, node: str) -> int:
        """RSS of a host."""
        return int(psutil.Process(self._hosts[node].pid).memory_info().rss)

    def stop(self) -> None:
        """End all of them."""
        for host in self._hosts.values():
            if host.alive:
                host.signal(signal.SIGCONT)
        with contextlib.ExitStack() as stack:  # one that does not end must not leave the others running
            for host in self._hosts.values():
                stack.callback(host.stop)


async def describe(address: str) -> pb.HostState:
    """What a host says of itself."""
    async with open_channel(address) as channel:
        return await rpc.HostControlStub(channel).Describe(pb.DescribeRequest(), timeout=20)


async def settled(address: str, ranges: int) -> pb.HostState:
    """Wait until a host holds ``ranges`` ranges and no KV at all; gives its last word, so that a test can say why."""
    state = await describe(address)
    for _ in range(SETTLE_SECONDS * 20):
        if len(state.ranges) == ranges and not any(r.kv_bytes or r.sessions for r in state.ranges):
            break
        await asyncio.sleep(0.05)
        state = await describe(address)
    return state


async def assert_no_leak(entry: Entry, addresses: Mapping[str, str]) -> None:
    """No session anywhere, no KV on any host, and weights only of the plan that serves."""
    assert entry.pipeline.sessions() == (0, 0)
    plan = entry.pipeline.plan
    assert plan is not None
    for node, address in addresses.items():
        wanted = plan.ranges_of(node)
        state = await settled(address, len(wanted))
        held = [(r.epoch, r.hop, r.start, r.stop, r.kv_bytes, r.sessions) for r in state.ranges]
        assert held == [(plan.epoch, hop, s.start, s.stop, 0, 0) for hop, s in wanted], f"{node} holds {held}"


def random_segments(rng: Random, blocks: int, nodes: Sequence[str], most: int) -> tuple[Segment, ...]:
    """1 to ``most`` segments over random nodes; a node may come twice (the U-shape), but not twice in a row."""
    count = rng.randint(1, min(most, blocks))
    cuts = sorted(rng.sample(range(1, blocks), count - 1))
    chosen: list[str] = []
    for _ in range(count):
        chosen.append(rng.choice([n for n in nodes if not chosen or n != chosen[-1] or len(nodes) == 1]))
    return cuts_at(blocks, cuts, chosen)


def random_plan(rng: Random, entry: Entry, nodes: Sequence[str], *, context: int, most: int = 6) -> Plan:
    """A plan of the next epoch."""
    segments = random_segments(rng, entry.model.index.blocks, nodes, most)
    return plan_for(entry.model, segments, epoch=entry.coordinator.newest_epoch + 1, context=context)


@dataclass
class Load:
    """Streams that run one request after the other, each held against its twin."""

    entry: Entry
    twins: Sequence[Twin]
    streams: int = 4
    seed: int = 0
    finished: int = 0
    wrong: list[str] = field(default_factory=list)
    _stop: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(self.streams)]
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        self._stop = True
        if kind is not None:
            for task in self._tasks:
                task.cancel()
        async with asyncio.timeout(120):
            await asyncio.gather(*self._tasks, return_exceptions=kind is not None)

    async def _run(self, number: int) -> None:
        rng = Random(f"{self.seed}-{number}")
        while not self._stop:
            twin = rng.choice(self.twins)
            tokens: list[int] = []
            try:
                async for event in self.entry.pipeline.submit(twin.request):
                    tokens.append(event.token)  # noqa: PERF401  # what came before an error counts
            except GenerationError as error:
                self.wrong.append(
                    f"stream {number} after {len(tokens)} tokens: {type(error).__name__}: {error}"
                )
                return
            if tuple(tokens) != twin.tokens:
                same = next(
                    (i for i, (a, b) in enumerate(zip(tokens, twin.tokens, strict=False)) if a != b), -1
                )
                self.wrong.append(
                    f"stream {number} (temperature {twin.request.sampling.temperature}): differs at token {same} of "
                    f"{len(twin.tokens)}, came {len(tokens)}"
                )
                return
            self.finished += 1

    async def more_tokens(self, count: int, seconds: float = 60) -> None:
        """Wait until ``count`` more tokens have come, or a stream went wrong."""
        wanted = self.entry.pipeline.observed.tokens_total + count
        async with asyncio.timeout(seconds):
            # A counter of the code under test: there is no event to wait for.
            while not (self.wrong or self.entry.pipeline.observed.tokens_total >= wanted):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
