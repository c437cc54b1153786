"""What the coordinator does next, as a table."""

from __future__ import annotations

import pytest

from splitinfer.optimizer.plan import ModelRef, Plan, PlanError, cuts_at
from splitinfer.optimizer.privacy import Privacy
from splitinfer.segment_runtime.entry.decide import (
    TARGET_ATTEMPTS,
    Situation,
    Verdict,
    after_failure,
    next_plan,
)


def plan(epoch: int, *nodes: str) -> Plan:
    """Six blocks, cut evenly over ``nodes``."""
    size = 6 // len(nodes)
    return Plan(
        epoch=epoch,
        model=ModelRef(name="m", digest="0" * 64),
        blocks=6,
        segments=cuts_at(6, [size * n for n in range(1, len(nodes))], nodes),
        max_context_tokens=8,
        kv_budget_tokens=8,
    )


OLD, NEW = plan(3, "a", "b"), plan(5, "b", "c")
ROOM = {"a": 6, "b": 6, "c": 6}


def now(
    serving: Plan | None = OLD, target: Plan | None = None, *, broken: bool = False, leaving: bool = False
) -> Situation:
    """A situation."""
    return Situation(serving, target, broken, leaving)


@pytest.mark.parametrize(
    ("situation", "cause"),
    [
        (now(), None),
        (now(None), None),
        (now(None, NEW), "request"),
        (now(OLD, NEW), "request"),
        (now(OLD, NEW, leaving=True), "request"),
        (now(OLD, leaving=True), "host_draining"),
        (now(OLD, broken=True), "host_lost"),
        (now(OLD, NEW, broken=True, leaving=True), "host_lost"),
    ],
)
def test_why_something_is_to_be_done(situation: Situation, cause: str | None) -> None:
    """A broken chain before a wish, a wish before a host that leaves."""
    assert situation.cause == cause


def test_a_wish_is_followed_whether_its_hosts_are_known_to_live_or_not() -> None:
    """The change itself asks them."""
    assert next_plan(now(OLD, NEW), {}, 9) is NEW


def test_a_broken_chain_goes_on_with_the_wanted_plan_if_its_hosts_live() -> None:
    """Rather than repair what is to be replaced anyway."""
    assert next_plan(now(OLD, NEW, broken=True), {"b": 6, "c": 6}, 9) is NEW


def test_a_broken_chain_whose_wanted_plan_lost_a_host_repairs_what_served() -> None:
    """Over what is left, under an epoch of its own."""
    repaired = next_plan(now(OLD, NEW, broken=True), {"a": 6, "b": 6}, 9)
    assert (repaired.epoch, repaired.segments) == (9, OLD.segments)


def test_a_chain_that_broke_between_living_hosts_is_put_together_again() -> None:
    """The same cut: a link broke, or a host is back."""
    assert next_plan(now(OLD, broken=True), ROOM, 9) == OLD.with_epoch(9)


def test_a_lost_or_leaving_host_is_replaced_by_its_neighbours() -> None:
    """Hosts that leave are not in the room that is given."""
    for situation in (now(OLD, broken=True), now(OLD, leaving=True)):
        repaired = next_plan(situation, {"b": 6, "c": 6}, 9)
        assert [str(s) for s in repaired.segments] == ["b[0:6]"]


def test_a_recovery_keeps_to_the_privacy_of_the_plan() -> None:
    """Nobody is there to ask: b has the room, but block 0 is sensitive and only a and c are trusted."""
    privacy = Privacy(sensitive_blocks=(0,), trusted_nodes=("a", "c"))
    private = Plan.model_validate(OLD.model_dump() | {"privacy": privacy.model_dump()})
    repaired = next_plan(now(private, broken=True), {"b": 6, "c": 6}, 9)
    assert ([str(s) for s in repaired.segments], repaired.privacy) == (
        ["c[0:1]", "b[1:4]", "c[4:6]"],
        privacy,
    )
    with pytest.raises(PlanError, match="trusted nodes left have room for 0 of the 1 sensitive blocks"):
        next_plan(now(private, broken=True), {"b": 6}, 9)


def test_without_room_there_is_no_plan() -> None:
    """The error counts the blocks."""
    with pytest.raises(PlanError, match="room for 2 of 6 blocks"):
        next_plan(now(OLD, broken=True), {"b": 2}, 9)


@pytest.mark.parametrize(
    ("situation", "tried", "refused", "attempts", "verdict"),
    [
        # Nothing ever served: say so, and wait for another plan.
        (now(None, NEW), NEW, False, 0, Verdict(drop_target=True, failed=True)),
        # The old plan serves on; the wish is given up, whoever refused it.
        (now(OLD, NEW), NEW, True, 0, Verdict(drop_target=True)),
        (now(OLD, NEW), NEW, False, 0, Verdict(drop_target=True)),
        # A host leaves and cannot be replaced: it serves to the end of its grace.
        (now(OLD, leaving=True), None, False, 0, Verdict(keep_leaving=False)),
        (now(OLD, leaving=True), plan(9, "b"), True, 0, Verdict(keep_leaving=False)),
        # A wish that fails does not make the entry forget the host that leaves.
        (now(OLD, NEW, leaving=True), NEW, True, 0, Verdict(drop_target=True, keep_leaving=True)),
        # A broken chain is tried again, also the wish, but not for ever and not against a refusal.
        (now(OLD, broken=True), None, False, 0, Verdict(again=True)),
        (now(OLD, NEW, broken=True), NEW, False, 1, Verdict(again=True)),
        (now(OLD, NEW, broken=True), NEW, True, 0, Verdict(drop_target=True, again=True)),
        (now(OLD, NEW, broken=True), NEW, False, TARGET_ATTEMPTS, Verdict(drop_target=True, again=True)),
        (now(OLD, NEW, broken=True), OLD, True, 0, Verdict(again=True)),
    ],
)
def test_what_follows_from_a_failure(
    situation: Situation, tried: Plan | None, refused: bool, attempts: int, verdict: Verdict
) -> None:
    """One line per case."""
    assert after_failure(situation, tried, refused=refused, attempts=attempts) == verdict
