"""What the scheduler deals in: limits, sessions, and the micro-batches that carry their rows. Pure values."""

from __future__ import annotations

from dataclasses import dataclass, field


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
        prefill_chunk: most prefill tokens in a step when nothing decodes.
        mixed_prefill_chunk: most prefill tokens in a step while others decode; bounds how long a prompt delays them.
            Chunks are not made smaller than this to have one for every host of the chain.
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
    """One generation. ``tokens`` is prompt and output; ``position`` of them are in the KV caches of every hop.

    ``sent`` of them have left the entry. A chain keeps the order of its steps, so that the next chunk of a prompt may
    follow the one before while that is still on its way.
    """

    id: int
    tokens: list[int]
    prompt_tokens: int
    capacity: int
    position: int = 0
    sent: int = 0
    steps: list[int] = field(default_factory=list)
    """The steps in flight that have rows of it, oldest first."""
    decodes_singly: bool = False
    """The rows that were sent last are one generated token in a step of its own."""
    opened: bool = False
    """Whether the hosts may hold KV of it."""
    alone: bool = False
    """It was in a step that failed: until it has caught up it shares no step."""

    @property
    def pending(self) -> int:
        """Tokens that have not been sent."""
        return len(self.tokens) - self.sent

    def rewind(self) -> None:
        """No host holds anything of it, and what is on its way does not count."""
        self.position = self.sent = 0
        self.steps.clear()
        self.decodes_singly = self.opened = False


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
