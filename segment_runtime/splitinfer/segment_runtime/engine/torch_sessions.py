"""KV of the sessions of one range, with exact accounting. Nothing here computes."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from splitinfer.segment_runtime.engine.checks import check_batch, check_capacity, check_export, check_restore
from splitinfer.segment_runtime.engine.port import KvBlob, SessionError, SessionRows
from splitinfer.segment_runtime.engine.torch_arrays import TORCH_DTYPES, to_array
from splitinfer.segment_runtime.engine.torch_memory import reserve


class Session:
    """The KV of one session: ``[blocks, 2 (keys, values), kv_heads, capacity, head_dim]``.

    Reserved whole and not touched: a page becomes resident when a token is written to it.
    """

    __slots__ = ("capacity", "kv", "length")

    def __init__(self, kv: torch.Tensor) -> None:
        self.kv = kv
        self.capacity = kv.shape[3]
        self.length = 0

    def views(self, begin: int, end: int) -> Sequence[torch.Tensor]:
        """Tokens ``[begin, end)``: ``[1, kv_heads, end - begin, head_dim]`` for each block, keys then values."""
        blocks, two, kv_heads, _, head_dim = self.kv.shape
        window = self.kv.narrow(3, begin, end - begin)
        return window.view(blocks * two, 1, kv_heads, end - begin, head_dim).unbind(0)


class SessionTable:
    """Open sessions of one range. Opening and closing may run beside a step."""

    def __init__(self, blocks: int, kv_heads: int, head_dim: int, dtype: str, device: torch.device) -> None:
        self.dtype = dtype
        self._torch_dtype = TORCH_DTYPES[dtype]
        self._device = device
        self._shape = (blocks, 2, kv_heads, head_dim)
        self.bytes_per_token = blocks * 2 * kv_heads * head_dim * self._torch_dtype.itemsize
        self._sessions: dict[int, Session] = {}
        self._lock = threading.Lock()

    @property
    def reserved_bytes(self) -> int:
        """The sum over open sessions of capacity x bytes per token."""
        return sum(session.capacity for session in list(self._sessions.values())) * self.bytes_per_token

    def open(self, session: int, capacity: int) -> None:
        """Reserve KV for ``capacity`` tokens."""
        check_capacity(session, capacity)
        blocks, two, kv_heads, head_dim = self._shape
        with self._lock:
            if session in self._sessions:
                raise SessionError(f"session {session}: is open already")
            memory = reserve(capacity * self.bytes_per_token, self._device).view(self._torch_dtype)
            self._sessions[session] = Session(memory.view(blocks, two, kv_heads, capacity, head_dim))

    def close(self, session: int) -> None:
        """Free the KV of a session."""
        with self._lock:
            if self._sessions.pop(session, None) is None:
                raise SessionError(f"session {session}: is not open")

    def clear(self) -> None:
        """Free every session."""
        with self._lock:
            self._sessions.clear()

    def get(self, session: int) -> Session:
        """An open session."""
        found = self._sessions.get(session)
        if found is None:
            raise SessionError(f"session {session}: is not open")
        return found

    def check(self, batch: Sequence[SessionRows]) -> list[Session]:
        """The sessions of a batch, each able to take its rows. Raises SessionError; changes nothing."""
        return check_batch(batch, self.get)

    def export(self, session: int, begin: int, end: int) -> KvBlob:
        """KV of tokens ``[begin, end)``."""
        found = self.get(session)
        check_export(session, found.length, begin, end)
        part = found.kv.narrow(3, begin, end - begin).contiguous().cpu()
        return KvBlob(begin, end, self.dtype, to_array(part).tobytes())

    def restore(self, session: int, blob: KvBlob) -> None:
        """Append exported KV."""
        found = self.get(session)
        count = check_restore(session, found, blob, self.dtype, self.bytes_per_token)
        if count == 0:
            return
        blocks, two, kv_heads, head_dim = self._shape
        # bytearray, because torch wants memory that may be written to
        flat = torch.frombuffer(bytearray(blob.data), dtype=self._torch_dtype)
        part = flat.view(blocks, two, kv_heads, count, head_dim)
        found.kv.narrow(3, blob.begin, count).copy_(part)
        found.length = blob.end
