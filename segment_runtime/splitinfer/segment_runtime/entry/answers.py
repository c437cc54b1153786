"""From the hidden states that a step brings back to the tokens that requests get."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from splitinfer.segment_runtime.engine.port import LoadedHead
from splitinfer.segment_runtime.entry.generate import PipelineFailed, TokenEvent
from splitinfer.segment_runtime.entry.head import HeadThread
from splitinfer.segment_runtime.entry.live import LiveRequest
from splitinfer.segment_runtime.entry.observed import Observed
from splitinfer.segment_runtime.entry.requests import Requests
from splitinfer.segment_runtime.entry.sampler import Sampled, SamplerError
from splitinfer.segment_runtime.entry.scheduler import Scheduler
from splitinfer.segment_runtime.entry.sessions import MicroBatch, Slice
from splitinfer.segment_runtime.proto import runtime_pb2 as pb

log = structlog.get_logger()

Drawn = Sequence[tuple[LiveRequest, Sampled | SamplerError]]
"""What was drawn for each request that wanted a token of a step."""

Tokens = Sequence[tuple[LiveRequest, TokenEvent]]
"""What the streams of those requests are to get."""


class Answers:
    """Draws on the head's thread, delivers on the loop: what happens in between decides whether a draw still counts."""

    def __init__(
        self,
        scheduler: Scheduler,
        requests: Requests,
        observed: Observed,
        head: HeadThread,
        clock: Callable[[], float],
    ) -> None:
        self._scheduler = scheduler
        self._requests = requests
        self._observed = observed
        self._head = head
        self._clock = clock

    async def draw(self, head: LoadedHead, frame: pb.Frame, batch: MicroBatch) -> Drawn:
        """The next token of each request that lives and whose last row came back, or why there is none."""
        kept = [piece for piece in batch.slices if piece.keep]
        wanted = [(piece, live) for piece in kept if (live := self._requests.get(piece.session)) is not None]
        try:
            sampled = await self._head.sample(head, frame, kept, wanted)
        except Exception as error:
            log.exception("sampling failed", step=frame.step)
            sampled = [SamplerError(f"{type(error).__name__}: {error}") for _ in wanted]
        return [(live, one) for (_, live), one in zip(wanted, sampled, strict=True)]

    def take(self, drawn: Drawn, done: Sequence[Slice]) -> Tokens:
        """Give the scheduler what was drawn for the slices that are ``done``.

        A request that was cancelled while the head computed gets no token, nor one that begins anew because a step
        of its own failed. The next step can then be sent. The clients' turn is after that: see `deliver`.
        """
        tokens = []
        sessions = {piece.session for piece in done}
        for live, one in drawn:
            if live.session.id not in sessions:
                continue
            if isinstance(one, SamplerError):
                self._requests.fail(live, PipelineFailed(str(one)))
                continue
            self._observed.token(live, self._clock())
            finish = live.take(one.token)
            tokens.append((live, TokenEvent(one.token, one.logprob, one.top, finish)))
            if finish is None:
                self._scheduler.append(live.session.id, one.token)
            else:
                self._requests.forget(live.session.id)
        return tokens

    @staticmethod
    def deliver(tokens: Tokens) -> None:
        """Hand the tokens out to the streams of their requests."""
        for live, event in tokens:
            live.stream.put(event)
