"""Keeps the processes of one pipeline running and its plan served: observe, `decide`, apply, again.

The imperative shell around `decide`: it starts and stops processes, asks the entry, and tells a listener
what changed. It holds no rule of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from splitinfer.operator.errors import CommandFailed
from splitinfer.operator.local import decide as rules
from splitinfer.operator.local.control import ControlClient, ControlError, EntryStatus, PlanRefused
from splitinfer.operator.local.process import Child
from splitinfer.optimizer.forecast import Forecast
from splitinfer.optimizer.plan import Plan

LOADING_TICK_SECONDS = 0.25
"""How often the entry is asked while it is not serving what is wanted."""
SERVING_TICK_SECONDS = 2.0
"""How often it is asked else; a process that leaves wakes the loop at once."""


class Listener(Protocol):
    """Is told what happens, to show it."""

    def process(self, name: str, what: str) -> None:
        """A process changed: started, up, stopped."""

    def status(self, status: EntryStatus) -> None:
        """The entry was asked."""

    def note(self, text: str) -> None:
        """Something a person should know."""


class Supervisor:
    """The processes of one pipeline."""

    def __init__(
        self,
        plan: Plan,
        commands: Mapping[str, Sequence[str]],
        logs: Path,
        listener: Listener,
        clock: Callable[[], float] = time.monotonic,
        forecast: Forecast | None = None,
    ) -> None:
        """``commands`` has one command per node, and one for `rules.ENTRY`; ``forecast`` goes with the plan."""
        self._forecast = forecast
        self._plan = plan
        self._commands = dict(commands)
        self._logs = logs
        self._listener = listener
        self._clock = clock
        self._wake = asyncio.Event()
        self._children: dict[str, Child] = {}
        self._seen = rules.Seen(now=clock(), processes={name: rules.Process() for name in commands})
        self._control: tuple[str, ControlClient] | None = None
        self.status: EntryStatus | None = None
        self.serving = asyncio.Event()
        """Set once the wanted plan is served, under the addresses of now."""

    @property
    def children(self) -> Mapping[str, Child]:
        """The running children by name."""
        return {name: child for name, child in self._children.items() if child.exit_code is None}

    def listening(self, name: str) -> Mapping[str, object]:
        """What a process said when it last came up; empty if it has not since it was last started."""
        child = self._children.get(name)
        return (child.listening if child else None) or {}

    def amend(self, name: str, command: Sequence[str]) -> None:
        """Replace the command that a process is started with the next time."""
        self._commands[name] = command

    async def run(self) -> None:
        """Supervise until cancelled.

        Raises:
            CommandFailed: what is wanted cannot be; says why.
        """
        while True:
            self._wake.clear()
            await self._observe()
            for action in rules.decide(self._plan.nodes, self._plan.digest, self._seen):
                await self._apply(action)
            with contextlib.suppress(TimeoutError):
                tick = SERVING_TICK_SECONDS if self.serving.is_set() else LOADING_TICK_SECONDS
                await asyncio.wait_for(self._wake.wait(), tick)

    async def shutdown(self, grace_seconds: float) -> None:
        """Stop the entry, then the hosts; returns when every process is gone."""
        running = self.children
        if entry := running.get(rules.ENTRY):
            await entry.stop(grace_seconds)
        await asyncio.gather(*(child.stop(grace_seconds) for child in running.values()))
        if self._control is not None:
            await self._control[1].aclose()

    def kill(self) -> None:
        """End every process at once."""
        for child in self.children.values():
            child.kill()

    async def _observe(self) -> None:
        now = self._clock()
        processes = {
            name: self._observed(name, process, now) for name, process in self._seen.processes.items()
        }
        self.status = await self._ask(processes[rules.ENTRY])
        status = self.status
        self._seen = replace(
            self._seen,
            now=now,
            processes=processes,
            state=status.state if status else None,
            digest=status.plan.digest if status and status.plan else None,
            epoch=max(status.epoch or 0, status.target_epoch or 0) if status else 0,
        )
        if status:
            self._listener.status(status)
        if rules.satisfied(self._plan.nodes, self._plan.digest, self._seen):
            assert self._seen.sent is not None, "only what was sent is served"
            self._seen = replace(self._seen, served=True, sent=replace(self._seen.sent, failures=0))
            self.serving.set()
        else:
            self.serving.clear()

    def _observed(self, name: str, process: rules.Process, now: float) -> rules.Process:
        """The next state of a process, from what its child shows."""
        child = self._children.get(name)
        if child is None or process.state == "down":
            return process
        if child.exit_code is not None:
            stable = process.state == "up" and now - process.since >= rules.STABLE_SECONDS
            self._listener.process(name, f"stopped with {describe_exit(child.exit_code)}")
            return replace(
                process,
                state="down",
                since=now,
                address=None,
                failures=(0 if stable else process.failures) + 1,
                bad_input=child.exit_code == 2 and process.state == "starting",
            )
        if process.state == "starting" and child.listening is not None:
            key = "control" if name == rules.ENTRY else "grpc"
            self._listener.process(name, f"up, process {child.pid}")
            return replace(process, state="up", since=now, address=str(child.listening.get(key, "")))
        return process

    async def _ask(self, entry: rules.Process) -> EntryStatus | None:
        if entry.state != "up" or entry.address is None:
            return None
        try:
            return await (await self._client(entry.address)).status()
        except ControlError:
            return None  # it may be leaving; the next observation tells

    async def _client(self, address: str) -> ControlClient:
        if self._control is None or self._control[0] != address:
            if self._control is not None:
                await self._control[1].aclose()
            self._control = (address, ControlClient(address))
        return self._control[1]

    async def _apply(self, action: rules.Action) -> None:
        match action:
            case rules.Start(name):
                await self._start(name)
            case rules.Kill(name):
                self._listener.note(f"{name} did not come up in {rules.START_SECONDS:.0f} s")
                self._children[name].kill()
            case rules.SendPlan():
                await self._send_plan(action)
            case rules.SendHosts(hosts):
                await self._send_hosts(hosts)
            case rules.GiveUp(name, reason):
                raise CommandFailed(self._obituary(name, reason))

    async def _start(self, name: str) -> None:
        before = self._seen.processes[name]
        after = replace(before, state="starting", since=self._clock(), starts=before.starts + 1)
        try:
            log = self._logs / f"{name}.log"
            self._children[name] = await Child.start(self._commands[name], log, self._wake.set)
        except OSError as error:
            raise CommandFailed(f"{name} cannot be started: {error}") from error
        self._listener.process(name, "started" if before.starts == 0 else "started again")
        self._seen = replace(self._seen, processes={**self._seen.processes, name: after})

    async def _send_plan(self, action: rules.SendPlan) -> None:
        entry = self._seen.processes[rules.ENTRY]
        assert entry.address is not None, "a plan is sent to an entry that is up"
        client = await self._client(entry.address)
        addresses = {name: address for name, (address, _) in action.hosts.items()}
        try:
            accepted = await client.send_plan(self._plan.with_epoch(action.epoch), addresses, self._forecast)
        except PlanRefused as error:
            self._seen = replace(self._seen, refused=f"the entry refuses it: {error}")
            self._wake.set()
            return
        except ControlError as error:
            self._listener.note(f"the plan was not delivered: {error}")
            return
        if accepted:
            sent = rules.Sent(action.epoch, entry.starts, action.hosts, self._clock(), action.failures)
            self._seen = replace(self._seen, sent=sent)

    async def _send_hosts(self, hosts: Mapping[str, tuple[str, int]]) -> None:
        entry, sent = self._seen.processes[rules.ENTRY], self._seen.sent
        assert entry.address is not None, "hosts are sent to an entry that is up"
        assert sent is not None, "hosts are sent after a plan"
        try:
            await (await self._client(entry.address)).send_hosts({n: a for n, (a, _) in hosts.items()})
        except ControlError as error:
            self._listener.note(f"the addresses were not delivered: {error}")
            return
        self._seen = replace(self._seen, sent=replace(sent, hosts=hosts))

    def _obituary(self, name: str, reason: str) -> str:
        child = self._children.get(name)
        if child is None:  # it is the plan: the entry has told which node, what and the mend
            told = self.status.last_error if self.status else None
            return f"{told} ({name}: {reason})" if told else f"{name}: {reason}"
        words = "".join(f"\n  {line}" for line in child.last_words())
        return (
            f"{name}: {reason}; its last words (all of it in {child.log}):{words}"
            if words
            else f"{name}: {reason}"
        )


def describe_exit(code: int) -> str:
    """``exit code 1`` or ``signal 9``."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"
