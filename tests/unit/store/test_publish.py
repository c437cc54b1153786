"""Putting a folder in place: locks, leftovers of the dead, and both ways to replace a model."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from splitinfer.segment_runtime.store import publish
from splitinfer.segment_runtime.store.errors import DiskFull, ImportFailed
from splitinfer.segment_runtime.store.importer import ImportProgress, import_model
from splitinfer.segment_runtime.store.reader import ModelStore
from tests.unit.store.folders import CONFIG, random_tensors, write_folder


def test_two_imports_of_a_name_take_turns(folder: Path, store: ModelStore) -> None:
    """The second waits, says so, and finds what the first stored."""
    inside, waiting = threading.Event(), threading.Event()
    told: list[str] = []

    def hold(now: ImportProgress) -> None:
        if now.stage == "write" and not inside.is_set():
            inside.set()
            assert waiting.wait(30)

    def listen(now: ImportProgress) -> None:
        told.append(now.stage)
        if now.stage == "wait":
            waiting.set()

    def second() -> None:
        assert inside.wait(30)
        import_model(folder, store=store, progress=listen)

    thread = threading.Thread(target=second)
    thread.start()
    import_model(folder, store=store, progress=hold)
    thread.join(30)
    assert told[0] == "wait"
    assert told[-1] == "unchanged"
    assert sorted(p.name for p in store.root.iterdir()) == ["tiny"]


def test_who_waited_holds_the_lock_that_has_the_name(tmp_path: Path) -> None:
    """The holder removes the lock file when it is done: who waited for it takes a new one, which keeps others out."""
    waiting, holding, done = threading.Event(), threading.Event(), threading.Event()

    def second() -> None:
        with publish.locked(tmp_path, "m", waiting.set):
            holding.set()
            assert done.wait(30)

    thread = threading.Thread(target=second)
    with publish.locked(tmp_path, "m"):
        thread.start()
        assert waiting.wait(30)
    assert holding.wait(30)
    told: list[str] = []

    def tell() -> None:
        told.append("waits")
        done.set()

    with publish.locked(tmp_path, "m", tell):
        assert told == ["waits"]
    thread.join(30)
    assert list(tmp_path.iterdir()) == []


def test_other_names_do_not_wait(folder: Path, store: ModelStore) -> None:
    """An import inside another's, under another name, neither blocks nor removes what the other writes."""
    done: list[str] = []

    def inner(now: ImportProgress) -> None:
        if now.unit == "block-001" and not done:
            done.append(import_model(folder, name="other", store=store).name)

    import_model(folder, store=store, progress=inner)
    assert store.names() == ["other", "tiny"]


def test_leftovers_of_the_dead_are_removed(folder: Path, store: ModelStore) -> None:
    """Partial folders and locks without a holder, of this name and others, go at the next import."""
    for name in ("tiny", "other.v1"):
        partial = store.root / f".{name}.0123456789abcdef.partial"
        partial.mkdir(parents=True)
        (partial / "embed.safetensors").write_bytes(b"half")
    (store.root / ".tiny.lock").touch()
    assert store.names() == []
    import_model(folder, store=store)
    assert [p.name for p in store.root.iterdir()] == ["tiny"]


def test_hidden_things_of_others_stay(folder: Path, store: ModelStore) -> None:
    """What only looks alike is not ours to remove."""
    keep = store.root / ".keep.partial"
    keep.mkdir(parents=True)
    import_model(folder, store=store)
    assert keep.is_dir()


def replace(store: ModelStore, tmp_path: Path) -> str:
    """Import another model as ``tiny``; returns its digest."""
    write_folder(tmp_path / "other", CONFIG, random_tensors(CONFIG, seed=1))
    return import_model(tmp_path / "other", name="tiny", store=store).digest


def test_replacing_without_exchange(
    folder: Path, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system cannot exchange two folders, the result is the same."""
    old = import_model(folder, store=store)
    monkeypatch.setattr(publish, "_exchange", lambda *_: False)
    assert replace(store, tmp_path) == store.open("tiny").digest != old.digest
    assert [p.name for p in store.root.iterdir()] == ["tiny"]


def test_stopped_between_the_two_renames(
    folder: Path, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the old model was moved aside: it is still there under its name, and the next import puts it back."""
    old = import_model(folder, store=store)
    (store.root / "tiny").rename(store.root / ".tiny.previous")
    assert store.names() == ["tiny"]
    assert store.open("tiny").digest == old.digest
    store.open("tiny").read_unit("block-000")
    monkeypatch.setattr(publish, "_exchange", lambda *_: False)
    assert replace(store, tmp_path) == store.open("tiny").digest != old.digest
    assert [p.name for p in store.root.iterdir()] == ["tiny"]


def test_stopped_after_the_two_renames(folder: Path, store: ModelStore) -> None:
    """Killed before the old model was removed: the new one is read, and the next import removes the old."""
    new = import_model(folder, store=store)
    (store.root / ".tiny.previous").mkdir()
    assert store.open("tiny").digest == new.digest
    import_model(folder, store=store)
    assert [p.name for p in store.root.iterdir()] == ["tiny"]


def test_interrupt_leaves_nothing(folder: Path, store: ModelStore) -> None:
    """Ctrl-C in the middle: no partial folder, no lock."""

    def interrupt(now: ImportProgress) -> None:
        if now.unit == "block-001":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_model(folder, store=store, progress=interrupt)
    assert list(store.root.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    "file", ["embed.safetensors", "block-002.safetensors", "tokenizer.json", "index.json"]
)
def test_disk_fills_up(
    folder: Path, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, file: str
) -> None:
    """ENOSPC at any file: the error has the needed and free bytes, the old model stays, nothing else is left."""
    old = import_model(folder, store=store)
    real = os.fsync

    def full(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().name == file:
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match=r"needs [\d,]+ bytes, [\d,]+ are free.*--store") as caught:
        replace(store, tmp_path)
    assert caught.value.needed_bytes == sum(t.nbytes for t in random_tensors(CONFIG).values())
    assert caught.value.free_bytes > 0
    assert store.open("tiny").digest == old.digest
    assert [p.name for p in store.root.iterdir()] == ["tiny"]


def test_too_large_is_told_before_writing(
    folder: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that cannot fit is refused at once: not one byte is written."""
    told: list[ImportProgress] = []
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    with pytest.raises(DiskFull, match="1,000 are free"):
        import_model(folder, store=store, progress=told.append)
    assert told == []
    assert list(store.root.iterdir()) == []


def test_a_store_that_cannot_be_made(folder: Path, tmp_path: Path) -> None:
    """A file where the store should be: named, as a failed import."""
    (tmp_path / "file").touch()
    with pytest.raises(ImportFailed, match="file/store"):
        import_model(folder, store=ModelStore(tmp_path / "file" / "store"))
