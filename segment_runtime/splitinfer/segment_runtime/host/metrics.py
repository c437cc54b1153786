"""Prometheus metrics of a host. The registry is injected: two hosts in one test process do not collide."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from splitinfer.segment_runtime.host.ranges import HostRanges
from splitinfer.segment_runtime.work import PHASES, Phase, StepWork

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class StepSums:
    """The sums that the node's agent calibrates its probe with, one child per phase so that a step looks up none.

    Names, units and meaning are those of the profiler's ``HOST_SERIES``; the runtime does not import the profiler, and a
    test holds the two together.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def sums(name: str, text: str) -> dict[Phase, Counter]:
            family = Counter(name, text, ["phase"], registry=registry)
            return {phase: family.labels(phase) for phase in PHASES}

        self._steps = sums("splitinfer_host_steps_total", "Frames computed in one range")
        self._seconds = sums(
            "splitinfer_host_step_compute_seconds_total",
            "Time that the engine computed",
        )
        self._blocks = sums("splitinfer_host_step_blocks_total", "Blocks run, summed over frames")
        self._block_rows = sums(
            "splitinfer_host_step_block_rows_total", "Blocks run times rows of the frame, summed"
        )
        self._block_context = sums(
            "splitinfer_host_step_block_context_tokens_total",
            "Blocks run times the tokens of KV cache that the frame's rows look at (per session once), summed",
        )

    def add(self, work: StepWork, seconds: float) -> None:
        """One frame, and how long the engine computed it."""
        phase = work.phase
        self._steps[phase].inc()
        self._seconds[phase].inc(seconds)
        self._blocks[phase].inc(work.blocks)
        self._block_rows[phase].inc(work.blocks * work.rows)
        self._block_context[phase].inc(work.blocks * work.context_tokens)


class HostMetrics:
    """Counters and histograms of the steps, gauges read from the ranges when scraped."""

    def __init__(self, registry: CollectorRegistry, ranges: HostRanges) -> None:
        self.step_seconds = Histogram(
            "splitinfer_host_step_seconds",
            "Compute time of one frame in one range",
            buckets=SECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "splitinfer_host_queue_seconds",
            "Time a frame waited for the engine",
            buckets=SECONDS,
            registry=registry,
        )
        self.received_bytes = Counter(
            "splitinfer_host_received_bytes_total", "Activation bytes received", registry=registry
        )
        self.sent_bytes = Counter(
            "splitinfer_host_sent_bytes_total", "Activation bytes sent", registry=registry
        )
        self.rows = Counter("splitinfer_host_rows_total", "Token rows computed", registry=registry)
        self.errors = Counter(
            "splitinfer_host_frame_errors_total", "Frames answered with an error", ["code"], registry=registry
        )
        self._sums = StepSums(registry)
        kv = Gauge("splitinfer_host_kv_bytes", "KV cache bytes reserved by open sessions", registry=registry)
        kv.set_function(lambda: ranges.kv_bytes)
        budget = Gauge(
            "splitinfer_host_kv_budget_bytes", "KV cache bytes of the newest plan", registry=registry
        )
        budget.set_function(lambda: ranges.epochs[-1].budget_bytes if ranges.epochs else 0)
        weights = Gauge("splitinfer_host_weight_bytes", "Resident bytes of weights", registry=registry)
        weights.set_function(lambda: ranges.engine.resident_weight_bytes)
        sessions = Gauge(
            "splitinfer_host_sessions", "Sessions with a KV cache on this host", registry=registry
        )
        sessions.set_function(lambda: ranges.sessions)
        epoch = Gauge("splitinfer_host_epoch", "Newest committed epoch", registry=registry)
        epoch.set_function(lambda: max((e.epoch for e in ranges.epochs if e.committed), default=0))

    def step(self, work: StepWork, compute_seconds: float) -> None:
        """A frame was computed."""
        self.step_seconds.observe(compute_seconds)
        self.rows.inc(work.rows)
        self._sums.add(work, compute_seconds)
