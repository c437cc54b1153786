"""What the scheduler deals in: limits, sessions, and the micro-batches that carry their rows. Pure values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What the scheduler may do.

    Attributes:
        kv_budget_tokens: KV tokens that the plan promises on every segment.
        max_in_flight: micro-batches in the chain at one time; as many as it has segments keep every host busy.
        max_sessions: sessions in one micro-batch.
        min_sessions: a micro-batch is not split further below this many sessions. A step over few rows takes about
            as long as a step over one, because the weights are read once either way; splitting such a batch gives
            nothing and reads the weights more often.
        prefill_chunk: tokens of one prefill chunk when nothing decodes.
        mixed_prefill_chunk: prefill tokens in a step that decodes as well; bounds how long a prompt delays others.
        max_waiting: sessions that may wait for room.
        replay_singly: a replay feeds generated tokens one by one, as they first came: with an engine that is exact
            this repeats their bits, and the sessions that are replayed share each step.
    """

    kv_budget_tokens: int
    max_in_flight: int = 1
    max_sessions: int = 64
    min_sessions: int = 8
    prefill_chunk: int = 512
    mixed_prefill_chunk: int = 128
    max_waiting: int = 64
    replay_singly: bool = False


@dataclass(slots=True)
class Session:
    """One generation. ``tokens`` is prompt and output; ``position`` of them are in the KV caches."""

    id: int
    tokens: list[int]
    prompt_tokens: int
    capacity: int
    position: int = 0
    step: int = 0
    """The step that it is in now; 0: in none."""
    opened: bool = False
    """Whether the hosts may hold KV of it."""
    alone: bool = False
    """It was in a step that failed: until it has caught up it shares no step."""

    @property
    def pending(self) -> int:
        """Tokens that are not in the KV caches yet."""
        return len(self.tokens) - self.position

    @property
    def decoding(self) -> bool:
        """Only the newest token is missing, and it is not the prompt's."""
        return self.pending == 1 and len(self.tokens) > self.prompt_tokens

    @property
    def generated(self) -> bool:
        """The next token to feed was generated."""
        return self.position >= self.prompt_tokens and self.pending > 0


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows of one session in a micro-batch: ``tokens[position : position + count]``."""

    session: int
    position: int
    tokens: tuple[int, ...]
    keep: int
    capacity: int
    decode: bool = False
    """A generated token in a step of its own."""

    @property
    def count(self) -> int:
        """Rows of the session."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One step: what goes down the chain as one frame."""

    step: int
    slices: tuple[Slice, ...]
    released: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Rows of all sessions."""
        return sum(piece.count for piece in self.slices)
