"""The engine port: the compute of a range of blocks, behind numpy and bytes.

Only the engines know a tensor library. Everything else in the runtime holds numpy arrays, where
bfloat16 is ``ml_dtypes.bfloat16``.

Errors
------
EngineError               base: the engine cannot do what was asked
├── UnsupportedModel      this engine has no recipe for the architecture, dtype or device (by name)
├── LoadError             weights that do not match the index, or are not finite
├── SessionError          a session that is unknown, already open, past its capacity, or out of step
└── StepInterrupted       a step that was asked to end early, and did
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from splitinfer.segment_runtime.store.reader import StoredModel

    Array = NDArray[np.generic]
else:
    Array = Any


class EngineError(Exception):
    """The engine cannot do what was asked."""


class UnsupportedModel(EngineError):
    """No recipe for this architecture, dtype or device."""


class LoadError(EngineError):
    """Weights that do not match the index, or are not finite."""


class SessionError(EngineError):
    """A session that is unknown, already open, past its capacity or out of step."""


class StepInterrupted(EngineError):
    """A step that was asked to end early, and did: no session has grown by it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What the bits of a result depend on besides weights and inputs. They are promised inside one such class.

    Attributes:
        engine: name of the engine.
        version: of its libraries.
        instruction_set: of the machine, as far as kernels differ by it.
        exact: a row has the same bits whoever shares its step and however a prompt is cut into chunks. Only a
            generated token, fed by itself, differs from the same token inside a chunk; so a replay repeats the bits
            if it feeds generated tokens one by one.
    """

    engine: str
    version: str
    instruction_set: str
    exact: bool


@dataclass(frozen=True, slots=True)
class SessionRows:
    """Rows of one session in a step: tokens ``[position, position + count)`` of that session.

    ``decode`` says that the row is a generated token in a step of its own; it has ``count`` 1. A prompt's last chunk
    may have one row too, and must have the bits that a larger chunk would have given it.
    """

    session: int
    position: int
    count: int
    decode: bool = False


@dataclass(frozen=True, slots=True)
class KvBlob:
    """KV of tokens ``[begin, end)`` of one session and one range.

    ``data`` holds, for each block of the range in order, keys then values, each row-major
    ``[kv_heads, end - begin, head_dim]`` in ``dtype``.
    """

    begin: int
    end: int
    dtype: str
    data: bytes


class LoadedRange(Protocol):
    """Blocks ``[start, stop)`` in memory, with the KV caches of their sessions.

    Steps of one range come one at a time. Opening and closing sessions, and whatever happens to other ranges, may
    run beside a step, as long as the sessions of the step are left alone.
    """

    start: int
    stop: int

    @property
    def identity(self) -> Identity:
        """Of the engine that computes it."""

    @property
    def weight_bytes(self) -> int:
        """Resident bytes of the weights of this range."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV that one token takes in this range."""

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV reserved now: the sum over open sessions of capacity x kv_bytes_per_token."""

    def open(self, session: int, capacity: int) -> None:
        """Reserve KV for ``capacity`` tokens, at least one.

        Raises:
            SessionError: the session is open already, the capacity is none, or the range was dropped.
        """

    def close(self, session: int) -> None:
        """Free the KV of a session at once. Raises SessionError if it is not open."""

    def length(self, session: int) -> int:
        """Tokens in the KV cache of a session."""

    def step(
        self, hidden: Array, batch: Sequence[SessionRows], interrupt: threading.Event | None = None
    ) -> Array:
        """Run the rows of ``batch`` through the blocks and append to their KV.

        Args:
            hidden: ``[rows, hidden_size]`` in the activation dtype of the range's dtype, rows grouped as in ``batch``.
            batch: one entry per session, each at most once; ``position`` equals `length`.
            interrupt: set, perhaps by another thread, when nobody wants the result any more. The step then ends
                as soon as it can.

        Returns:
            ``[rows, hidden_size]``, same dtype and order.

        Raises:
            SessionError: before anything is changed.
            StepInterrupted: `interrupt` was set in time; lengths are as before.
        """

    def export_kv(self, session: int, begin: int, end: int) -> KvBlob:
        """KV of tokens ``[begin, end)`` as bytes. Raises SessionError unless they are all there."""

    def import_kv(self, session: int, blob: KvBlob) -> None:
        """Append exported KV; ``blob.begin`` must equal `length`. What follows has the bits of the session it left.

        Raises:
            SessionError: another dtype, size or position, or past the capacity; before anything is changed.
        """

    def drop(self) -> None:
        """Free the weights (unless another range shares them) and every session, at once.

        Afterwards the byte counts are 0 and everything else is a SessionError.
        """


class LoadedHead(Protocol):
    """Final norm and LM head."""

    @property
    def identity(self) -> Identity:
        """Of the engine that computes it."""

    @property
    def weight_bytes(self) -> int:
        """Resident bytes of the head."""

    def logits(self, hidden: Array) -> NDArray[np.float32]:
        """``[rows, hidden_size]`` -> float32 ``[rows, vocab_size]``.

        Raises:
            EngineError: another width or dtype.
        """


class Engine(Protocol):
    """Loads ranges of blocks and heads. One engine per process; loads may run beside steps.

    Blocks shared by two ranges that are loaded at the same time are held in memory once.
    """

    name: str
    device: str
    threads: int

    @property
    def version(self) -> str:
        """Of its libraries."""

    @property
    def identity(self) -> Identity:
        """Of the engine itself; what it loads may name another one that it handed the work to."""

    def load_range(
        self,
        model: StoredModel,
        start: int,
        stop: int,
        dtype: str,
        progress: Callable[[int], None] = ...,
    ) -> LoadedRange:
        """Load blocks ``[start, stop)``; ``progress`` is called with bytes loaded so far.

        Raises:
            UnsupportedModel, LoadError, StoreError.
        """

    def load_head(self, model: StoredModel, dtype: str) -> LoadedHead:
        """Load the head."""

    @property
    def resident_weight_bytes(self) -> int:
        """Bytes of weights in memory, shared blocks counted once."""

    @property
    def free_device_bytes(self) -> int | None:
        """Free memory of the device, or None where that is the machine's own memory."""
