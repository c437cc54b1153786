"""Run files: where the pipelines of this machine are, for ``status`` and ``chat``.

One JSON file per pipeline in ``$SPLITINFER_HOME/run``, named for its port (or for its supervisor, where it takes a
free one), there from its first process to its end, written whole or not at all. One that was left by a killed supervisor is told by its process id and that
process's start time, and removed by who finds it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from splitinfer.operator.errors import CommandFailed, UserError
from splitinfer.operator.local.models import home
from splitinfer.operator.planning.forecast import Basis
from splitinfer.optimizer.values import OptimizerInputError


class RunFile(BaseModel):
    """A pipeline that starts or runs.

    ``endpoint`` and ``control`` are None while they are not known: the entry is starting, for the first time or again.
    ``serving`` is whether it has served. ``started`` is the supervisor's start in clock ticks since boot: with the
    process id it names one process for as long as the machine is up.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    endpoint: str | None
    control: str | None
    model: str
    serving: bool
    pid: int
    started: int
    store: Path | None = None
    """Folder of the store that has the model."""
    basis: Basis | None = None
    """What the plan was made with; None for one that was given."""
    agent: str | None = None
    """``host:port`` of the metrics of the agent that measures this machine; None without one."""
    processes: Mapping[str, int]

    @property
    def alive(self) -> bool:
        """Whether its supervisor still runs."""
        return started_at(self.pid) == self.started


def run_folder() -> Path:
    """``$SPLITINFER_HOME/run``."""
    return home() / "run"


def claim(port: int, folder: Path | None = None) -> str:
    """The name of the file of a pipeline on a port; 0 for any free one.

    Raises:
        UserError: a pipeline of this machine has the port, though it may not listen yet.
    """
    if port == 0:
        return f"pid-{os.getpid()}"
    run = _read((folder or run_folder()) / f"{port}.json")
    if run is not None and run.alive and run.pid != os.getpid():
        does = "is served" if run.serving else "is being started"
        raise UserError("--port", f"{port}: a pipeline {does} there by process {run.pid}; choose another")
    return str(port)


def write(run: RunFile, name: str, folder: Path | None = None) -> Path:
    """Write or replace the file of a pipeline."""
    folder = folder or run_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    draft = folder / f".{name}.{os.getpid()}"
    draft.write_text(run.model_dump_json(indent=2), "utf-8")
    draft.replace(path)
    return path


def remove(name: str, folder: Path | None = None) -> None:
    """Remove the file of a pipeline, if it is there."""
    ((folder or run_folder()) / f"{name}.json").unlink(missing_ok=True)


def running(folder: Path | None = None) -> list[RunFile]:
    """The pipelines that start or run now; stale files are removed."""
    found = []
    for path in sorted((folder or run_folder()).glob("*.json")):
        run = _read(path)
        if run is not None and run.alive:
            found.append(run)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    return found


def the_one(url: str | None, folder: Path | None = None) -> RunFile:
    """The pipeline at ``url``, or the only one; it may be starting.

    Raises:
        UserError: none at that address.
        CommandFailed: none at all, or several.
    """
    runs = running(folder)
    endpoints = ", ".join(_called(run) for run in runs) or "none"
    if url is not None:
        wanted = url.rstrip("/").removesuffix("/v1")
        match [run for run in runs if wanted in (run.endpoint, run.control)]:
            case [run]:
                return run
            case _:
                raise UserError("--url", f"no local pipeline at {url} (running: {endpoints})")
    match runs:
        case [run]:
            return run
        case []:
            raise CommandFailed("no local pipeline is running; start one with `splitinfer up`")
        case _:
            raise CommandFailed(f"several pipelines are running ({endpoints}); name one with --url")


def endpoint_of_the_one(folder: Path | None = None) -> str:
    """Where the only pipeline answers. Raises CommandFailed where there is none or several, or it is starting."""
    run = the_one(None, folder)
    if run.endpoint is None or not run.serving:
        raise CommandFailed(
            f"the pipeline {_called(run)} is starting and does not answer yet; `splitinfer status` shows how far it is"
        )
    return run.endpoint


def _called(run: RunFile) -> str:
    return run.endpoint or f"of process {run.pid}"


def started_at(pid: int) -> int | None:
    """When a process was started, in clock ticks since boot; None if there is none (or it is a zombie)."""
    try:
        # The name in brackets may hold anything, spaces and brackets too.
        after_name = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] == "Z" else int(after_name[19])


def _read(path: Path) -> RunFile | None:
    try:
        return RunFile.model_validate_json(path.read_text("utf-8"))
    except (OSError, ValidationError, OptimizerInputError):
        return None
