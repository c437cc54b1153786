"""Prometheus metrics of the pipeline as the entry sees it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class PipelineMetrics:
    """Steps, where their time goes, sessions, and changes of plan."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.hop_seconds = Histogram(
            "splitinfer_entry_hop_seconds",
            "Time of one step in one hop, by part: queue, serialise, compute",
            ["hop", "part"],
            buckets=SECONDS,
            registry=registry,
        )
        self.hop_step_seconds = Histogram(
            "splitinfer_entry_hop_step_seconds",
            "Time that a hop worked on one step, without waiting, by phase: decode, prefill",
            ["hop", "phase"],
            buckets=SECONDS,
            registry=registry,
        )
        self.step_seconds = Histogram(
            "splitinfer_entry_step_seconds",
            "Time of one step seen from the entry, by part: embed (and encode), "
            "ring (all hops and links), wire (of the ring), return_queue, decode, head, sample",
            ["part"],
            buckets=SECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "splitinfer_entry_queue_seconds",
            "Time a request waited for room",
            buckets=SECONDS,
            registry=registry,
        )
        self.rows = Counter(
            "splitinfer_entry_rows_total", "Token rows sent down the chain", registry=registry
        )
        self.running = Gauge(
            "splitinfer_entry_sessions_running", "Sessions with a KV cache", registry=registry
        )
        self.waiting = Gauge(
            "splitinfer_entry_sessions_waiting", "Sessions that wait for room", registry=registry
        )
        self.in_flight = Gauge(
            "splitinfer_entry_micro_batches", "Micro-batches in the chain", registry=registry
        )
        self.epoch = Gauge("splitinfer_entry_epoch", "Epoch that serves; 0: none", registry=registry)
        self.plan_changes = Counter(
            "splitinfer_entry_plan_changes_total",
            "Changes of plan, by cause (request, host lost, host draining) and result",
            ["cause", "result"],
            registry=registry,
        )
        self.stall_seconds = Histogram(
            "splitinfer_entry_plan_change_stall_seconds",
            "How long no new step began during a change of plan",
            buckets=SECONDS,
            registry=registry,
        )
        self.replayed_tokens = Counter(
            "splitinfer_entry_replayed_tokens_total",
            "Tokens fed again after a change of plan",
            registry=registry,
        )
        self.step_errors = Counter(
            "splitinfer_entry_step_errors_total",
            "Errors that came back along the chain",
            ["code"],
            registry=registry,
        )
