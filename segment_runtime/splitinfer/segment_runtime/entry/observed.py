"""What the pipeline sees of itself: step by step into the metrics, and the latest latencies for the status."""

from __future__ import annotations

from collections import deque

from splitinfer.segment_runtime.entry.live import LiveRequest
from splitinfer.segment_runtime.entry.metrics import PipelineMetrics
from splitinfer.segment_runtime.entry.recent import Recent, StepSample, TokenSample
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.work import phase_of

RECENT = 512
"""TTFT and TPOT samples kept for the status."""


class Observed:
    """Latencies of tokens and steps."""

    def __init__(self, metrics: PipelineMetrics) -> None:
        self._metrics = metrics
        self.recent_ttft: deque[float] = deque(maxlen=RECENT)
        self.recent_tpot: deque[float] = deque(maxlen=RECENT)
        self.recent = Recent()
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
            self.recent.token(TokenSample(live.submitted, now, live.session.prompt_tokens))
        else:
            self.recent_tpot.append(now - live.last_token)
            self.recent.token(TokenSample(live.last_token, now))
        live.last_token = now
        self.tokens_total += 1

    def step(self, frame: pb.Frame, received: float, ring: float, waited: float, in_flight: int) -> None:
        """A step came back at ``received``, after ``ring`` seconds, one of ``in_flight``, and waited for the head."""
        inside = 0.0
        phase = phase_of([piece.count for piece in frame.sessions])
        hops = tuple((t.decode_us + t.compute_us + t.encode_us) / 1e6 for t in frame.timings)
        for timing, seconds in zip(frame.timings, hops, strict=True):
            self._metrics.hop_step_seconds.labels(str(timing.hop), phase).observe(seconds)
        self.recent.step(
            StepSample(
                at=received,
                phase=phase,
                sessions=len(frame.sessions),
                rows=sum(piece.count for piece in frame.sessions),
                context_tokens=sum(piece.position + piece.count for piece in frame.sessions),
                in_flight=in_flight,
                ring=ring,
                hops=hops,
            )
        )
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
