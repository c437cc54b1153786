"""KV of the sessions of one range in one slab, so that any run of slots is a batch. Nothing here computes.

Attention of a batch takes the keys of all its sessions as one array ``[batch, kv_heads, stride, head_dim]``: sessions
of a step must lie side by side. So a session has a slot, slots are moved where a step needs them, and the stride is
common. Only tokens that were written are resident; a closed session's pages go back at once.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinfer.segment_runtime.engine.checks import check_batch, check_capacity, check_export, check_restore
from splitinfer.segment_runtime.engine.port import KvBlob, SessionError, SessionRows

DTYPE = "float32"
_ITEM = 4
_PAGE = mmap.PAGESIZE
_FIRST_SLOTS = 8
_SPARE = 2
"""Tokens of a slot past the largest capacity: a row that is only there for company writes behind the last token."""


class Session:
    """A session: what it may hold and what it holds. ``slot`` is None until its first token."""

    __slots__ = ("capacity", "length", "slot")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.slot: int | None = None


class Slab:
    """Open sessions of one range and their KV ``[blocks, 2 (keys, values), slots, kv_heads, stride, head_dim]``.

    Opening and closing may run beside a step; placing and moving happen in steps and imports only.

    Attributes:
        version: grows when arrays are made anew, and addresses that were taken before are no good.
    """

    def __init__(self, blocks: int, kv_heads: int, head_dim: int) -> None:
        self._blocks = blocks
        self._kv_heads = kv_heads
        self._head_dim = head_dim
        self.bytes_per_token = blocks * 2 * kv_heads * head_dim * _ITEM
        self._sessions: dict[int, Session] = {}
        self._slots: list[int | None] = []
        self._region: mmap.mmap | None = None
        self._kv: NDArray[np.float32] = np.empty((blocks, 2, 0, kv_heads, 0, head_dim), np.float32)
        self._lock = threading.RLock()
        self.version = 0

    # --- sessions -------------------------------------------------------------------------------

    @property
    def reserved_bytes(self) -> int:
        """The sum over open sessions of capacity x bytes per token."""
        return sum(session.capacity for session in list(self._sessions.values())) * self.bytes_per_token

    @property
    def stride(self) -> int:
        """Tokens that a slot has room for."""
        return int(self._kv.shape[4])

    @property
    def slots(self) -> int:
        """Slots, taken and free."""
        return len(self._slots)

    def open(self, session: int, capacity: int) -> None:
        """Reserve KV for ``capacity`` tokens."""
        check_capacity(session, capacity)
        with self._lock:
            if session in self._sessions:
                raise SessionError(f"session {session}: is open already")
            self._sessions[session] = Session(capacity)

    def close(self, session: int) -> None:
        """Free the KV of a session."""
        with self._lock:
            found = self._sessions.pop(session, None)
            if found is None:
                raise SessionError(f"session {session}: is not open")
            if found.slot is not None:
                self._slots[found.slot] = None
                self._give_back(found.slot)

    def clear(self) -> None:
        """Free every session and the slab."""
        with self._lock:
            self._sessions.clear()
            self._slots = []
            self._kv = np.empty((self._blocks, 2, 0, self._kv_heads, 0, self._head_dim), np.float32)
            self._region = None
            self.version += 1

    def get(self, session: int) -> Session:
        """An open session."""
        found = self._sessions.get(session)
        if found is None:
            raise SessionError(f"session {session}: is not open")
        return found

    def check(self, batch: Sequence[SessionRows]) -> list[Session]:
        """The sessions of a batch, each able to take its rows. Raises SessionError; changes nothing."""
        return check_batch(batch, self.get)

    # --- slots ------------------------------------------------------------------------------------

    def place(self, sessions: Sequence[int]) -> None:
        """Give every session a slot, making the slab larger where it must be."""
        with self._lock:
            found = [(name, self.get(name)) for name in sessions]
            stride = max((s.capacity for s in self._sessions.values()), default=1) + _SPARE
            free = sum(name is None for name in self._slots)
            missing = sum(session.slot is None for _, session in found)
            # One slot is always free or more than one is there: a lone row may need a neighbour.
            slots = len(self._slots)
            while slots - len(self._slots) + free < missing or slots < 2:
                slots = max(_FIRST_SLOTS, 2 * slots)
            if stride > self.stride or slots > len(self._slots):
                self._grow(slots, stride)
            for name, session in found:
                if session.slot is None:
                    session.slot = self._slots.index(None)
                    self._slots[session.slot] = name

    def gather(self, sessions: Sequence[int]) -> int:
        """Move placed sessions so that they fill a run of slots, in whatever order. Gives the first slot.

        Few tokens move: the run is laid where most of the sessions lie already, and a group that goes on
        together, step after step, stays where it is.
        """
        with self._lock:
            taken = sorted(self._slot(name) for name in sessions)
            count = len(taken)
            if taken[-1] - taken[0] + 1 == count:
                return taken[0]
            last = len(self._slots) - count
            first = max(
                (min(slot, last) for slot in taken),
                key=lambda s: (sum(s <= t < s + count for t in taken), -s),
            )
            inside = set(range(first, first + count))
            wanted = sorted(inside - set(taken))
            for target, source in zip(wanted, (slot for slot in taken if slot not in inside), strict=True):
                self._swap(source, target)
            return first

    def lengths(self, first: int, count: int) -> list[int]:
        """Tokens in each of ``count`` slots from ``first`` on, 0 for a free one."""
        names = self._slots[first : first + count]
        return [0 if name is None else self._sessions[name].length for name in names]

    def _slot(self, name: int) -> int:
        slot = self.get(name).slot
        assert slot is not None, "placed before"
        return slot

    def _swap(self, source: int, target: int) -> None:
        """Exchange two slots: the tokens of both, and who is in them."""
        names = self._slots[source], self._slots[target]
        lengths = [0 if name is None else self._sessions[name].length for name in names]
        count = max(lengths)
        left, right = self._kv[:, :, source, :, :count], self._kv[:, :, target, :, :count]
        if lengths[1]:
            kept = left.copy()
            left[...] = right
            right[...] = kept
        else:
            right[...] = left
        for name, slot in zip(names, (target, source), strict=True):
            self._slots[slot] = name
            if name is not None:
                self._sessions[name].slot = slot
        if names[1] is None:
            self._give_back(source)

    def _grow(self, slots: int, stride: int) -> None:
        """Another region with more room; what sessions hold is copied, the rest is not touched."""
        if stride > self.stride:
            stride = max(stride, 2 * self.stride)
            # Whole pages per slot, so that a slot's pages can be given back by themselves.
            step = max(1, _PAGE // np.gcd(_PAGE, self._kv_heads * self._head_dim * _ITEM))
            stride = -(-stride // step) * step
        else:
            stride = self.stride
        old = self._kv
        shape = (self._blocks, 2, slots, self._kv_heads, stride, self._head_dim)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self._region = mmap.mmap(-1, int(np.prod(shape, dtype=np.int64)) * _ITEM, flags=flags)
        self._kv = np.frombuffer(self._region, np.float32).reshape(shape)
        for slot, name in enumerate(self._slots):
            if name is not None and (count := self._sessions[name].length):
                self._kv[:, :, slot, :, :count] = old[:, :, slot, :, :count]
        self._slots += [None] * (slots - len(self._slots))
        self.version += 1

    def _give_back(self, slot: int) -> None:
        """The pages of a free slot, in every block."""
        assert self._region is not None
        size = self._kv_heads * self.stride * self._head_dim * _ITEM
        for at in range(self._blocks * 2):
            self._region.madvise(mmap.MADV_DONTNEED, (at * len(self._slots) + slot) * size, size)

    # --- memory -------------------------------------------------------------------------------------

    def address(self, block: int, part: int, first: int, count: int) -> tuple[int, tuple[int, int, int, int]]:
        """Address and shape of keys (part 0) or values (1) of a run of slots in a block of the range."""
        run: NDArray[Any] = self._kv[block, part, first : first + count]
        return run.ctypes.data, (count, self._kv_heads, self.stride, self._head_dim)

    # --- bytes ----------------------------------------------------------------------------------------

    def export(self, session: int, begin: int, end: int) -> KvBlob:
        """KV of tokens ``[begin, end)``."""
        found = self.get(session)
        check_export(session, found.length, begin, end)
        if begin == end:
            return KvBlob(begin, end, DTYPE, b"")
        return KvBlob(begin, end, DTYPE, self._kv[:, :, self._slot(session), :, begin:end].tobytes())

    def restore(self, session: int, blob: KvBlob) -> None:
        """Append exported KV."""
        found = self.get(session)
        count = check_restore(session, found, blob, DTYPE, self.bytes_per_token)
        if count == 0:
            return
        self.place([session])
        part = np.frombuffer(blob.data, np.float32).reshape(
            self._blocks, 2, self._kv_heads, count, self._head_dim
        )
        self._kv[:, :, self._slot(session), :, blob.begin : blob.end] = part
        found.length = blob.end
