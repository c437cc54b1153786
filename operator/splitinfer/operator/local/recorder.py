"""Keeps the run file of a pipeline true, from its first process to its end."""

from __future__ import annotations

import os
from pathlib import Path

from splitinfer.operator.local import runfile
from splitinfer.operator.local.agents import LocalAgents
from splitinfer.operator.local.control import EntryStatus
from splitinfer.operator.local.decide import ENTRY
from splitinfer.operator.local.programs import LOOPBACK
from splitinfer.operator.local.supervisor import Listener, Supervisor
from splitinfer.operator.planning.forecast import Basis


class Recorder:
    """A `Listener` that writes the run file before it lets another listener tell what changed."""

    def __init__(
        self,
        teller: Listener,
        model: str,
        port: int,
        store: Path | None = None,
        basis: Basis | None = None,
        agents: LocalAgents | None = None,
    ) -> None:
        """For one pipeline.

        Args:
            teller: is told what changed.
            model: that is served.
            port: as it was asked for; 0 where the entry takes a free one.
            store: that has the model.
            basis: what the plan was made with.
            agents: that measured for it; they are told which processes serve.

        Raises:
            UserError: another pipeline has that port, though it may not listen yet.
        """
        self._teller = teller
        self._model = model
        self._store = store
        self._basis = basis
        self._agents = agents
        self._name = runfile.claim(port)
        self._endpoint = f"http://{LOOPBACK}:{port}" if port else None
        self._serving = False
        self._supervisor: Supervisor | None = None

    def begin(self, supervisor: Supervisor) -> None:
        """Write the run file, and from now on again whenever a process changes."""
        self._supervisor = supervisor
        self._write()

    def served(self) -> None:
        """The pipeline serves for the first time."""
        self._serving = True
        self._write()

    def end(self) -> None:
        """Remove the run file and write no more."""
        self._supervisor = None
        runfile.remove(self._name)

    def process(self, name: str, what: str) -> None:
        """A process changed."""
        self._write()
        self._teller.process(name, what)

    def status(self, status: EntryStatus) -> None:
        """The entry was asked."""
        self._teller.status(status)

    def note(self, text: str) -> None:
        """Something a person should know."""
        self._teller.note(text)

    def _write(self) -> None:
        if self._supervisor is None:
            return
        entry = self._supervisor.listening(ENTRY)
        if "http" in entry:
            self._endpoint = f"http://{entry['http']}"
        if self._agents is not None:
            self._agents.serving(self._metrics())
        pid = os.getpid()
        run = runfile.RunFile(
            endpoint=self._endpoint,
            control=f"http://{entry['control']}" if "control" in entry else None,
            model=self._model,
            serving=self._serving,
            pid=pid,
            started=runfile.started_at(pid) or 0,
            store=self._store,
            basis=self._basis,
            agent=None if self._agents is None else self._agents.address,
            processes={name: child.pid for name, child in self._supervisor.children.items()},
        )
        runfile.write(run, self._name)

    def _metrics(self) -> list[str]:
        """Where the running processes export their metrics: the hosts and the entry."""
        assert self._supervisor is not None, "there are processes"
        found = []
        for name in sorted(self._supervisor.children):
            listening = self._supervisor.listening(name)
            address = listening.get("http" if name == ENTRY else "metrics")
            if address is not None:
                found.append(f"http://{address}/metrics")
        return found
