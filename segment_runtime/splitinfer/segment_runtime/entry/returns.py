"""The return link: the last hop pushes its frames here."""

from __future__ import annotations

import grpc

from splitinfer.segment_runtime.channel import EPOCH_KEY, HOP_KEY, StreamContext, read_frame
from splitinfer.segment_runtime.entry.pipeline import Pipeline
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.proto import runtime_pb2_grpc as rpc


class ReturnService(rpc.ActivationsServicer):
    """Takes the stream of the epoch that serves, or of the one that is about to."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._expected: tuple[int, int] | None = None
        self._open: set[int] = set()

    def expect(self, epoch: int, hop: int) -> None:
        """From now on the stream of ``epoch`` may come; ``hop`` is one past its last segment."""
        self._expected = (epoch, hop)

    def is_open(self, epoch: int) -> bool:
        """Whether the last hop of ``epoch`` is connected."""
        return epoch in self._open

    # The stubs know only the iterator form of a handler; read and write are grpc.aio's other form, and the
    # name is the protocol's.
    async def Stream(self, _iterator: object, context: StreamContext) -> None:  # type: ignore[override]  # noqa: N802
        """One stream per epoch. Its end, while its epoch serves, means that the chain is broken."""
        metadata = {str(k): str(v) for k, v in context.invocation_metadata() or ()}
        came = (metadata.get(EPOCH_KEY, ""), metadata.get(HOP_KEY, ""))
        if self._expected is None or came != (str(self._expected[0]), str(self._expected[1])):
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"epoch {came[0] or '?'} hop {came[1] or '?'} is not what the entry expects",
            )
        epoch, hop = self._expected
        self._expected = None
        self._open.add(epoch)
        try:
            await context.write(pb.Signal(opened=pb.Opened(epoch=epoch, hop=hop)))
            while (frame := await read_frame(context)) is not None:
                if frame.epoch != epoch:
                    error = pb.StreamError(
                        epoch=frame.epoch,
                        step=frame.step,
                        hop=hop,
                        node="entry",
                        code=pb.WRONG_EPOCH,
                        field="epoch",
                        message=f"{frame.epoch}, this stream serves epoch {epoch}",
                    )
                    await context.write(pb.Signal(error=error))
                    continue
                self._pipeline.on_frame(epoch, frame)
        finally:
            # However it ended, and also while the pipeline pauses: steps may still be on their way.
            self._open.discard(epoch)
            if epoch == self._pipeline.epoch:
                self._pipeline.on_broken("the last hop closed the return stream")
