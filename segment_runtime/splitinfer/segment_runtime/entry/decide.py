"""What the coordinator does next, as pure functions over what it knows.

The first plan, a wanted change, a host that leaves and a chain that broke differ only here; they are carried out
alike (`changes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from splitinfer.optimizer.plan import Plan, weight_bytes
from splitinfer.optimizer.redistribute import redistribute
from splitinfer.segment_runtime.store.index import ModelIndex
from splitinfer.segment_runtime.wire import DTYPES

Cause = Literal["request", "host_lost", "host_draining"]

TARGET_ATTEMPTS = 2
"""How often a wanted plan may break at its commit before the entry goes back to what served before."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What the coordinator knows.

    Attributes:
        serving: the plan that serves, or served last.
        target: the plan that was asked for and does not serve yet.
        broken: the chain of ``serving`` is broken.
        leaving: a host of ``serving`` has said that it shuts down.
    """

    serving: Plan | None
    target: Plan | None
    broken: bool
    leaving: bool

    @property
    def cause(self) -> Cause | None:
        """Why something is to be done, or None."""
        if self.broken:
            return "host_lost"
        if self.target is not None:
            return "request"
        return "host_draining" if self.leaving else None


def next_plan(now: Situation, room: Mapping[str, int], epoch: int) -> Plan:
    """The plan to change to.

    Args:
        now: the situation; its ``cause`` is not None.
        room: blocks that each host which is there, and stays, has memory for.
        epoch: for a plan that nobody asked for.

    Raises:
        PlanError: nothing can serve on what is left.
    """
    if now.target is not None and (not now.broken or all(node in room for node in now.target.nodes)):
        return now.target
    base = now.serving or now.target
    assert base is not None, now
    if all(node in room for node in base.nodes):
        return base.with_epoch(epoch)  # everybody is there: what broke was a link, or a host that is back
    segments = redistribute(base.segments, base.blocks, room, base.privacy)
    return base.model_copy(update={"epoch": epoch, "segments": segments})


def room_for_blocks(plan: Plan, index: ModelIndex, limits: Mapping[str, int]) -> dict[str, int]:
    """How many blocks of a plan's model each host has memory for, weights and KV; by its largest block.

    Args:
        plan: says the dtype and the KV that is promised.
        index: of the model.
        limits: memory limit of each host in bytes; 0 is none, and then it has room for all.
    """
    block = max(weight_bytes(index.block_values(b), plan.dtype) for b in range(plan.blocks))
    block += index.kv_bytes_per_token(DTYPES[plan.activation][1].itemsize) * plan.kv_budget_tokens
    return {node: limit // block if limit else plan.blocks for node, limit in limits.items()}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from a change that was given up.

    Attributes:
        drop_target: the wanted plan is given up; whoever wants it posts it again.
        keep_leaving: hosts that leave are asked to be replaced again; else they serve to the end of their grace.
        failed: nothing serves, and nothing will until somebody acts.
        again: try again after a pause.
    """

    drop_target: bool = False
    keep_leaving: bool = True
    failed: bool = False
    again: bool = False


def after_failure(now: Situation, tried: Plan | None, *, refused: bool, attempts: int) -> Verdict:
    """What follows when ``tried`` failed.

    Args:
        now: the situation after the failure.
        tried: the plan; None when there was none to try.
        refused: a host said no to it, so that it would fail again.
        attempts: how often the target broke at its commit.
    """
    of_target = tried is not None and now.target is not None and tried.digest == now.target.digest
    if now.serving is None:
        return Verdict(drop_target=True, failed=True)
    if not now.broken:
        # The old plan serves on.
        return Verdict(drop_target=of_target, keep_leaving=of_target)
    return Verdict(drop_target=of_target and (refused or attempts >= TARGET_ATTEMPTS), again=True)
