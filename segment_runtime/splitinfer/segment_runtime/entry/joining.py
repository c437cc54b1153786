"""Putting a committed chain together, and telling what breaks in it before it serves from what breaks after."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from splitinfer.optimizer.plan import Plan
from splitinfer.segment_runtime.channel import FrameLink
from splitinfer.segment_runtime.entry import changes
from splitinfer.segment_runtime.entry.changes import ChangeFailed
from splitinfer.segment_runtime.entry.hosts import HostClient
from splitinfer.segment_runtime.entry.pipeline import Pipeline
from splitinfer.segment_runtime.entry.returns import ReturnService
from splitinfer.segment_runtime.proto import runtime_pb2 as pb


class Joining:
    """Commits chains, one at a time; what a chain says once it serves goes on to who minds."""

    def __init__(
        self,
        pipeline: Pipeline,
        returns: ReturnService,
        on_draining: Callable[[str], None],
        on_broken: Callable[[str], None],
    ) -> None:
        self._pipeline = pipeline
        self._returns = returns
        self._on_draining = on_draining
        self._on_broken = on_broken
        self._early: str | None = None
        """What broke in the chain that is being committed, before it serves."""

    async def join(self, plan: Plan, clients: Mapping[str, HostClient]) -> FrameLink:
        """Switch all hosts and open both ends. Raises ChangeFailed: the chain is broken then.

        There is no await between the last look at the chain and the return: what breaks later is reported for the
        epoch that serves, if the caller switches to it without one too.
        """
        self._early = None
        self._returns.expect(plan.epoch, len(plan.segments))
        link = await changes.commit(
            plan, clients, self._on_error, lambda reason: self._on_lost(plan.epoch, reason)
        )
        if (defect := self._defect(plan.epoch)) is not None:
            await link.close()
            raise ChangeFailed(defect, refused=False)
        return link

    def _defect(self, epoch: int) -> str | None:
        """What is known already to be broken in a chain that was just committed."""
        if self._early is None and not self._returns.is_open(epoch):
            return "the last hop closed the return stream"
        return self._early

    def _on_error(self, error: pb.StreamError) -> None:
        if error.code == pb.DRAINING:
            self._on_draining(error.node)
        elif error.epoch != self._pipeline.epoch:
            self._early = f"hop {error.hop} on {error.node}: {error.message}"
        self._pipeline.on_error(error)

    def _on_lost(self, epoch: int, reason: str) -> None:
        if epoch == self._pipeline.epoch:
            self._on_broken(reason)
        else:
            self._early = reason
