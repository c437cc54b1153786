"""Imports in real processes that are killed or interrupted: the old model stays whole, or there is none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from splitinfer.segment_runtime.store.importer import ImportProgress, import_model
from splitinfer.segment_runtime.store.reader import ModelStore, StoredModel
from tests.unit.store.folders import CONFIG, random_tensors, write_folder

# Stops at a point of the import, says so, and waits for the signal: the moment is exact without any sleep.
CHILD = """
import os, signal, sys
from pathlib import Path
from splitinfer.segment_runtime.store import importer, publish
from splitinfer.segment_runtime.store.reader import ModelStore

source, root, point = sys.argv[1:]

def stop(name):
    if name == point:
        print("here", flush=True)
        sys.stdin.read(1)

def around(module, name):
    real = getattr(module, name)
    def wrapped(*args, **kwargs):
        stop(f"before {name}")
        result = real(*args, **kwargs)
        stop(f"after {name}")
        return result
    setattr(module, name, wrapped)

around(importer, "publish")
around(importer, "_write_sides")
around(publish, "sync_folder")
around(publish, "_exchange")
real = importer.write_file
def write_file(path, data):
    entry = real(path, data)
    stop(f"wrote {path.name}")
    return entry
importer.write_file = write_file
importer.import_model(source, name="tiny", store=ModelStore(Path(root)), progress=lambda now: stop(f"unit {now.unit}"))
print("done", flush=True)
"""
POINTS = [
    "unit embed",
    "unit block-001",
    "unit head",
    "wrote config.json",
    "after _write_sides",
    "wrote index.json",
]
POINTS += ["before publish", "before _exchange", "after _exchange", "after publish"]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A model to replace the old one with."""
    write_folder(tmp_path / "new", CONFIG, random_tensors(CONFIG, seed=1))
    return tmp_path / "new"


def stopped_at(point: str, source: Path, store: ModelStore, number: int) -> int:
    """Import in a process of its own, signal it at the point, and return how it ended."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(source), str(store.root), point],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        child.send_signal(number)
        child.wait(60)
    return child.returncode


def read_whole(model: StoredModel) -> None:
    """Every file, verified."""
    for unit in model.index.units:
        model.read_unit(unit)
    for file in model.index.files:
        model.read_file(file)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("replacing", [True, False])
def test_killed(tmp_path: Path, store: ModelStore, other: Path, point: str, replacing: bool) -> None:
    """SIGKILL at each point: the old model or the new one, whole, or none; the next import works and cleans up."""
    digests = {import_model(other, name="tiny", store=ModelStore(tmp_path / "reference")).digest}
    if replacing:
        write_folder(tmp_path / "old")
        digests.add(import_model(tmp_path / "old", name="tiny", store=store).digest)
    elif "_exchange" in point:
        point = "before publish"  # nothing is exchanged where nothing was
    assert stopped_at(point, other, store, signal.SIGKILL) == -signal.SIGKILL
    assert store.names() in ([["tiny"]] if replacing else [["tiny"], []])
    for name in store.names():
        model = store.open(name)
        assert model.digest in digests
        read_whole(model)
    read_whole(import_model(other, name="tiny", store=store))
    assert [p.name for p in store.root.iterdir()] == ["tiny"]


@pytest.mark.parametrize("point", ["unit block-001", "wrote index.json"])
def test_interrupted(store: ModelStore, other: Path, point: str) -> None:
    """SIGINT: nothing is left behind at once, without another import."""
    assert stopped_at(point, other, store, signal.SIGINT) != 0
    assert list(store.root.iterdir()) == []


def test_two_processes_take_turns(store: ModelStore, other: Path) -> None:
    """The lock holds between processes, and goes with the one that is killed while it has it."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(other), str(store.root), "unit block-001"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    told: list[str] = []

    def tell(now: ImportProgress) -> None:
        if now.stage == "wait":
            os.kill(child.pid, signal.SIGKILL)
        told.append(now.stage)

    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        read_whole(import_model(other, name="tiny", store=store, progress=tell))
    assert child.returncode == -signal.SIGKILL
    assert (told[0], told[-1]) == ("wait", "stored")
    assert [p.name for p in store.root.iterdir()] == ["tiny"]
