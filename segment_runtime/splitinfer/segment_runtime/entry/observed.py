"""What the pipeline sees of itself: step by step into the metrics, and the latest latencies for the status."""

from __future__ import annotations

from collections import deque

from splitinfer.segment_runtime.entry.live import LiveRequest
from splitinfer.segment_runtime.entry.metrics import PipelineMetrics
from splitinfer.segment_runtime.proto import runtime_pb2 as pb

RECENT = 512
"""TTFT and TPOT samples kept for the status."""


class Observed:
    """Latencies of tokens and steps."""

    def __init__(self, metrics: PipelineMetrics) -> None:
        self._metrics = metrics
        self.recent_ttft: deque[float] = deque(maxlen=RECENT)
        self.recent_tpot: deque[float] = deque(maxlen=RECENT)
        self.tokens_total = 0

    def started(self, live: LiveRequest, now: float) -> None:
        """A session is in a step; the first time ends its wait."""
        if live.started is None:
            live.started = now
            self._metrics.queue_seconds.observe(now - live.submitted)

    def token(self, live: LiveRequest, now: float) -> None:
        """A token came."""
        if live.last_token is None:
            self.recent_ttft.append(now - live.submitted)
        else:
            self.recent_tpot.append(now - live.last_token)
        live.last_token = now
        self.tokens_total += 1

    def step(self, frame: pb.Frame, ring: float, waited: float) -> None:
        """A step came back after ``ring`` seconds and waited ``waited`` for the head."""
        inside = 0.0
        for timing in frame.timings:
            serialise = (timing.decode_us + timing.encode_us) / 1e6
            for part, seconds in (
                ("queue", timing.queue_us / 1e6),
                ("serialise", serialise),
                ("compute", timing.compute_us / 1e6),
            ):
                inside += seconds
                self._metrics.hop_seconds.labels(str(timing.hop), part).observe(seconds)
        self._metrics.step_seconds.labels("ring").observe(ring)
        self._metrics.step_seconds.labels("wire").observe(max(0.0, ring - inside))
        self._metrics.step_seconds.labels("return_queue").observe(waited)
