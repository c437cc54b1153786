"""What the agent's two tasks share: its settings, whom it asks, its targets, and the state that is published."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from splitinfer.profiler.exporter import Published
from splitinfer.profiler.link_schedule import Peer
from splitinfer.profiler.link_times import LinkTimes
from splitinfer.profiler.live_links import LiveTimes
from splitinfer.profiler.speeds import ProbeResult
from splitinfer.profiler.state import AgentState
from splitinfer.profiler.targets import ProbeTarget, Targets, TargetsError
from splitinfer.profiler.window import Counters

log = logging.getLogger("splitinfer.agent")


@dataclass(frozen=True, slots=True)
class Settings:
    """See the agent's options of the same names."""

    node: str
    interval: float
    probe_interval: float
    probe_budget: float
    serving_threshold: float
    link_budget: float


@dataclass(frozen=True, slots=True)
class Ports:
    """What the agent reads and starts; tests put others in their place.

    Attributes:
        clock: monotonic, seconds.
        sleep: as asyncio's.
        counters: of the CPUs, now.
        runnable: threads that want to run, now.
        memory: that is available, bytes.
        cpus: usable, and of the machine.
        targets: changed since the last call, or None. Raises TargetsError.
        scrape: metrics of a serving process. Raises ServingError.
        probe: one block; what was found or why not, and the CPU seconds it took.
        measure: one link; what it sends it says as it goes. Raises LinkProbeError.
        link_bytes: that one such measurement sends at most.
        live: by peer, what traffic that flows anyway tells of its link.
    """

    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    counters: Callable[[], Counters]
    runnable: Callable[[], int | None]
    memory: Callable[[], int | None]
    cpus: Callable[[], tuple[float, int | None]]
    targets: Callable[[], Targets | None]
    scrape: Callable[[str], Awaitable[str]]
    probe: Callable[[ProbeTarget], Awaitable[tuple[ProbeResult | str, float]]]
    measure: Callable[[str, Callable[[int], None]], Awaitable[LinkTimes]]
    link_bytes: int
    live: Callable[[Mapping[str, Peer]], Mapping[str, LiveTimes]] = lambda _peers: {}


class Board:
    """The state, and the targets in force."""

    def __init__(self, settings: Settings, ports: Ports, published: Published) -> None:
        self.settings = settings
        self.ports = ports
        self.targets = Targets()
        self._published = published
        self._said: dict[str, str] = {}

    @property
    def state(self) -> AgentState:
        """As it is published."""
        return self._published.get()

    def put(self, state: AgentState) -> None:
        """In place of the last. There is one thread that does, and it does not wait between reading and writing."""
        self._published.put(state)

    def count(self, **more: int) -> None:
        """Add to the counts of these names."""
        counts = self.state.counts
        self.put(
            replace(
                self.state,
                counts=replace(counts, **{name: getattr(counts, name) + by for name, by in more.items()}),
            )
        )

    def say(self, about: str, what: str | None) -> None:
        """Log what is wrong, once for as long as it stays so; None: nothing is."""
        if what is None:
            self._said.pop(about, None)
        elif self._said.get(about) != what:
            self._said[about] = what
            log.warning("%s", what)

    def take_targets(self) -> None:
        """Those of the file, if it has changed; what left them leaves the state."""
        try:
            found = self.ports.targets()
        except TargetsError as error:
            self.count(targets_errors=1)
            log.warning("targets: %s; the last good ones stay in force", error)
            return
        if found is not None:
            self.targets = found
            self.put(self.state.only(frozenset(found.probes), frozenset(found.peers)))
