"""Run files: where the pipelines of this machine are, for ``status`` and ``chat``.

One JSON file per pipeline in ``$SPLITINFER_HOME/run``, named for its port, written whole or not at all,
removed when the pipeline stops. One that was left by a killed supervisor is told by its process id and that
process's start time, and removed by who finds it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from splitinfer.operator.errors import UserError
from splitinfer.operator.local.models import home


class RunFile(BaseModel):
    """A running pipeline.

    ``started`` is the supervisor's start in clock ticks since boot: with the process id it names one
    process for as long as the machine is up.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    endpoint: str
    control: str
    model: str
    pid: int
    started: int
    processes: Mapping[str, int]

    @property
    def alive(self) -> bool:
        """Whether its supervisor still runs."""
        return started_at(self.pid) == self.started


def run_folder() -> Path:
    """``$SPLITINFER_HOME/run``."""
    return home() / "run"


def write(run: RunFile, port: int, folder: Path | None = None) -> Path:
    """Write or replace the file of a pipeline."""
    folder = folder or run_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{port}.json"
    draft = folder / f".{port}.{os.getpid()}"
    draft.write_text(run.model_dump_json(indent=2), "utf-8")
    draft.replace(path)
    return path


def running(folder: Path | None = None) -> list[RunFile]:
    """The pipelines that run now, by port; stale files are removed."""
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
    """The pipeline at ``url``, or the only one.

    Raises:
        UserError: none, several, or none at that address.
    """
    runs = running(folder)
    endpoints = ", ".join(run.endpoint for run in runs) or "none"
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
            raise UserError("--url", "no local pipeline is running; start one with `splitinfer up`")
        case _:
            raise UserError("--url", f"several pipelines are running ({endpoints}); name one")


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
    except (OSError, ValidationError):
        return None
