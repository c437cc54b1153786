"""What an agent knows at one time: immutable, each reading with the monotonic time it was taken at. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from splitinfer.profiler.calibration import Calibration
from splitinfer.profiler.link_times import LinkTimes
from splitinfer.profiler.series import PROBE_OUTCOMES
from splitinfer.profiler.speeds import ProbeResult, Speeds
from splitinfer.profiler.targets import ProbeTarget


@dataclass(frozen=True, slots=True)
class NodeReading:
    """The node over one window. None is unknown; units are those of `splitinfer.profiler.series`."""

    at: float
    memory_available_bytes: int | None
    cpus: float
    machine_cpus: int | None
    busy_ratio: float | None
    runnable: float | None
    serving_ratio: float | None


@dataclass(frozen=True, slots=True)
class ProbeReading:
    """The last probe of one target, and how far live steps since were from it."""

    at: float
    result: ProbeResult
    speeds: Speeds
    calibration: Calibration = field(default_factory=Calibration)

    @property
    def labels(self) -> tuple[str, str, str]:
        """Model, dtype and engine, as they are exported."""
        return (self.result.model_digest, self.result.dtype, self.result.engine)


@dataclass(frozen=True, slots=True)
class LinkReading:
    """One link from this node; without ``times`` it was probed in vain."""

    at: float
    times: LinkTimes | None
    live: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """Since the agent began."""

    probe_runs: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(PROBE_OUTCOMES, 0))
    probe_cpu_seconds: float = 0.0
    targets_errors: int = 0
    scrape_errors: int = 0
    link_errors: int = 0
    link_bytes: int = 0

    def with_run(self, outcome: str, cpu_seconds: float = 0.0) -> Counts:
        """One probe more, or one that did not begin."""
        runs = {**self.probe_runs, outcome: self.probe_runs[outcome] + 1}
        return replace(self, probe_runs=runs, probe_cpu_seconds=self.probe_cpu_seconds + cpu_seconds)


@dataclass(frozen=True, slots=True)
class AgentState:
    """All of it."""

    node: NodeReading | None = None
    probes: Mapping[ProbeTarget, ProbeReading] = field(default_factory=dict)
    links: Mapping[str, LinkReading] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)

    def with_probe(self, target: ProbeTarget, reading: ProbeReading) -> AgentState:
        """A probe in place of the last one of its target, whose calibration it ends."""
        return replace(self, probes={**self.probes, target: reading})

    def with_link(self, peer: str, reading: LinkReading) -> AgentState:
        """A newer reading of a link, also where it says that what was known of it is known no more."""
        return replace(self, links={**self.links, peer: reading})

    def only(self, probes: frozenset[ProbeTarget], peers: frozenset[str]) -> AgentState:
        """Without what has left the targets."""
        return replace(
            self,
            probes={target: reading for target, reading in self.probes.items() if target in probes},
            links={peer: reading for peer, reading in self.links.items() if peer in peers},
        )
