"""What the supervisor does next: tables of situations, and whole lives with random crashes on a simulated clock."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.operator.local.decide import (
    ENTRY,
    SETTLE_SECONDS,
    START_SECONDS,
    TRIES_AT_START,
    Action,
    GiveUp,
    Kill,
    Process,
    Seen,
    SendHosts,
    SendPlan,
    Sent,
    Start,
    backoff,
    decide,
    satisfied,
)

NODES = ("a", "b")
WANTED = "digest of the wanted plan"
HOSTS = {"a": ("h:1", 1), "b": ("h:2", 1)}


def process(port: int, **changes: object) -> Process:
    """A process that is up since time 0."""
    return replace(Process("up", 0.0, f"h:{port}", starts=1), **changes)  # type: ignore[arg-type]


def serving(**changes: object) -> Seen:
    """Two hosts and an entry that serve the wanted plan at time 100."""
    seen = Seen(
        now=100.0,
        processes={"a": process(1), "b": process(2), ENTRY: process(3)},
        state="serving",
        digest=WANTED,
        epoch=1,
        sent=Sent(epoch=1, entry=1, hosts=HOSTS, at=50.0),
        served=True,
    )
    return replace(seen, **changes)  # type: ignore[arg-type]


def with_process(seen: Seen, name: str, changed: Process) -> Seen:
    """The same with one process as given."""
    return replace(seen, processes={**seen.processes, name: changed})


def test_what_is_as_wanted_is_left_alone() -> None:
    """A second look with nothing changed does nothing."""
    assert decide(NODES, WANTED, serving()) == ()
    assert satisfied(NODES, WANTED, serving())


def test_everything_starts_at_once() -> None:
    """Hosts and the entry start side by side; no plan before they listen."""
    seen = Seen(now=0.0, processes={name: Process() for name in (*NODES, ENTRY)})
    assert decide(NODES, WANTED, seen) == (Start("a"), Start("b"), Start(ENTRY))


@pytest.mark.parametrize("late", ["a", "b", ENTRY])
def test_the_plan_waits_for_all_it_names(late: str) -> None:
    """As long as one of its processes is not up, no plan is sent."""
    seen = with_process(serving(state="empty", epoch=0, sent=None), late, Process("starting", 99.0, starts=1))
    assert decide(NODES, WANTED, seen) == ()


def test_the_first_plan_goes_out_under_epoch_one() -> None:
    """All up, nothing sent: send."""
    seen = serving(state="empty", digest=None, epoch=0, sent=None)
    assert decide(NODES, WANTED, seen) == (SendPlan(1, HOSTS),)


@pytest.mark.parametrize("state", ["preparing", "serving", "recovering", "failed", "empty"])
def test_a_restarted_host_gets_the_plan_again_in_every_state(state: str) -> None:
    """Its weights are gone: whatever the entry does now, the next epoch has the new address."""
    seen = with_process(serving(state=state), "b", process(9, starts=2))
    assert decide(NODES, WANTED, seen) == (SendPlan(2, {**HOSTS, "b": ("h:9", 2)}),)
    assert not satisfied(NODES, WANTED, seen)


def test_a_restart_on_the_same_port_is_a_restart() -> None:
    """The port may be the old one by chance; the process is not."""
    seen = with_process(serving(), "b", process(2, starts=2))
    assert decide(NODES, WANTED, seen) == (SendPlan(2, {**HOSTS, "b": ("h:2", 2)}),)


def test_a_restarted_entry_gets_an_epoch_that_the_hosts_have_not_seen() -> None:
    """A new entry knows no epoch; the hosts still know the old one, and fence it."""
    seen = with_process(serving(state="empty", digest=None, epoch=0), ENTRY, process(3, starts=2))
    assert decide(NODES, WANTED, seen) == (SendPlan(2, HOSTS),)


def test_the_next_epoch_is_above_the_entrys_own() -> None:
    """The entry may have recovered by itself meanwhile and counted on."""
    seen = with_process(serving(state="recovering", epoch=7), "b", process(9, starts=2))
    [action] = decide(NODES, WANTED, seen)
    assert isinstance(action, SendPlan)
    assert action.epoch == 8


def test_a_plan_under_way_is_waited_for() -> None:
    """Loading takes long; it is not sent twice."""
    assert decide(NODES, WANTED, serving(state="preparing", digest=None, now=10_000.0)) == ()


def test_an_entry_that_helped_itself_is_brought_back() -> None:
    """It serves another plan on the hosts that were left; with all back, the wanted one returns."""
    seen = serving(digest="another", epoch=2, now=50.0 + SETTLE_SECONDS)
    assert decide(NODES, WANTED, seen) == (SendPlan(3, HOSTS),)
    assert decide(NODES, WANTED, replace(seen, now=seen.now - 0.1)) == ()


def test_an_idle_node_that_moved_is_told_without_a_new_plan() -> None:
    """Only what the plan names needs an epoch."""
    seen = serving()
    seen = replace(seen, processes={**seen.processes, "idle": process(8, starts=2)})
    assert decide(NODES, WANTED, seen) == (SendHosts({**HOSTS, "idle": ("h:8", 2)}),)


def test_a_failed_plan_is_tried_again_later_and_later() -> None:
    """Each failure doubles the wait."""
    sent = Sent(epoch=3, entry=1, hosts=HOSTS, at=100.0, failures=1)
    seen = serving(state="failed", epoch=3, sent=sent, now=100.0 + backoff(2))
    assert decide(NODES, WANTED, seen) == (SendPlan(4, HOSTS, failures=2),)
    assert decide(NODES, WANTED, replace(seen, now=seen.now - 0.01)) == ()


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (with_process(serving(served=False), "b", Process("down", failures=TRIES_AT_START)), "b"),
        (with_process(serving(served=False), "b", Process("down", failures=1, bad_input=True)), "b"),
        (serving(refused="plan.blocks: wrong"), "plan"),
        (serving(served=False, state="failed", sent=Sent(3, 1, HOSTS, 0.0, TRIES_AT_START - 1)), "plan"),
    ],
)
def test_what_cannot_come_good_is_given_up(seen: Seen, expected: str) -> None:
    """Before the pipeline ever served, and for a plan that the entry calls wrong, trying on helps nobody."""
    [action] = decide(NODES, WANTED, seen)
    assert isinstance(action, GiveUp)
    assert action.name == expected


def test_a_pipeline_that_served_is_never_given_up_for_a_crash() -> None:
    """However often a host dies, it is started again, at most every half minute."""
    seen = with_process(serving(), "b", Process("down", since=100.0, failures=50, bad_input=True))
    assert decide(NODES, WANTED, seen) == ()
    assert decide(NODES, WANTED, replace(seen, now=130.0)) == (Start("b"),)


def test_a_process_that_never_listens_is_killed() -> None:
    """Silence has an end; the kill counts as a failure."""
    seen = with_process(serving(), "b", Process("starting", since=100.0, starts=2))
    assert decide(NODES, WANTED, replace(seen, now=100.0 + START_SECONDS)) == (Kill("b"),)
    assert decide(NODES, WANTED, replace(seen, now=99.9 + START_SECONDS)) == ()


def test_backoff_doubles_up_to_its_bound() -> None:
    """0, 0.5, 1, 2 ... 30 seconds, and no overflow."""
    assert [backoff(n) for n in range(8)] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert backoff(10**9) == 30.0


class World:
    """Processes and an entry as the supervisor would see them; ports never repeat."""

    def __init__(self) -> None:
        self.seen = Seen(now=0.0, processes={name: Process() for name in (*NODES, ENTRY)}, served=True)
        self.epochs: list[int] = []
        self.ports = 0

    def crash(self, name: str) -> None:
        """A process dies; with the entry goes its plan."""
        old = self.seen.processes[name]
        if old.state == "down":
            return
        gone = replace(old, state="down", since=self.seen.now, address=None, failures=old.failures + 1)
        self.seen = with_process(self.seen, name, gone)
        if name == ENTRY:
            self.seen = replace(self.seen, state=None, digest=None, epoch=0)
        elif self.seen.state is not None:
            self.seen = replace(self.seen, state="recovering")

    def apply(self, action: Action) -> None:
        """What the shell would do."""
        match action:
            case Start(name):
                old = self.seen.processes[name]
                assert old.state == "down", "started twice"
                self.ports += 1
                up = replace(
                    old, state="up", since=self.seen.now, address=f"h:{self.ports}", starts=old.starts + 1
                )
                self.seen = with_process(self.seen, name, up)
                if name == ENTRY:
                    self.seen = replace(self.seen, state="empty")
            case SendPlan(epoch, hosts, failures):
                current = {n: (p.address, p.starts) for n, p in self.seen.processes.items() if n != ENTRY}
                assert dict(hosts) == current, "addresses of dead processes"
                self.epochs.append(epoch)
                entry = self.seen.processes[ENTRY]
                sent = Sent(epoch, entry.starts, hosts, self.seen.now, failures)
                self.seen = replace(self.seen, state="serving", digest=WANTED, epoch=epoch, sent=sent)
            case _:
                pytest.fail(f"{action} was not called for")

    def step(self, seconds: float) -> None:
        """Let time pass and decide."""
        self.seen = replace(self.seen, now=self.seen.now + seconds)
        for action in decide(NODES, WANTED, self.seen):
            self.apply(action)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 40), st.none() | st.sampled_from([*NODES, ENTRY])),
        max_size=40,
    )
)
def test_after_any_crashes_the_wanted_plan_is_served_again(history: list[tuple[float, str | None]]) -> None:
    """Whatever died when: epochs only rise, nothing starts twice, and soon after the last crash all is well."""
    world = World()
    for seconds, victim in history:
        world.step(seconds)
        if victim is not None:
            world.crash(victim)
    for _ in range(3):
        world.step(31.0)

    assert satisfied(NODES, WANTED, world.seen)
    assert decide(NODES, WANTED, world.seen) == ()
    assert world.epochs == sorted(set(world.epochs))
