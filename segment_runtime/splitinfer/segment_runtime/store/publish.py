"""Putting a model folder in its place at once: a lock per name, partial folders, an atomic exchange.

Names in the root, all hidden but the model's own:

    NAME                        a complete model
    .NAME.lock                  held (flock) by the import of NAME; the kernel frees it when its holder dies
    .NAME.TOKEN.partial         being written, or about to be removed; never read
    .NAME.previous              the complete model while NAME is replaced in two steps; read if NAME is absent
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from splitinfer.segment_runtime.store.errors import BadName
from splitinfer.segment_runtime.store.writer import sync_folder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PARTIAL = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.partial")
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def check_name(name: str) -> str:
    """The name itself. Raises BadName if it cannot be a model's."""
    if not _NAME.fullmatch(name):
        raise BadName(
            f"name: {name!r} cannot name a model: use letters, digits, '.', '_' and '-', a letter or digit first, "
            "128 characters at most; choose one with --name"
        )
    return name


@contextmanager
def locked(root: Path, name: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a name. ``waiting`` is called once if another import has it."""
    handle = _take(root / f".{name}.lock", waiting)
    try:
        yield
    finally:
        # Unlinked while held: who waits for this file finds that it has no name any more, and takes a new one.
        with suppress(FileNotFoundError):
            (root / f".{name}.lock").unlink()
        os.close(handle)


def _take(path: Path, waiting: Callable[[], None] | None) -> int:
    """An open, locked handle of the file that has this path now. ``waiting`` None: BlockingIOError instead of a wait."""
    told = False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is None:
                    raise
                if not told:
                    waiting()
                    told = True
                fcntl.flock(handle, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(handle)):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


@contextmanager
def partial_folder(root: Path, name: str) -> Iterator[Path]:
    """A new hidden folder, gone afterwards unless it was published. The caller holds the lock of the name."""
    path = root / f".{name}.{secrets.token_hex(8)}.partial"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def remove_stale(root: Path, name: str) -> None:
    """Remove what dead imports left. The caller holds the lock of ``name``; other names are tried without waiting."""
    for path in root.glob(".*.partial"):
        match = _PARTIAL.fullmatch(path.name)
        if match is None:
            continue
        other = match["name"]
        if other == name:
            shutil.rmtree(path, ignore_errors=True)
            continue
        lock = root / f".{other}.lock"
        with suppress(BlockingIOError):
            handle = _take(lock, None)
            shutil.rmtree(path, ignore_errors=True)
            with suppress(FileNotFoundError):
                lock.unlink()
            os.close(handle)
    _finish_replacement(root, name)


def publish(partial: Path, final: Path) -> None:
    """Make ``partial`` the model at ``final``; what was there is removed after that. The caller holds the lock.

    At every moment `complete_folder` finds the old model or the new one.
    """
    sync_folder(partial)
    if not final.exists():
        partial.rename(final)
    elif _exchange(partial, final):
        # What is called partial now is the old model.
        pass
    else:
        previous = final.with_name(f".{final.name}.previous")
        final.rename(previous)
        partial.rename(final)
        sync_folder(final.parent)
        shutil.rmtree(previous)
    sync_folder(final.parent)


def complete_folder(root: Path, name: str) -> Path:
    """Where the model of a name is to be read: its folder, or the one it had if a replacement stopped half way."""
    final, previous = root / name, root / f".{name}.previous"
    return previous if not final.exists() and previous.exists() else final


def replaced_half_way(root: Path) -> set[str]:
    """Names whose model is to be read where it was moved aside."""
    return {path.name[1 : -len(".previous")] for path in root.glob(".*.previous")}


def _finish_replacement(root: Path, name: str) -> None:
    final, previous = root / name, root / f".{name}.previous"
    if previous.exists():
        if final.exists():
            shutil.rmtree(previous, ignore_errors=True)
        else:
            previous.rename(final)


def _exchange(left: Path, right: Path) -> bool:
    """Swap two folders atomically; False where the system or the file system (NFS) cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(left), None, str(right))
