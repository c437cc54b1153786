"""The scheduler: which rows go into the next micro-batch. Pure: no tensor, no socket, no clock.

A session is a list of tokens and a position: how many of them are in the KV caches of the pipeline. What is
left is fed in chunks; when the last token has been fed, its logits give the next one. So prefill, decode and the
replay after a change of plan are one case: a replay is a session whose position went back to 0.

The chunks of one prompt follow one another down the chain: while a host computes the second, the next host computes
the first. A prompt that would fit into one chunk is divided for this among the steps that may be in flight.

A step that failed sends all its sessions back to 0 and each of them alone through its next steps, until it has
caught up: what one session breaks then fails that session, not those that happened to share its batch.

Errors
------
QueueFull                 no place in the waiting queue
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from splitinfer.optimizer.chunking import chunk_tokens
from splitinfer.segment_runtime.entry.sessions import Limits, MicroBatch, Session, Slice


class QueueFull(Exception):
    """No place in the waiting queue."""


@dataclass(slots=True)
class Scheduler:
    """Sessions that wait, sessions that run, and the micro-batches in flight."""

    limits: Limits
    waiting: OrderedDict[int, Session] = field(default_factory=OrderedDict)
    running: OrderedDict[int, Session] = field(default_factory=OrderedDict)
    in_flight: dict[int, MicroBatch] = field(default_factory=dict)
    _released: list[int] = field(default_factory=list)
    _steps: int = 0

    @property
    def reserved_tokens(self) -> int:
        """KV tokens reserved by running sessions."""
        return sum(session.capacity for session in self.running.values())

    @property
    def live(self) -> Iterable[Session]:
        """Running sessions, then waiting ones."""
        return (*self.running.values(), *self.waiting.values())

    def submit(self, session: Session) -> None:
        """Queue a session. It must fit the budget by itself.

        Raises:
            QueueFull: the queue has its `max_waiting` and there is no room to run.
        """
        assert session.capacity <= self.limits.kv_budget_tokens, (session.capacity, self.limits)
        room = not self.waiting and self.reserved_tokens + session.capacity <= self.limits.kv_budget_tokens
        if not room and len(self.waiting) >= self.limits.max_waiting:
            raise QueueFull
        self.waiting[session.id] = session
        self._admit()

    def _admit(self) -> None:
        # First come, first served: a large session is not overtaken for ever by small ones.
        reserved = self.reserved_tokens
        while self.waiting:
            first = next(iter(self.waiting.values()))
            if reserved + first.capacity > self.limits.kv_budget_tokens:
                return
            reserved += first.capacity
            self.waiting.popitem(last=False)
            self.running[first.id] = first

    def finish(self, session: int) -> None:
        """A session is over, finished or cancelled; its KV is released with the next frame."""
        if self.waiting.pop(session, None) is not None:
            self._admit()
            return
        gone = self.running.pop(session, None)
        if gone is not None:
            if gone.opened:
                self._release(gone.id)
            self._admit()

    def is_alone(self, session: int) -> bool:
        """Whether no step in flight has rows of this session together with those of another.

        Also one that counts no more, because an earlier step of the session failed: a host may still take it.
        """
        return all(
            len(batch.slices) == 1
            for batch in self.in_flight.values()
            if any(piece.session == session for piece in batch.slices)
        )

    def next_batch(self) -> MicroBatch | None:
        """The next micro-batch to send, or None when nothing is ready or enough is in flight."""
        if len(self.in_flight) >= self.limits.max_in_flight:
            return None
        ready = [session for session in self.running.values() if session.pending]
        if not ready:
            return None
        decoders = sum(self._decodes(session) for session in self.running.values())
        budget = self.limits.mixed_prefill_chunk if decoders else self._budget(ready)
        if ready[0].alone:
            slices = [self._slice(ready[0], budget)]
        else:
            slices = self._group([session for session in ready if not session.alone], decoders, budget)
        if not slices:
            return None
        self._steps += 1
        batch = MicroBatch(self._steps, tuple(slices), self.take_released())
        for piece in slices:
            session = self.running[piece.session]
            session.steps.append(batch.step)
            session.sent += piece.count
            session.decodes_singly = piece.decode
            session.opened = True
            # To the back: the next batch begins with those that waited longest.
            self.running.move_to_end(piece.session)
        self.in_flight[batch.step] = batch
        return batch

    def _group(self, ready: Sequence[Session], decoders: int, budget: int) -> list[Slice]:
        """Decoding sessions first, then chunks of prompts. Empty: wait for what is in flight."""
        decoding = [session for session in ready if self._decodes(session)]
        prefill = [session for session in ready if not self._decodes(session)]
        target = min(self.limits.max_sessions, self._share(decoders))
        if not prefill and len(decoding) < target and self.in_flight:
            # The rest of this group is still on its way: going now would split it for good.
            return []
        if prefill and target == self.limits.max_sessions:
            # One place is the prompts': a full house of decoders must not keep them out until one ends. Where
            # there is only one place, it goes to who waited longest.
            target = target - 1 if target > 1 else int(self._decodes(ready[0]))
        slices = [self._slice(session, 1) for session in decoding[:target]]
        for session in prefill:
            if budget <= 0 or len(slices) >= self.limits.max_sessions:
                break
            piece = self._slice(session, budget)
            budget -= piece.count
            slices.append(piece)
        return slices

    def _chunk(self, session: Session) -> int:
        """Tokens of a chunk of this prompt, or of what a replay feeds behind it: a share for every step in flight.

        By its length alone, so that a prompt that has the chain to itself is cut alike every time, whatever the moment.
        """
        prompt = session.prompt_tokens
        length = prompt if session.sent < prompt else len(session.tokens) - prompt
        return self._divided(length, self.limits.max_in_flight)

    def _budget(self, ready: Sequence[Session]) -> int:
        """Prefill tokens of the next step when nothing decodes: what is there, divided among the steps that may go."""
        tokens = sum(session.pending for session in ready)
        share = self._divided(tokens, self.limits.max_in_flight - len(self.in_flight))
        return max(share, *map(self._chunk, ready))

    def _divided(self, tokens: int, steps: int) -> int:
        """By the rule that plans are predicted with."""
        return chunk_tokens(tokens, steps, self.limits.mixed_prefill_chunk, self.limits.prefill_chunk)

    def _decodes(self, session: Session) -> bool:
        """The session's next rows, or the last if all were sent, are one generated token in a step of its own."""
        if not session.pending:
            return session.decodes_singly
        if self.limits.replay_singly:
            return session.sent >= session.prompt_tokens
        return session.pending == 1 and len(session.tokens) > session.prompt_tokens

    def _share(self, decoders: int) -> int:
        groups = max(1, min(self.limits.max_in_flight, decoders // max(1, self.limits.min_sessions)))
        return max(1, -(-decoders // groups))

    def _slice(self, session: Session, budget: int) -> Slice:
        decode = self._decodes(session)
        count = 1 if decode else min(session.pending, budget, self._chunk(session))
        if session.sent < session.prompt_tokens:
            # A chunk ends where the prompt ends, also in a replay: the prompt's KV then has the bits it had.
            count = min(count, session.prompt_tokens - session.sent)
        end = session.sent + count
        return Slice(
            session=session.id,
            position=session.sent,
            tokens=tuple(session.tokens[session.sent : end]),
            keep=1 if end == len(session.tokens) else 0,
            capacity=session.capacity,
            decode=decode,
        )

    def _release(self, session: int) -> None:
        if session not in self._released:
            self._released.append(session)

    def take_released(self) -> tuple[int, ...]:
        """Sessions whose KV the hosts must free; each is given once."""
        taken = tuple(self._released)
        self._released.clear()
        return taken

    def next_step(self) -> int:
        """A step number for a frame that only releases."""
        self._steps += 1
        return self._steps

    def complete(self, step: int) -> tuple[Slice, ...]:
        """A step came back: positions advance. Gives the slices whose sessions still run and were not begun anew.

        Raises:
            KeyError: no such step in flight.
        """
        batch = self.in_flight.pop(step)
        done = []
        for piece in batch.slices:
            session = self.running.get(piece.session)
            if session is not None and step in session.steps:
                session.steps.remove(step)
                session.position = piece.position + piece.count
                session.alone = session.alone and session.position < len(session.tokens)
                done.append(piece)
        return tuple(done)

    def append(self, session: int, token: int) -> None:
        """The token that a kept row gave."""
        self.running[session].tokens.append(token)

    def rewind(self, step: int) -> Sequence[int]:
        """A step failed: its sessions begin anew (released on the hosts, position 0). Gives those that still run.

        What its frame was to release is released again, as a host that refused the frame did not do it; hosts pass
        over what is not open. But not a session that a later step has opened anew: that would take its new KV.
        """
        batch = self.in_flight.pop(step, None)
        if batch is None:
            return ()
        for gone in batch.released:
            session = self.running.get(gone)
            if session is None or not session.opened:
                self._release(gone)
        again = []
        for piece in batch.slices:
            session = self.running.get(piece.session)
            if session is not None and step in session.steps:
                session.rewind()
                session.alone = True
                self._release(session.id)
                again.append(session.id)
        return again

    def reset(self, limits: Limits) -> tuple[Session, ...]:
        """A new epoch: nothing is in flight, no host holds KV, every running session is replayed.

        Sessions that the new budget has no room for wait again, ahead of those that never ran. Steps count anew.

        Returns:
            Sessions that are larger than the whole new budget, and were forgotten: at the head of the queue one
            would keep out everybody behind it for ever.
        """
        self.limits = limits
        self.in_flight.clear()
        self._released.clear()
        self._steps = 0
        unfit = tuple(session for session in self.live if session.capacity > limits.kv_budget_tokens)
        for session in unfit:
            self.running.pop(session.id, None)
            self.waiting.pop(session.id, None)
        reserved = 0
        back: list[Session] = []
        # The oldest keep their place: ids grow with admission, while the order of `running` rotates.
        for session in sorted(self.running.values(), key=lambda s: s.id):
            session.rewind()
            session.alone = False
            reserved += session.capacity
            if reserved > limits.kv_budget_tokens:
                back.append(session)
        for session in reversed(back):
            del self.running[session.id]
            self.waiting[session.id] = session
            self.waiting.move_to_end(session.id, last=False)
        self._admit()
        return unfit
