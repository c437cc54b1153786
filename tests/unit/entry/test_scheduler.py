"""What the scheduler promises, one sentence each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from splitinfer.segment_runtime.entry.scheduler import QueueFull, Scheduler
from splitinfer.segment_runtime.entry.sessions import Limits, MicroBatch, Session

LIMITS = Limits(kv_budget_tokens=1000, max_in_flight=2, max_sessions=8, min_sessions=2, prefill_chunk=10)
LIMITS = replace(LIMITS, mixed_prefill_chunk=4, max_waiting=2)


def session(number: int, prompt: int, capacity: int = 100) -> Session:
    """A session whose prompt has ``prompt`` tokens."""
    return Session(number, list(range(prompt)), prompt, capacity)


def answer(scheduler: Scheduler, batch: MicroBatch) -> None:
    """The step comes back and every kept row gives a token."""
    for piece in scheduler.complete(batch.step):
        if piece.keep:
            scheduler.append(piece.session, 7)


def sent(scheduler: Scheduler) -> MicroBatch:
    """The next batch, which must be there."""
    batch = scheduler.next_batch()
    assert batch is not None
    return batch


def decoding(count: int, limits: Limits = LIMITS) -> Scheduler:
    """Sessions 1 to ``count``, all of them decoding."""
    scheduler = Scheduler(replace(limits, prefill_chunk=count, mixed_prefill_chunk=count))
    for number in range(1, count + 1):
        scheduler.submit(session(number, 1))
    while any(len(s.tokens) == s.prompt_tokens for s in scheduler.running.values()):
        answer(scheduler, sent(scheduler))
    scheduler.limits = limits
    return scheduler


def rows(batch: MicroBatch) -> list[tuple[int, int, int, int]]:
    """(session, position, count, keep) of each slice."""
    return [(p.session, p.position, p.count, p.keep) for p in batch.slices]


def test_a_prompt_goes_in_chunks_and_only_its_last_row_comes_back() -> None:
    """23 tokens, one step at a time, in chunks of 10: 10, 10, 3, and one kept row."""
    scheduler = Scheduler(replace(LIMITS, max_in_flight=1))
    scheduler.submit(session(1, 23))
    found = []
    for _ in range(3):
        batch = sent(scheduler)
        found += rows(batch)
        answer(scheduler, batch)
    assert found == [(1, 0, 10, 0), (1, 10, 10, 0), (1, 20, 3, 1)]


def test_all_decoding_sessions_share_a_step() -> None:
    """Continuous batching: one frame for everybody, while there are fewer than two groups' worth."""
    scheduler = decoding(3)
    assert sorted(p.session for p in sent(scheduler).slices) == [1, 2, 3]
    assert scheduler.next_batch() is None


def test_decoders_are_split_into_micro_batches_of_at_least_min_sessions() -> None:
    """Six sessions, groups of at least two, two in flight: three and three."""
    scheduler = decoding(6)
    assert [len(sent(scheduler).slices), len(sent(scheduler).slices)] == [3, 3]
    assert scheduler.next_batch() is None


def test_a_group_waits_for_its_rest_instead_of_splitting_for_good() -> None:
    """A session that comes back early goes with its group, not alone."""
    scheduler = decoding(4)
    first, second = sent(scheduler), sent(scheduler)
    scheduler.finish(first.slices[0].session)
    answer(scheduler, first)
    assert scheduler.next_batch() is None, "the one that is left would go alone for good"
    answer(scheduler, second)
    assert len(sent(scheduler).slices) == 3, "three make one group of at least two"


def test_a_prompt_rides_along_with_those_that_decode() -> None:
    """Decoding sessions are in the step, and the prompt's chunk is the small one."""
    scheduler = decoding(2)
    scheduler.submit(session(9, 23))
    batch = sent(scheduler)
    assert [(p.session, p.count) for p in batch.slices] == [(1, 1), (2, 1), (9, 4)]


def test_a_full_house_of_decoders_leaves_one_place_to_prompts() -> None:
    """With as many decoders as places a new prompt still begins in the next step."""
    scheduler = decoding(4, replace(LIMITS, max_sessions=4, min_sessions=8))
    scheduler.submit(session(9, 3))
    assert sorted(p.session for p in sent(scheduler).slices)[-1] == 9


def test_with_a_single_place_prompts_and_decoders_take_turns() -> None:
    """Neither starves when a step takes one session only."""
    scheduler = decoding(1, replace(LIMITS, max_sessions=1, max_in_flight=1, min_sessions=1))
    scheduler.submit(session(9, 12))
    order = []
    for _ in range(4):
        batch = sent(scheduler)
        order.append(batch.slices[0].session)
        answer(scheduler, batch)
    assert order == [1, 9, 1, 9]


def test_a_large_session_is_not_overtaken_by_small_ones() -> None:
    """Admission is first come, first served."""
    scheduler = Scheduler(replace(LIMITS, kv_budget_tokens=100))
    scheduler.submit(session(1, 5, capacity=60))
    scheduler.submit(session(2, 5, capacity=60))
    scheduler.submit(session(3, 5, capacity=10))
    assert (list(scheduler.running), list(scheduler.waiting)) == ([1], [2, 3])
    scheduler.finish(1)
    assert (list(scheduler.running), list(scheduler.waiting)) == ([2, 3], [])


def test_a_full_queue_refuses_and_keeps_nothing() -> None:
    """`max_waiting` bounds the queue."""
    scheduler = Scheduler(replace(LIMITS, kv_budget_tokens=100))
    for number in (1, 2, 3):
        scheduler.submit(session(number, 5, capacity=100))
    with pytest.raises(QueueFull):
        scheduler.submit(session(4, 5, capacity=100))
    assert [s.id for s in scheduler.live] == [1, 2, 3]


def test_what_a_failed_frame_was_to_release_is_released_again() -> None:
    """The hosts behind the failure never saw that frame: without this their KV leaks."""
    scheduler = decoding(3)
    scheduler.finish(2)
    batch = sent(scheduler)
    assert batch.released == (2,)
    scheduler.rewind(batch.step)
    assert set(sent(scheduler).released) == {1, 2, 3}


def test_a_session_that_a_later_step_opened_anew_is_not_released_again() -> None:
    """Its new KV would go, and its next rows would begin in the middle."""
    scheduler = Scheduler(replace(LIMITS, max_sessions=1))
    scheduler.submit(session(1, 20))
    scheduler.submit(session(2, 20))
    scheduler.rewind(sent(scheduler).step)
    second = sent(scheduler)  # of session 2, with the release of 1
    third = sent(scheduler)  # of session 1, from its beginning
    assert (rows(second)[0][0], second.released, rows(third)) == (2, (1,), [(1, 0, 10, 0)])
    scheduler.rewind(second.step)
    assert scheduler.take_released() == (2,)


def test_after_a_failed_step_each_session_goes_on_alone_until_it_caught_up() -> None:
    """What one session breaks must not fail the others of its batch."""
    scheduler = decoding(3, replace(LIMITS, max_in_flight=1))
    scheduler.rewind(sent(scheduler).step)
    seen = []
    for _ in range(6):  # the prompt, then what was generated, for each
        batch = sent(scheduler)
        assert len(batch.slices) == 1
        seen.append(batch.slices[0].session)
        answer(scheduler, batch)
    assert sorted(set(seen)) == [1, 2, 3]
    assert len(sent(scheduler).slices) == 3


def test_a_change_of_plan_replays_in_the_chunks_of_the_prompt() -> None:
    """The border between prompt and output stays a border: the prompt's KV then has the bits it had."""
    scheduler = Scheduler(replace(LIMITS, max_in_flight=1))
    scheduler.submit(session(1, 13))
    for _ in range(5):
        answer(scheduler, sent(scheduler))
    scheduler.reset(replace(LIMITS, max_in_flight=1, prefill_chunk=10))
    found = []
    for _ in range(3):
        batch = sent(scheduler)
        found += rows(batch)
        answer(scheduler, batch)
    assert found == [(1, 0, 10, 0), (1, 10, 3, 0), (1, 13, 4, 1)]


def test_with_an_exact_engine_a_replay_feeds_generated_tokens_one_by_one_and_together() -> None:
    """Prompts in chunks, then single tokens of all sessions in one batch each: the bits that they had."""
    limits = replace(LIMITS, max_in_flight=1, prefill_chunk=10, mixed_prefill_chunk=10, replay_singly=True)
    scheduler = Scheduler(limits)
    for number in (1, 2):
        scheduler.submit(session(number, 3))
    for _ in range(4):
        answer(scheduler, sent(scheduler))
    scheduler.reset(limits)
    found = []
    for _ in range(5):
        batch = sent(scheduler)
        found.append([(p.session, p.position, p.count, p.keep, p.decode) for p in batch.slices])
        answer(scheduler, batch)
    assert found[0] == [(1, 0, 3, 0, False), (2, 0, 3, 0, False)]
    for at, step in enumerate(found[1:], start=3):
        assert sorted(step) == [(1, at, 1, int(at == 6), True), (2, at, 1, int(at == 6), True)]


def test_a_smaller_budget_sends_the_youngest_back_to_the_queue_in_front() -> None:
    """Nobody is dropped: who has no room any more waits before those that never ran."""
    scheduler = Scheduler(replace(LIMITS, kv_budget_tokens=200))
    for number in (1, 2, 3):
        scheduler.submit(session(number, 5, capacity=100))
    answer(scheduler, sent(scheduler))
    scheduler.reset(replace(LIMITS, kv_budget_tokens=100))
    assert (list(scheduler.running), list(scheduler.waiting)) == ([1], [2, 3])


def test_steps_count_anew_in_every_epoch() -> None:
    """A receiver refuses a step that jumps far ahead, so an epoch begins at 1."""
    scheduler = decoding(2)
    assert sent(scheduler).step > 1
    scheduler.reset(LIMITS)
    assert sent(scheduler).step == 1


def test_a_session_larger_than_the_new_budget_is_given_back_not_queued() -> None:
    """At the head of the queue it would keep out everybody behind it for ever."""
    scheduler = Scheduler(LIMITS)
    scheduler.submit(session(1, 5, capacity=100))
    scheduler.submit(session(2, 5, capacity=30))
    sent(scheduler)
    unfit = scheduler.reset(replace(LIMITS, kv_budget_tokens=40))
    assert [s.id for s in unfit] == [1]
    assert [s.id for s in scheduler.live] == [2]
    assert rows(sent(scheduler)) == [(2, 0, 5, 1)]


def test_who_shares_a_step_in_flight_is_not_alone() -> None:
    """Alone: in no step, or in one that has nobody else. Then its KV can be freed without harm to others."""
    scheduler = Scheduler(LIMITS)
    scheduler.submit(session(1, 30))
    assert scheduler.is_alone(1)
    sent(scheduler)
    assert scheduler.is_alone(1)
    shared = decoding(2)
    sent(shared)
    assert not shared.is_alone(1)
