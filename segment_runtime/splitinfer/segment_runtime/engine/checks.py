"""What every engine asks before it touches a tensor, whatever its library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from splitinfer.segment_runtime.engine.port import (
    KvBlob,
    LoadError,
    SessionError,
    SessionRows,
    UnsupportedModel,
)
from splitinfer.segment_runtime.engine.threads import MAX_THREADS, usable_cpus
from splitinfer.segment_runtime.store.reader import StoredModel


class KvSession(Protocol):
    """KV of a session, as far as the rules need to see it."""

    capacity: int
    length: int


S = TypeVar("S", bound=KvSession)


def no_progress(loaded: int) -> None:
    """Report to nobody."""


def thread_count(threads: int | None) -> int:
    """What was asked for, or as many CPUs as the process may use. Raises UnsupportedModel."""
    count = min(usable_cpus(), MAX_THREADS) if threads is None else threads
    if not 1 <= count <= MAX_THREADS:
        raise UnsupportedModel(f"threads: {count}: it must be from 1 to {MAX_THREADS}")
    return count


def check_blocks(model: StoredModel, start: int, stop: int) -> None:
    """``[start, stop)`` is a range of the model's blocks. Raises LoadError."""
    if not 0 <= start < stop <= model.index.blocks:
        raise LoadError(
            f"{model.name}: blocks [{start}, {stop}): it has blocks 0 to {model.index.blocks - 1}"
        )


def check_capacity(session: int, capacity: int) -> None:
    """A session is opened for a token at least. Raises SessionError."""
    if capacity < 1:
        raise SessionError(f"session {session}: capacity {capacity}: it must be at least 1 token")


def check_batch(batch: Sequence[SessionRows], get: Callable[[int], S]) -> list[S]:
    """The sessions of a batch, each able to take its rows. Changes nothing.

    Args:
        batch: rows of each session.
        get: an open session by its number.

    Raises:
        SessionError: a session stands twice, is not open, is out of step or past its capacity.
    """
    found: list[S] = []
    seen: set[int] = set()
    for rows in batch:
        if rows.session in seen:
            raise SessionError(f"session {rows.session}: is in the batch twice")
        seen.add(rows.session)
        session = get(rows.session)
        if rows.count < 1:
            raise SessionError(f"session {rows.session}: count {rows.count}: it must be at least 1")
        _check_append(rows.session, session, rows.position, rows.count)
        found.append(session)
    return found


def check_export(session: int, length: int, begin: int, end: int) -> None:
    """Tokens ``[begin, end)`` are there. Raises SessionError."""
    if not 0 <= begin <= end <= length:
        raise SessionError(f"session {session}: tokens [{begin}, {end}) of {length} cannot be exported")


def check_restore(name: int, session: KvSession, blob: KvBlob, dtype: str, bytes_per_token: int) -> int:
    """A blob goes on where the session ends, and has the range's dtype and size. Raises SessionError.

    Returns:
        Tokens in the blob.
    """
    if blob.dtype != dtype:
        raise SessionError(f"session {name}: KV is {blob.dtype}, the range is {dtype}")
    count = blob.end - blob.begin
    if count < 0:
        raise SessionError(f"session {name}: KV of tokens [{blob.begin}, {blob.end})")
    if len(blob.data) != count * bytes_per_token:
        raise SessionError(
            f"session {name}: {len(blob.data)} bytes of KV, {count} tokens take {count * bytes_per_token}"
        )
    _check_append(name, session, blob.begin, count)
    return count


def _check_append(name: int, session: KvSession, position: int, count: int) -> None:
    if position != session.length:
        raise SessionError(f"session {name}: position {position}, its cache holds {session.length} tokens")
    if position + count > session.capacity:
        raise SessionError(
            f"session {name}: {count} tokens at {position} pass its capacity of {session.capacity}"
        )
