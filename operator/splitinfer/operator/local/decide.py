"""What the supervisor does next, as a pure function of what is wanted and what is seen.

Level-triggered: nothing here remembers an event; a crash, a restart and the first start are the same
difference between wanted and seen. Time comes in as a number of seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ENTRY = "entry"
"""Name of the entry's process; hosts are named for their node."""

START_SECONDS = 180.0
"""A process that is not up by then is killed and counts as failed; importing torch can take half a minute."""
STABLE_SECONDS = 60.0
"""A process that was up this long has its failures forgotten."""
TRIES_AT_START = 3
"""Failures in a row, of one process or of the plan, after which `up` gives up, if it never served."""
SETTLE_SECONDS = 5.0
"""Time an entry has to show a plan that it accepted."""

EntryState = Literal["empty", "preparing", "serving", "recovering", "failed"]


@dataclass(frozen=True, slots=True)
class Process:
    """One child as seen.

    Attributes:
        state: not running, running and silent, or running and listening.
        since: when it entered that state.
        address: where it listens (hosts: gRPC; entry: control).
        starts: how often it was started; tells a restarted process from the one before.
        failures: exits in a row without having been stable in between.
        bad_input: it left with exit code 2: starting it again cannot help.
    """

    state: Literal["down", "starting", "up"] = "down"
    since: float = 0.0
    address: str | None = None
    starts: int = 0
    failures: int = 0
    bad_input: bool = False


@dataclass(frozen=True, slots=True)
class Sent:
    """The last plan that the entry accepted: under which epoch, for which incarnations, when."""

    epoch: int
    entry: int
    hosts: Mapping[str, tuple[str, int]]
    at: float
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything a decision looks at.

    Attributes:
        now: seconds on the supervisor's clock.
        processes: every wanted process by name.
        state: what the entry says it does; None while it does not answer.
        digest: digest of the plan it serves.
        epoch: highest epoch that it knows of.
        sent: the last plan it accepted.
        served: whether the pipeline ever served since `up` began.
        refused: why the entry refused the plan as wrong; it would do so again.
    """

    now: float
    processes: Mapping[str, Process]
    state: EntryState | None = None
    digest: str | None = None
    epoch: int = 0
    sent: Sent | None = None
    served: bool = False
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Start a process."""

    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill a process that does not come up."""

    name: str


@dataclass(frozen=True, slots=True)
class SendPlan:
    """Send the wanted plan under an epoch, with the addresses of the hosts."""

    epoch: int
    hosts: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    failures: int = 0


@dataclass(frozen=True, slots=True)
class SendHosts:
    """Tell the entry where hosts are that the plan does not use."""

    hosts: Mapping[str, tuple[str, int]]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Stop everything and say why."""

    name: str
    reason: str


Action = Start | Kill | SendPlan | SendHosts | GiveUp


def backoff(failures: int) -> float:
    """Seconds to wait before the next try: 0 after none, then 0.5, 1, 2 ... up to 30."""
    return 0.0 if failures == 0 else min(30.0, 0.5 * 2.0 ** min(failures - 1, 10))


def decide(plan_nodes: tuple[str, ...], digest: str, seen: Seen) -> tuple[Action, ...]:
    """What to do now.

    Args:
        plan_nodes: nodes of the wanted plan.
        digest: digest of the wanted plan.
        seen: what is.

    Returns:
        `GiveUp` alone, or any number of the others; empty when what is wanted is so, or under way.
    """
    if given_up := _give_up(seen):
        return (given_up,)
    actions: list[Action] = []
    for name, process in seen.processes.items():
        if process.state == "down" and seen.now >= process.since + backoff(process.failures):
            actions.append(Start(name))
        elif process.state == "starting" and seen.now >= process.since + START_SECONDS:
            actions.append(Kill(name))
    return (*actions, *_plan_actions(plan_nodes, digest, seen))


def satisfied(plan_nodes: tuple[str, ...], digest: str, seen: Seen) -> bool:
    """Whether the wanted plan is served by the processes that run now."""
    sent = seen.sent
    return (
        sent is not None
        and seen.state == "serving"
        and seen.digest == digest
        and seen.epoch >= sent.epoch
        and sent.entry == seen.processes[ENTRY].starts
        and all(sent.hosts.get(node) == _incarnation(seen.processes[node]) for node in plan_nodes)
    )


def _incarnation(process: Process) -> tuple[str, int] | None:
    return (process.address, process.starts) if process.state == "up" and process.address else None


def _give_up(seen: Seen) -> GiveUp | None:
    if seen.refused is not None:
        return GiveUp("plan", seen.refused)
    for name, process in seen.processes.items():
        if process.state != "down" or seen.served:
            continue
        if process.bad_input:
            return GiveUp(name, "it refuses its input")
        if process.failures >= TRIES_AT_START:
            return GiveUp(name, f"it stopped {process.failures} times before the pipeline served")
    if seen.state == "failed" and not seen.served and seen.sent and seen.sent.failures + 1 >= TRIES_AT_START:
        return GiveUp("plan", f"it failed {TRIES_AT_START} times")
    return None


def _plan_actions(plan_nodes: tuple[str, ...], digest: str, seen: Seen) -> tuple[Action, ...]:
    entry = seen.processes[ENTRY]
    incarnations = {name: _incarnation(process) for name, process in seen.processes.items() if name != ENTRY}
    up = {name: incarnation for name, incarnation in incarnations.items() if incarnation is not None}
    if entry.state != "up" or seen.state is None or any(node not in up for node in plan_nodes):
        return ()
    sent, following = seen.sent, max(seen.epoch, seen.sent.epoch if seen.sent else 0) + 1
    if sent is None or sent.entry != entry.starts or any(sent.hosts.get(n) != up[n] for n in plan_nodes):
        return (SendPlan(following, up),)
    if seen.state == "failed":
        if seen.now >= sent.at + backoff(sent.failures + 1):
            return (SendPlan(following, up, sent.failures + 1),)
        return ()
    # The entry helped itself with other hosts, or lost the plan: back to the wanted one.
    other = (seen.state == "serving" and seen.digest != digest) or seen.state == "empty"
    if other and seen.now >= sent.at + SETTLE_SECONDS:
        return (SendPlan(following, up),)
    if sent.hosts != up and seen.state == "serving":
        return (SendHosts(up),)
    return ()
