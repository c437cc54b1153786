"""Whether a plan can be served here at all, as a pure function of what is known when it comes.

Errors
------
PlanRejected              a plan that this entry cannot serve; `field` names why
└── StalePlan             its epoch is not newer than what was seen
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from splitinfer.optimizer.plan import Plan
from splitinfer.segment_runtime.store.reader import StoredModel


class PlanRejected(Exception):
    """A plan that this entry cannot serve."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class StalePlan(PlanRejected):
    """Its epoch is not newer than what was seen."""


@dataclass(frozen=True, slots=True)
class Live:
    """What serves now: its plan, how many sessions live, and the KV tokens of the largest."""

    plan: Plan | None
    sessions: int
    largest_tokens: int


def check_plan(plan: Plan, hosts: Mapping[str, str], model: StoredModel, newest: int, live: Live) -> None:
    """Hold a plan against the model, the hosts and the sessions that live.

    Args:
        plan: what is asked for.
        hosts: addresses that came with it.
        model: what this entry serves.
        newest: epoch that was seen last.
        live: what serves now.

    Raises:
        PlanRejected: it does not fit; `StalePlan` if its epoch is not newer.
    """
    if plan.epoch <= newest:
        raise StalePlan("plan.epoch", f"{plan.epoch} is not newer than {newest}; use {newest + 1}")
    index = model.index
    if plan.model.digest != model.digest:
        raise PlanRejected(
            "plan.model.digest",
            f"this entry serves {model.name} with digest {model.digest[:12]}...",
        )
    if plan.blocks != index.blocks:
        raise PlanRejected("plan.blocks", f"{plan.blocks}, {model.name} has {index.blocks}")
    if plan.max_context_tokens > index.max_context_tokens:
        raise PlanRejected(
            "plan.max_context_tokens",
            f"{plan.max_context_tokens}, {model.name} was made for {index.max_context_tokens}",
        )
    if missing := [node for node in plan.nodes if node not in hosts]:
        raise PlanRejected("hosts", f"no address for {', '.join(missing)}")
    check_sessions(plan, live)


def check_sessions(plan: Plan, live: Live) -> None:
    """Hold a plan against the sessions that live; again before its commit, for more may have begun. Raises PlanRejected."""
    if live.plan is not None and plan.dtype != live.plan.dtype and live.sessions:
        raise PlanRejected(
            "plan.dtype",
            f"{plan.dtype}, but {live.sessions} sessions live in {live.plan.dtype}, and would go on "
            "with other tokens; wait for them to end",
        )
    if plan.max_context_tokens < live.largest_tokens:
        raise PlanRejected(
            "plan.max_context_tokens",
            f"{plan.max_context_tokens} is below a live session of {live.largest_tokens} tokens; wait for it to end",
        )
