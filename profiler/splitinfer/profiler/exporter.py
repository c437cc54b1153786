"""The agent's state as Prometheus series, made when it is scraped: names and labels are `splitinfer.profiler.series`'.

What is unknown is absent. Ages are the difference of two readings of one monotonic clock, so that no wall clock matters.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from splitinfer.profiler import series as names
from splitinfer.profiler.series import AGENT_SERIES, Series
from splitinfer.profiler.speeds import block_seconds
from splitinfer.profiler.state import AgentState, ProbeReading

Row = tuple[Series, tuple[str, ...], float | None]


class Published:
    """The newest state, for the thread that is scraped."""

    def __init__(self, state: AgentState) -> None:
        self._lock = threading.Lock()
        self._state = state

    def put(self, state: AgentState) -> None:
        """In place of the last."""
        with self._lock:
            self._state = state

    def get(self) -> AgentState:
        """The newest."""
        with self._lock:
            return self._state


class AgentCollector(Collector):
    """All series of one agent."""

    def __init__(
        self,
        node: str,
        info: tuple[str, str],
        published: Published,
        clock: Callable[[], float],
        device_memory_seconds: float,
    ) -> None:
        """Export what is ``published`` at each scrape.

        Args:
            node: its name.
            info: version of the agent, and the device that hosts use.
            published: the state.
            clock: the monotonic clock of the state's times.
            device_memory_seconds: how long a probe tells the device's free memory.
        """
        self._node = node
        self._info = info
        self._published = published
        self._clock = clock
        self._device_memory_seconds = device_memory_seconds

    def describe(self) -> Iterable[Metric]:
        """No metric without a scrape: what there is depends on what is known."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The families that have a known value, in the order of `AGENT_SERIES`."""
        state, now = self._published.get(), self._clock()
        rows = list(self._rows(state, now))
        for series in AGENT_SERIES:
            known = [(labels, value) for of, labels, value in rows if of is series and value is not None]
            if known:
                kind = CounterMetricFamily if series.kind == "counter" else GaugeMetricFamily
                family = kind(series.name, series.help, labels=series.labels)
                for labels, value in known:
                    family.add_metric((self._node, *labels), value)
                yield family

    def _rows(self, state: AgentState, now: float) -> Iterator[Row]:
        yield names.NODE_INFO, self._info, 1.0
        yield from self._counts(state)
        node = state.node
        if node is not None:
            yield names.NODE_AGE, (), now - node.at
            yield names.NODE_MEMORY, (), node.memory_available_bytes
            yield names.NODE_DEVICE_MEMORY, (), self._device_memory(state, now)
            yield names.NODE_CPUS, (), node.cpus
            yield names.NODE_MACHINE_CPUS, (), node.machine_cpus
            yield names.NODE_CPU_BUSY, (), node.busy_ratio
            yield names.NODE_RUNNABLE, (), node.runnable
            yield names.NODE_SERVING, (), node.serving_ratio
        # Two targets may turn out to be the same: the engine "auto" is another by name.
        newest = {reading.labels: reading for reading in sorted(state.probes.values(), key=lambda r: r.at)}
        for reading in newest.values():
            yield from _probe(reading, now)
        for peer, link in state.links.items():
            labels = (peer,)
            yield names.LINK_AGE, labels, now - link.at
            if link.times is None:
                continue  # tried and in vain, which a reader must not take for never tried
            yield names.LINK_MEDIAN, labels, link.times.round_trip_median_seconds
            yield names.LINK_P95, labels, link.times.round_trip_p95_seconds
            yield names.LINK_BANDWIDTH, labels, link.times.bandwidth_bytes_per_second
            yield names.LINK_LIVE, labels, float(link.live)

    @staticmethod
    def _counts(state: AgentState) -> Iterator[Row]:
        counts = state.counts
        for outcome, runs in counts.probe_runs.items():
            yield names.PROBE_RUNS, (outcome,), runs
        yield names.PROBE_CPU, (), counts.probe_cpu_seconds
        yield names.TARGETS_ERRORS, (), counts.targets_errors
        yield names.SCRAPE_ERRORS, (), counts.scrape_errors
        yield names.LINK_ERRORS, (), counts.link_errors
        yield names.LINK_BYTES, (), counts.link_bytes

    def _device_memory(self, state: AgentState, now: float) -> int | None:
        told = [
            reading
            for reading in state.probes.values()
            if reading.result.free_device_bytes is not None
            and now - reading.at <= self._device_memory_seconds
        ]
        return max(told, key=lambda reading: reading.at).result.free_device_bytes if told else None


def _probe(reading: ProbeReading, now: float) -> Iterator[Row]:
    labels, result, speeds = reading.labels, reading.result, reading.speeds
    block = block_seconds(result)
    yield names.PROBE_AGE, labels, now - reading.at
    yield names.PROBE_THREADS, labels, result.threads
    yield names.PROBE_BANDWIDTH, labels, speeds.memory_bandwidth_bytes_per_second
    yield names.PROBE_FLOPS, labels, speeds.flops_per_second
    yield names.PROBE_BLOCK_OVERHEAD, labels, speeds.block_overhead_seconds
    yield names.PROBE_STEP_OVERHEAD, labels, speeds.step_overhead_seconds
    yield names.PROBE_SERIALISATION, labels, speeds.serialisation_bytes_per_second
    yield names.PROBE_BLOCK_DECODE, labels, block.decode
    yield names.PROBE_BLOCK_PREFILL, labels, block.prefill
    ratio = reading.calibration.ratio(now)
    if ratio is not None:
        yield names.PROBE_CALIBRATION, labels, ratio
        yield names.PROBE_CALIBRATION_AGE, labels, reading.calibration.age_seconds(now)


def registry_of(collector: Collector) -> CollectorRegistry:
    """Only it: what the library exports of this process by itself would have another meaning per library version."""
    registry = CollectorRegistry()
    registry.register(collector)
    return registry
