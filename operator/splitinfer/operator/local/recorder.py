"""Keeps the run file of a pipeline true, from its first process to its end."""

from __future__ import annotations

import os
from pathlib import Path

from splitinfer.operator.local import runfile
from splitinfer.operator.local.control import EntryStatus
from splitinfer.operator.local.decide import ENTRY
from splitinfer.operator.local.programs import LOOPBACK
from splitinfer.operator.local.supervisor import Listener, Supervisor
from splitinfer.operator.planning.forecast import Basis


class Recorder:
    """A `Listener` that writes the run file before it lets another listener tell what changed."""

    def __init__(
        self, teller: Listener, model: str, port: int, store: Path | None = None, basis: Basis | None = None
    ) -> None:
        """``basis`` is what the plan was made with, in ``store``; ``port`` as it was asked for; 0 where the entry takes a free one.

        Raises:
            UserError: another pipeline has that port, though it may not listen yet.
        """
        self._teller = teller
        self._model = model
        self._store = store
        self._basis = basis
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
            processes={name: child.pid for name, child in self._supervisor.children.items()},
        )
        runfile.write(run, self._name)
