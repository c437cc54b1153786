"""The agents of this machine: the same that run on the nodes of a cluster, read through the same reader.

Every local node is a process of one machine, so one agent measures for all of them; a second one stands for the far end of
every link. The first answers `measured`; it then runs on beside the pipeline and holds its predictions against live steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from splitinfer.operator.errors import CommandFailed
from splitinfer.operator.local.machine_snapshot import FAR, MACHINE, missing, over_nodes
from splitinfer.operator.local.models import ModelFacts, home
from splitinfer.operator.local.process import Child
from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.profiler.agents import AgentsSource
from splitinfer.profiler.ages import StaleBounds
from splitinfer.profiler.answers import Sample
from splitinfer.profiler.inventory import Entry, Inventory
from splitinfer.profiler.node_speeds import Asked
from splitinfer.profiler.reader import read_snapshot
from splitinfer.profiler.series import PROBE_RUNS
from splitinfer.profiler.sources import SourceError
from splitinfer.profiler.speeds import DISTURBED

AGENT = (sys.executable, "-P", "-m", "splitinfer.profiler.agent")
START_SECONDS = 30.0
MEASURE_SECONDS = 90.0
"""An agent gives a probe 60 s; a model that is not in the page cache takes a while to be read."""
PROBE_INTERVAL_SECONDS = 15.0
"""Between two tries, since somebody waits for the first that is not disturbed; later the budget is what bounds them."""
POLL_SECONDS = 0.2
GRACE_SECONDS = 3.0
KNOWN = Inventory(nodes={MACHINE: Entry(), FAR: Entry()})


@dataclass(frozen=True, slots=True)
class Probed:
    """Whose blocks the agent times, and how a host would run them.

    Attributes:
        threads: of a host; None: its share of the usable CPUs.
        nodes: processes that share them.
    """

    model: ModelFacts
    dtype: str
    engine: str
    device: str
    threads: int | None
    nodes: int

    @property
    def asked(self) -> Asked:
        """As the reader takes it."""
        return Asked(self.model.digest, self.dtype, None if self.engine == "auto" else self.engine)

    @property
    def target(self) -> dict[str, object]:
        """As the agent's targets have it."""
        share = {"cpu_share": self.nodes} if self.threads is None else {"threads": self.threads}
        own = {"model": self.model.name, "dtype": self.dtype, "engine": self.engine, "device": self.device}
        return {**own, **share}


class LocalAgents:
    """Two running agents, and what the first one says. Made by `agents`."""

    def __init__(self, probed: Probed, targets: Path, far: str, machine: Child) -> None:
        self._probed = probed
        self._targets = targets
        self._far = far
        self._machine = machine
        self._serving: tuple[str, ...] = ()

    @property
    def address(self) -> str | None:
        """Of the metrics; None once the agent has left."""
        listening = self._machine.listening
        return None if listening is None or self._machine.exit_code is not None else str(listening["metrics"])

    def serving(self, urls: Sequence[str]) -> None:
        """Tell the agent which processes serve: their CPU time is not that of others, their steps are measurements."""
        if tuple(urls) != self._serving:
            self._serving = tuple(urls)
            _write(self._targets, self._probed, self._far, urls)

    async def measured(self, nodes: Sequence[str]) -> CapacitySnapshot:
        """The snapshot of ``nodes``, once the agent knows its machine or says that it cannot.

        Raises:
            CommandFailed: an agent left, or nothing was known in time.
        """
        bounds = StaleBounds()
        last = "it has said nothing yet"
        async with AgentsSource(lambda: [self.address or ""], bounds.window_seconds) as source:
            try:
                async with asyncio.timeout(MEASURE_SECONDS):
                    while self.address is not None:
                        try:
                            taken, gathered = await read_snapshot(source, self._probed.asked, KNOWN, bounds)
                        except SourceError as error:
                            last = str(error)
                        else:
                            last = ", ".join(missing(taken, self._probed.dtype))
                            if not last:
                                return over_nodes(taken, nodes)
                            why = self._last_word()
                            if _failed(gathered.samples) and not why.endswith(DISTURBED):
                                return over_nodes(taken, nodes, why)
                        await asyncio.sleep(POLL_SECONDS)
            except TimeoutError:
                why = f"in {MEASURE_SECONDS:.0f} s not everything was known: {last}"
                raise CommandFailed(f"this machine could not be measured: {why}") from None
        raise CommandFailed(f"this machine could not be measured: {self._left()}")

    def _last_word(self) -> str:
        words = self._machine.last_words(1)
        return words[0].rpartition("WARNING: ")[2] if words else "the probe failed"

    def _left(self) -> str:
        words = " / ".join(self._machine.last_words())
        return f"its agent left with {self._machine.exit_code} (all of it in {self._machine.log}): {words}"


@contextlib.asynccontextmanager
async def agents(probed: Probed) -> AsyncIterator[LocalAgents]:
    """Both agents, up; gone at the end. Their logs stay where something failed.

    Raises:
        CommandFailed: one does not come up; its last words are in the message.
    """
    # Not the pipeline's own folder: that is made anew by whoever gets its port.
    folder = home() / "logs" / f"agents-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandFailed(
            f"SPLITINFER_HOME: {folder} cannot be made: {error.strerror}; set it elsewhere"
        ) from None
    async with _running(probed, folder) as found:
        yield found
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def _running(probed: Probed, folder: Path) -> AsyncIterator[LocalAgents]:
    targets = folder / "agent-targets.json"
    async with contextlib.AsyncExitStack() as stack:
        far = await _started(stack, folder, "agent-far", ("--node", FAR))
        address = str((far.listening or {})["probe"])
        _write(
            targets, probed, address, ()
        )  # before the agent begins, or its first probe comes a round later
        options = ("--node", MACHINE, "--metrics", "127.0.0.1:0", "--targets", str(targets))
        more = ("--store", str(probed.model.root), "--probe-interval", str(PROBE_INTERVAL_SECONDS))
        machine = await _started(stack, folder, "agent", (*options, *more))
        yield LocalAgents(probed, targets, address, machine)


def _write(path: Path, probed: Probed, far: str, serving: Sequence[str]) -> None:
    targets = {
        "peers": {FAR: {"address": far, "site": None}},
        "serving": list(serving),
        "probes": [probed.target],
    }
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(targets), "utf-8")
    draft.replace(path)


async def _started(
    stack: contextlib.AsyncExitStack, folder: Path, name: str, options: Sequence[str]
) -> Child:
    changed = asyncio.Event()
    try:
        child = await Child.start((*AGENT, *options), folder / f"{name}.log", changed.set)
    except OSError as error:
        raise CommandFailed(f"{name} cannot be started: {error}") from error
    stack.push_async_callback(child.stop, GRACE_SECONDS)
    try:
        await asyncio.wait_for(changed.wait(), START_SECONDS)
    except TimeoutError:
        raise CommandFailed(f"{name} did not come up in {START_SECONDS:.0f} s") from None
    if child.listening is None:
        words = " / ".join(child.last_words())
        raise CommandFailed(f"{name} left with {child.exit_code} (all of it in {child.log}): {words}")
    return child


def _failed(samples: Sequence[Sample]) -> bool:
    return any(
        s.name == PROBE_RUNS.name and s.labels.get("outcome") == "failed" and s.value > 0 for s in samples
    )
