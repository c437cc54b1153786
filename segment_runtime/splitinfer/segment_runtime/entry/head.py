"""From the hidden states that come back to one draw per session, on a thread of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from splitinfer.segment_runtime.compute import ComputeThread
from splitinfer.segment_runtime.engine.port import LoadedHead
from splitinfer.segment_runtime.entry.live import LiveRequest
from splitinfer.segment_runtime.entry.metrics import PipelineMetrics
from splitinfer.segment_runtime.entry.sampler import Sampled, SamplerError, sample
from splitinfer.segment_runtime.entry.sessions import Slice
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.wire import array_of

Wanted = Sequence[tuple[Slice, LiveRequest]]


class HeadThread:
    """Logits and sampling, one step at a time, beside the loop."""

    def __init__(self, metrics: PipelineMetrics, clock: Callable[[], float] = time.perf_counter) -> None:
        self._metrics = metrics
        self._clock = clock
        self._thread = ComputeThread("head")

    async def sample(
        self, head: LoadedHead, frame: pb.Frame, kept: Sequence[Slice], wanted: Wanted
    ) -> list[Sampled | SamplerError]:
        """One draw per wanted session; ``kept`` says whose row each row of the frame is."""
        if not wanted:
            return []
        return await self._thread.run(self._sample, head, frame, kept, wanted)

    def _sample(
        self, head: LoadedHead, frame: pb.Frame, kept: Sequence[Slice], wanted: Wanted
    ) -> list[Sampled | SamplerError]:
        entered = self._clock()
        hidden = array_of(frame)  # [kept rows, hidden]
        if len(wanted) != len(kept):
            rows = {piece.session: row for row, piece in enumerate(kept)}
            hidden = np.ascontiguousarray(hidden[[rows[piece.session] for piece, _ in wanted]])
        began = self._clock()
        logits = head.logits(hidden)
        computed = self._clock()
        drawn = [_draw(logits[row], live) for row, (_, live) in enumerate(wanted)]
        self._metrics.step_seconds.labels("decode").observe(began - entered)
        self._metrics.step_seconds.labels("head").observe(computed - began)
        self._metrics.step_seconds.labels("sample").observe(self._clock() - computed)
        return drawn

    def close(self) -> None:
        """Take no more work."""
        self._thread.close()


def _draw(logits: NDArray[np.float32], live: LiveRequest) -> Sampled | SamplerError:
    """The next token of one request from ``[vocab]`` logits, or why there is none: one bad row fails one request."""
    try:
        return sample(logits, live.request.sampling, live.counts, live.generated)
    except SamplerError as error:
        return error
