"""The scheduler against two fake hosts that check what a real host checks, at random.

The fake hosts keep the very tokens that were fed, so that a token that is lost, doubled or out of place after any
number of cancels, failed steps and changes of plan shows as a wrong cache, not as a plausible one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import hypothesis.strategies as st
from hypothesis import note, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from splitinfer.segment_runtime.entry.scheduler import QueueFull, Scheduler
from splitinfer.segment_runtime.entry.sessions import Limits, MicroBatch, Session
from tests.support.fake_host import FakeHost

CONTEXT = 24

limits = st.builds(
    Limits,
    kv_budget_tokens=st.integers(CONTEXT, 4 * CONTEXT),
    max_in_flight=st.integers(1, 4),
    max_sessions=st.integers(1, 5),
    min_sessions=st.integers(1, 3),
    prefill_chunk=st.integers(1, 12),
    mixed_prefill_chunk=st.integers(1, 6),
    max_waiting=st.integers(0, 6),
    replay_singly=st.booleans(),
)


def token_of(session: int, index: int) -> int:
    """What the fake model says after ``index`` tokens: anything, but always the same."""
    return (session * 7919 + index * 104729) % 1000


class SchedulerMachine(RuleBasedStateMachine):
    """Random arrivals, cancels, failures and changes of plan; then everything must run to its end."""

    @initialize(first=limits)
    def start(self, first: Limits) -> None:
        """Begin with an empty scheduler and empty hosts."""
        self.scheduler = Scheduler(first)
        self.hosts = [FakeHost(first.kv_budget_tokens) for _ in range(2)]
        self.wire: deque[MicroBatch] = deque()
        self.void: set[tuple[int, int]] = set()
        """(step, session) that were on their way when an earlier step of the session failed."""
        self.wanted: dict[int, int] = {}
        self.prompts: dict[int, list[int]] = {}
        self.outputs: dict[int, list[int]] = {}
        self.admitted: list[int] = []
        self.finished: set[int] = set()
        self.next_id = 1

    # --- what may happen ------------------------------------------------------------------------

    @rule(prompt=st.integers(1, 16), output=st.integers(1, 8))
    def submit(self, prompt: int, output: int) -> None:
        """A request comes; only a full queue refuses it, and only when there is no room to run."""
        session = Session(
            self.next_id,
            [token_of(self.next_id, -i - 1) for i in range(prompt)],
            prompt,
            prompt + output,
        )
        before = len(self.scheduler.waiting)
        room = self.scheduler.limits.kv_budget_tokens - self.scheduler.reserved_tokens
        try:
            self.scheduler.submit(session)
        except QueueFull:
            assert before >= self.scheduler.limits.max_waiting
            assert before or session.capacity > room
            return
        self.prompts[session.id] = list(session.tokens)
        self.outputs[session.id] = []
        self.wanted[session.id] = output
        self.next_id += 1
        self.note_admissions()

    @rule()
    def pump(self) -> None:
        """The entry sends what is ready."""
        self.send()

    @precondition(lambda self: self.wire)
    @rule()
    def step_returns(self) -> None:
        """The oldest step comes back from the last hop."""
        self.deliver(self.wire.popleft())

    @precondition(lambda self: self.wire)
    @rule(hop=st.integers(0, 1))
    def step_fails(self, hop: int) -> None:
        """The oldest step fails at a hop: those before took the frame, the others get only what it releases."""
        batch = self.wire.popleft()
        for number, host in enumerate(self.hosts):
            host.take(batch if number < hop else replace(batch, slices=()))
        # The host of the failure gives up the KV of the step's sessions, as half of its blocks may have appended.
        for piece in batch.slices:
            self.hosts[hop].caches.pop(piece.session, None)
            self.hosts[hop].capacities.pop(piece.session, None)
        self.rewind(batch)

    def rewind(self, batch: MicroBatch) -> None:
        """The entry hears that a step failed."""
        failed = {p.session for p in batch.slices if (batch.step, p.session) not in self.void}
        running = failed & set(self.scheduler.running)
        assert set(self.scheduler.rewind(batch.step)) == running
        for session in running:
            assert self.scheduler.running[session].alone, "a session that failed must go on alone"
        self.void |= {
            (later.step, piece.session)
            for later in self.wire
            for piece in later.slices
            if piece.session in failed
        }
        self.note_admissions()

    @precondition(lambda self: self.scheduler.running or self.scheduler.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """A client goes away, whatever its session does now."""
        live = [session.id for session in self.scheduler.live]
        self.end(data.draw(st.sampled_from(live), label="session"))

    @rule(new=limits)
    def change_plan(self, new: Limits) -> None:
        """A new epoch: what is in flight is lost, every host forgets."""
        tokens = {session.id: list(session.tokens) for session in self.scheduler.live}
        self.wire.clear()
        self.void.clear()
        self.hosts = [FakeHost(new.kv_budget_tokens) for _ in range(2)]
        self.scheduler.reset(new)
        assert {session.id: session.tokens for session in self.scheduler.live} == tokens
        assert all(session.position == 0 for session in self.scheduler.live)
        # Who had run before is before who never ran; those keep their order of arrival.
        self.admitted = list(self.scheduler.running)

    # --- the fake pipeline ------------------------------------------------------------------------

    def send(self) -> MicroBatch | None:
        """Form a batch and check it against the promises."""
        sched = self.scheduler
        ready = [s for s in sched.running.values() if s.sent < len(s.tokens)]
        singly = sched.limits.replay_singly
        decodes = {s.id for s in sched.running.values() if self.decodes(s)}
        decoding = [s.id for s in ready if s.id in decodes and not s.alone]
        waited, in_flight = ready[0].id if ready else None, len(sched.in_flight)
        batch = sched.next_batch()
        note(f"batch {batch}")
        if batch is None:
            # Nothing in flight would mean that nobody ever asks again.
            assert not ready or in_flight, "ready sessions and an idle pipeline"
            return None
        assert in_flight < sched.limits.max_in_flight
        for piece in batch.slices:
            prompt = sched.running[piece.session].prompt_tokens
            assert piece.decode == (piece.session in decodes)
            assert not piece.decode or piece.count == 1
            assert piece.position >= prompt or piece.position + piece.count <= prompt, (
                "prompt and output share"
            )
            assert not singly or piece.decode or piece.position < prompt, "a generated token in a chunk"
        chosen = [piece.session for piece in batch.slices]
        assert len(set(chosen)) == len(chosen) <= sched.limits.max_sessions
        assert set(chosen) <= {s.id for s in ready}
        shared = [s for s in chosen if sched.running[s].alone]
        assert not shared or len(chosen) == 1, "a session that failed shares a step"
        if not shared:
            taken = [s for s in chosen if s in decoding]
            assert taken == decoding[: len(taken)], "decoding sessions overtake one another"
            if len(taken) < len(decoding):
                places = sched.limits.max_sessions - sum(s not in decoding for s in chosen)
                decoders = len(decodes)
                groups = max(1, min(sched.limits.max_in_flight, decoders // sched.limits.min_sessions))
                assert len(taken) >= min(places, -(-decoders // groups)), "prefill stalls decode"
        if sched.limits.max_sessions == 1:
            assert waited is not None
        prefill = [p for p in batch.slices if p.session not in decoding]
        assert sum(p.count for p in prefill) <= max(
            sched.limits.prefill_chunk, sched.limits.mixed_prefill_chunk
        )
        for piece in batch.slices:
            session = sched.running[piece.session]
            end = piece.position + piece.count
            assert not piece.position < session.prompt_tokens < end, (
                f"{piece} crosses the end of the prompt at {session.prompt_tokens}"
            )
            assert piece.keep == (end == len(session.tokens))
        self.wire.append(batch)
        return batch

    def decodes(self, session: Session) -> bool:
        """What comes next of it, or came last, is one generated token in a step of its own."""
        left = len(session.tokens) - session.sent
        if not left:
            sent = [p for b in self.wire for p in b.slices if p.session == session.id]
            return bool(sent) and sent[-1].decode
        if self.scheduler.limits.replay_singly:
            return session.sent >= session.prompt_tokens
        return left == 1 and len(session.tokens) > session.prompt_tokens

    def deliver(self, batch: MicroBatch) -> None:
        """Both hosts take the frame, and kept rows give tokens; or one refuses it because a session began anew."""
        for host in self.hosts:
            if not host.take(batch):
                assert any((batch.step, piece.session) in self.void for piece in batch.slices), "a bad frame"
                self.rewind(batch)
                return
        for piece in self.scheduler.complete(batch.step):
            if not piece.keep:
                continue
            expected = self.prompts[piece.session] + self.outputs[piece.session]
            for host in self.hosts:
                assert host.caches[piece.session] == expected, "the caches hold other tokens than were said"
            token = token_of(piece.session, len(self.outputs[piece.session]))
            self.outputs[piece.session].append(token)
            if len(self.outputs[piece.session]) == self.wanted[piece.session]:
                self.finished.add(piece.session)
                self.end(piece.session)
            else:
                self.scheduler.append(piece.session, token)

    def end(self, session: int) -> None:
        """A session is over."""
        self.scheduler.finish(session)
        self.wanted.pop(session)
        self.note_admissions()

    def note_admissions(self) -> None:
        """First come, first served: ids are given out in order of arrival."""
        new = sorted(set(self.scheduler.running) - set(self.admitted))
        waiting = list(self.scheduler.waiting)
        assert all(a < b for a in new for b in waiting if b not in self.admitted), f"{new} overtook {waiting}"
        self.admitted.extend(new)

    # --- what always holds --------------------------------------------------------------------------

    @invariant()
    def reservations_fit(self) -> None:
        """Running sessions never reserve more than the budget, and no session that fits in front waits."""
        sched = self.scheduler
        assert sched.reserved_tokens <= sched.limits.kv_budget_tokens
        if sched.waiting:
            first = next(iter(sched.waiting.values()))
            assert sched.reserved_tokens + first.capacity > sched.limits.kv_budget_tokens

    @invariant()
    def in_flight_is_what_was_sent(self) -> None:
        """Each session knows the steps it is in, and no position is sent twice or left out on the way."""
        sched = self.scheduler
        assert list(sched.in_flight) == [batch.step for batch in self.wire]
        for session in sched.running.values():
            flying = [
                (batch.step, piece)
                for batch in self.wire
                for piece in batch.slices
                if piece.session == session.id and (batch.step, session.id) not in self.void
            ]
            assert session.steps == [step for step, _ in flying]
            end = session.position
            for _, piece in flying:
                assert piece.position == end, "its rows do not follow one another"
                end += piece.count
            assert session.sent == end

    def teardown(self) -> None:
        """Under a pipeline that answers, everybody finishes and no host holds anything in the end."""
        if not hasattr(self, "scheduler"):
            return
        rest = set(self.wanted)
        for _ in range(2_000):
            while self.send() is not None:
                pass
            if not self.wire:
                break
            self.deliver(self.wire.popleft())
        assert not self.wanted, f"sessions {set(self.wanted)} never finish"
        assert rest <= self.finished
        released = self.scheduler.take_released()
        assert len(released) == len(set(released)), "released twice"
        for host in self.hosts:
            assert set(host.caches) <= set(released), "KV that nobody releases"


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
