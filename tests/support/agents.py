"""Values that an agent's state is made of, and an agent whose clock and surroundings the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from splitinfer.profiler.board import Board, Ports, Settings
from splitinfer.profiler.exporter import Published
from splitinfer.profiler.link_times import LinkTimes
from splitinfer.profiler.links import LinkProbeError
from splitinfer.profiler.loop import run
from splitinfer.profiler.serving import ServingError
from splitinfer.profiler.speeds import BlockTimes, ProbeResult
from splitinfer.profiler.state import AgentState
from splitinfer.profiler.targets import ProbeTarget, Targets, TargetsError
from splitinfer.profiler.window import Counters, CpuTime

TIMES = LinkTimes(0.001, 0.002, 1e8)


def probe_result(**changes: object) -> ProbeResult:
    """A node of 10 GB/s whose blocks take 1.5 ms for a token and 15 ms for a chunk."""
    values: dict[str, object] = {
        "model_digest": "a" * 64,
        "dtype": "float32",
        "engine": "onnx",
        "version": "1",
        "threads": 1,
        "weight_bytes": 14_000_000,
        "kv_bytes_per_token": 1536,
        "context_tokens": 128,
        "prefill_flops_per_token": 7e6,
        "decode_flops_per_token": 7.2e6,
        "memory_bytes_per_second": 1e10,
        "frame_seconds": 1e-5,
        "frame_bytes_per_second": 2e9,
        "times": (
            BlockTimes(blocks=1, decode_one=0.002, prefill=0.016),
            BlockTimes(blocks=2, decode_one=0.0035, prefill=0.031),
        ),
    }
    return ProbeResult.model_validate(values | changes)


@dataclass
class World:
    """Everything around one agent. Time passes only when somebody sleeps, or a probe runs.

    Attributes:
        now: monotonic seconds.
        busy: CPUs that all keep busy; `runnable` goes with it.
        cpus: usable, at a time.
        targets: put there by a test; an error is raised, once.
        metrics: of serving processes by URL, at a time; none: it does not answer.
        links: by address; none: it does not answer.
        probe: what probes find, how long they take, and what they cost.
        until: the agent is stopped then.
    """

    now: float = 1000.0
    busy: float = 0.0
    cpus: Callable[[float], float] = lambda _now: 2.0
    targets: list[Targets | TargetsError] = field(default_factory=list)
    metrics: dict[str, Callable[[float], str]] = field(default_factory=dict)
    links: dict[str, LinkTimes] = field(default_factory=dict)
    probe: ProbeResult | str = field(default_factory=probe_result)
    probe_seconds: float = 2.0
    probe_cost: float = 0.9
    probed: list[tuple[float, ProbeTarget]] = field(default_factory=list)
    asked: list[tuple[float, str]] = field(default_factory=list)
    _jiffies: float = 0.0
    _busy_jiffies: float = 0.0
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _end: float = 0.0

    def pass_time(self, seconds: float, more_busy: float = 0.0) -> None:
        """With so many CPUs busy beside `busy`."""
        self.now += seconds
        self._jiffies += 200 * seconds
        self._busy_jiffies += 100 * seconds * (self.busy + more_busy)

    def ports(self) -> Ports:
        """Of an agent in this world."""
        return Ports(
            clock=lambda: self.now,
            sleep=self._sleep,
            counters=lambda: Counters(
                self.now,
                CpuTime(round(self._busy_jiffies), 0, round(self._jiffies - self._busy_jiffies)),
                0.0,
            ),
            runnable=lambda: round(self.busy),
            memory=lambda: 8 << 30,
            cpus=lambda: (self.cpus(self.now), 2),
            targets=self._targets,
            scrape=self._scrape,
            probe=self._probe,
            measure=self._measure,
            link_bytes=1_000_000,
        )

    async def run(self, seconds: float, published: Published, **settings: float) -> AgentState:
        """An agent for so long; what it knew then."""
        values = {"interval": 10.0, "probe_interval": 60.0, "probe_budget": 60.0, "serving_threshold": 0.05,
                  "link_budget": 400e6} | settings  # fmt: skip
        self._end = self.now + seconds
        board = Board(Settings(node="me", **values), self.ports(), published)
        task = asyncio.create_task(run(board))
        over = asyncio.create_task(self._over.wait())
        await asyncio.wait({task, over}, return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        if task.done():
            task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._over = asyncio.Event()
        return board.state

    async def _sleep(self, seconds: float) -> None:
        if self.now >= self._end:
            self._over.set()
            await asyncio.Event().wait()
        self.pass_time(seconds)
        for _ in range(20):  # the other task has its turn
            await asyncio.sleep(0)

    def _targets(self) -> Targets | None:
        if not self.targets:
            return None
        found = self.targets.pop(0)
        if isinstance(found, TargetsError):
            raise found
        return found

    async def _scrape(self, url: str) -> str:
        await asyncio.sleep(0)
        if url not in self.metrics:
            raise ServingError(f"{url}: Connection refused")
        return self.metrics[url](self.now)

    async def _probe(self, target: ProbeTarget) -> tuple[ProbeResult | str, float]:
        self.probed.append((self.now, target))
        self.pass_time(self.probe_seconds, more_busy=1.0)
        await asyncio.sleep(0)
        return self.probe, self.probe_cost

    async def _measure(self, address: str, sent: Callable[[int], None]) -> LinkTimes:
        self.asked.append((self.now, address))
        await asyncio.sleep(0)
        if address not in self.links:
            raise LinkProbeError(f"{address}: UNAVAILABLE")
        sent(400_000)
        sent(600_000)
        return self.links[address]


def exported(text: str) -> Mapping[str, float]:
    """An exposition as values by name and labels, as it is written."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
