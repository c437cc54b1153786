"""Several steps of one session in flight: the chunks of a prompt and of a replay."""

from __future__ import annotations

from dataclasses import replace

from splitinfer.segment_runtime.entry.scheduler import Scheduler
from tests.unit.entry.test_scheduler import LIMITS, answer, decoding, rows, sent, session


def test_the_chunks_of_a_prompt_follow_one_another_down_the_chain() -> None:
    """While a host has the second chunk the next host has the first; the third waits for a place in flight."""
    scheduler = Scheduler(LIMITS)
    scheduler.submit(session(1, 23))
    first, second = sent(scheduler), sent(scheduler)
    assert rows(first) + rows(second) == [(1, 0, 10, 0), (1, 10, 10, 0)]
    assert scheduler.next_batch() is None
    answer(scheduler, first)
    assert rows(sent(scheduler)) == [(1, 20, 3, 1)]


def test_a_prompt_of_one_chunk_is_divided_among_the_steps_in_flight() -> None:
    """No host idles while another has the whole prompt; but no chunk is smaller than the mixed chunk."""
    scheduler = Scheduler(replace(LIMITS, max_in_flight=3, prefill_chunk=100, mixed_prefill_chunk=5))
    scheduler.submit(session(1, 18))
    assert [rows(sent(scheduler))[0] for _ in range(3)] == [(1, 0, 6, 0), (1, 6, 6, 0), (1, 12, 6, 1)]
    scheduler = Scheduler(replace(LIMITS, max_in_flight=3, prefill_chunk=100, mixed_prefill_chunk=5))
    scheduler.submit(session(1, 11))
    assert [rows(sent(scheduler))[0] for _ in range(2)] == [(1, 0, 6, 0), (1, 6, 5, 1)]
    assert scheduler.next_batch() is None


def test_a_prompt_that_has_the_chain_to_itself_is_cut_alike_whenever_steps_return() -> None:
    """Chunks decide the last bits of some engines: a seed must not depend on which step came back first."""

    def cut(returned_at_once: int) -> list[int]:
        limits = replace(
            LIMITS, kv_budget_tokens=5000, max_in_flight=3, prefill_chunk=512, mixed_prefill_chunk=128
        )
        scheduler = Scheduler(limits)
        scheduler.submit(session(1, 2000, capacity=2100))
        counts: list[int] = []
        while scheduler.running[1].pending:
            while (batch := scheduler.next_batch()) is not None:
                counts.append(batch.rows)
            for step in list(scheduler.in_flight)[:returned_at_once]:
                scheduler.complete(step)
        return counts

    assert cut(1) == cut(2) == cut(3) == [512, 512, 512, 464]


def test_a_replay_of_a_short_prompt_feeds_what_was_generated_in_large_chunks() -> None:
    """The prompt's own chunk is small because the prompt is; what came after it is not cut to its size."""
    scheduler = Scheduler(replace(LIMITS, max_in_flight=2, prefill_chunk=100, mixed_prefill_chunk=10))
    scheduler.submit(session(1, 2))
    scheduler.running[1].tokens += [7] * 60
    first, second = sent(scheduler), sent(scheduler)
    assert rows(first) + rows(second) == [(1, 0, 2, 0), (1, 2, 30, 0)]


def test_a_replay_feeds_generated_tokens_behind_the_prompt_without_waiting() -> None:
    """Also one by one: each step has one token of it, in order, as many in flight as may be."""
    scheduler = Scheduler(replace(LIMITS, max_in_flight=4, replay_singly=True))
    scheduler.submit(session(1, 4))
    scheduler.running[1].tokens += [7, 7, 7]
    found = [(p.position, p.count, p.keep, p.decode) for _ in range(4) for p in sent(scheduler).slices]
    assert found == [(0, 4, 0, False), (4, 1, 0, True), (5, 1, 0, True), (6, 1, 1, True)]


def test_what_follows_a_failed_chunk_does_not_count() -> None:
    """The first of two chunks failed: the session begins anew, and the second neither fails it again nor advances it."""
    scheduler = Scheduler(LIMITS)
    scheduler.submit(session(1, 20))
    first, second = sent(scheduler), sent(scheduler)
    assert scheduler.rewind(first.step) == [1]
    again = sent(scheduler)
    assert again.released == (1,)
    assert rows(again) == [(1, 0, 10, 0)]
    assert scheduler.complete(second.step) == ()
    assert scheduler.running[1].position == 0
    assert scheduler.rewind(second.step) == ()
    answer(scheduler, again)
    assert scheduler.running[1].position == 10


def test_who_shared_any_step_that_is_still_in_flight_is_not_alone() -> None:
    """Not only the last one; and also one that does not count any more, as a host may still take it."""
    scheduler = decoding(1, replace(LIMITS, max_in_flight=3))
    scheduler.submit(session(9, 30))
    shared, own = sent(scheduler), sent(scheduler)
    assert ([p.session for p in shared.slices], [p.session for p in own.slices]) == ([1, 9], [9])
    assert not scheduler.is_alone(9)
    scheduler.rewind(own.step)
    assert not scheduler.is_alone(9)
    answer(scheduler, shared)
    assert scheduler.is_alone(9)
