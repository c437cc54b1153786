"""What is left of an old epoch does nothing to the new one, though both count their steps and sessions alike."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.wire import put_array
from tests.support.hand_chain import WIDTH, HandChain, HandLink, answer, hand_chain, token_of


def error(epoch: int, step: int, code: pb.ErrorCode.ValueType) -> pb.StreamError:
    """As a host says it."""
    return pb.StreamError(epoch=epoch, step=step, hop=1, node="node-1", code=code, message="it says")


def count_of(chain: HandChain, code: str) -> float:
    """How many errors with this code were counted."""
    return chain.registry.get_sample_value("splitinfer_entry_step_errors_total", {"code": code}) or 0.0


async def under_a_second_epoch(chain: HandChain) -> tuple[pb.Frame, HandLink, pb.Frame]:
    """Step 1 of epoch 1 was sent and never answered, then epoch 2 serves: its step 1 has the same session.

    Gives the old frame, the new link and the new frame; the request is `submit`ted before.
    """
    old = await chain.link.frame()
    link = chain.switch(2)
    new = await link.frame()
    assert (old.epoch, new.epoch) == (1, 2)
    assert (old.step, old.sessions) == (new.step, new.sessions), "the test is about steps that look alike"
    return old, link, new


@pytest.mark.parametrize("code", [pb.DOWNSTREAM_LOST, pb.WRONG_EPOCH])
async def test_a_late_word_that_an_old_chain_is_broken_does_not_break_the_new_one(
    code: pb.ErrorCode.ValueType,
) -> None:
    """It is counted and nothing else; the same word of the epoch that serves breaks the chain."""
    async with hand_chain() as chain:
        chain.switch(1)
        stream = chain.submit(1)
        old, _, new = await under_a_second_epoch(chain)
        chain.pipeline.on_error(error(1, old.step, code))
        assert chain.breaks == []
        assert count_of(chain, pb.ErrorCode.Name(code).lower()) == 1
        chain.pipeline.on_frame(2, answer(new, 7))
        assert await token_of(stream) == 7
        chain.pipeline.on_error(error(2, 99, code))
        assert chain.breaks == ["hop 1 on node-1: it says"]


@pytest.mark.parametrize("code", [pb.COMPUTE_FAILED, pb.KV_EXHAUSTED, pb.BAD_FRAME, pb.ABANDONED])
async def test_a_late_failure_of_an_old_step_does_not_send_back_the_new_step_of_that_number(
    code: pb.ErrorCode.ValueType,
) -> None:
    """The new step stays in flight and gives its token; the same word of the epoch that serves begins it anew."""
    async with hand_chain() as chain:
        chain.switch(1)
        stream = chain.submit(2)
        old, link, new = await under_a_second_epoch(chain)
        chain.pipeline.on_error(error(1, old.step, code))
        chain.pipeline.on_frame(2, answer(new, 7))
        assert await token_of(stream) == 7
        second = await link.frame()
        assert (second.step, second.sessions[0].position) == (new.step + 1, 3), "it went on where it was"
        chain.pipeline.on_error(error(2, second.step, code))
        again = await link.frame()
        assert (again.sessions[0].position, list(again.released)) == (0, [second.sessions[0].session])
        assert chain.breaks == []


@pytest.mark.parametrize("says", [1, 2])
async def test_a_late_frame_of_an_old_epoch_is_not_taken_as_the_new_one_s(says: int) -> None:
    """Not even where it says the new epoch of itself: what counts is whose stream it came on."""
    async with hand_chain() as chain:
        chain.switch(1)
        stream = chain.submit(1)
        old, _, new = await under_a_second_epoch(chain)
        late = answer(old, 5)
        late.epoch = says
        chain.pipeline.on_frame(1, late)
        chain.pipeline.on_frame(2, answer(new, 7))
        assert await token_of(stream) == 7
        assert chain.breaks == []


async def test_a_frame_of_a_step_that_was_given_up_is_passed_over() -> None:
    """A step that failed on the way, and yet comes back: it is no answer and no break."""
    async with hand_chain() as chain:
        link = chain.switch(1)
        stream = chain.submit(1)
        first = await link.frame()
        chain.pipeline.on_error(error(1, first.step, pb.COMPUTE_FAILED))
        second = await link.frame()
        chain.pipeline.on_frame(1, answer(first, 5))
        chain.pipeline.on_frame(1, answer(second, 7))
        assert await token_of(stream) == 7
        assert chain.breaks == []


async def test_a_frame_that_came_before_the_change_counts_no_more_after_it() -> None:
    """The head computes it while the plan changes: its token is dropped, the new chain's is delivered, once."""
    async with hand_chain() as chain:
        chain.switch(1)
        stream = chain.submit(2)
        old = await chain.link.frame()
        chain.head.gate.clear()
        chain.pipeline.on_frame(1, answer(old, 5))
        await chain.in_head()
        link = chain.switch(2)
        new = await link.frame()
        chain.head.gate.set()
        chain.pipeline.on_frame(2, answer(new, 7))
        assert await token_of(stream) == 7
        second = await link.frame()
        assert (second.sessions[0].position, second.sessions[0].count) == (3, 1)
        chain.pipeline.on_frame(2, answer(second, 8))
        assert await token_of(stream) == 8
        assert chain.breaks == []


async def test_a_bad_frame_of_the_epoch_that_serves_breaks_it() -> None:
    """And is not taken: a frame that says another epoch on the new epoch's stream is one."""
    async with hand_chain() as chain:
        link = chain.switch(2)
        stream = chain.submit(1)
        new = await link.frame()
        wrong = answer(new, 5)
        wrong.epoch = 1
        chain.pipeline.on_frame(2, wrong)
        chain.pipeline.on_frame(2, answer(new, 7))
        assert await token_of(stream) == 7
        assert chain.breaks == ["the last hop returned a bad frame: epoch: 1, this stream serves epoch 2"]


async def test_a_frame_without_the_rows_of_its_step_waits_for_the_error_that_says_why() -> None:
    """A host that could not compute a step passes on what it releases; that may come here before the error does.

    The error goes back hop by hop, the frame straight from the last hop. Nothing is broken: the session begins anew.
    """
    async with hand_chain() as chain:
        chain.switch(1)
        stream = chain.submit(1)
        sent = await chain.link.frame()
        bare = answer(sent, 0)
        del bare.sessions[:]
        put_array(bare, np.zeros((0, WIDTH), np.float32), "float32")
        chain.pipeline.on_frame(1, bare)
        await asyncio.sleep(0)
        assert chain.breaks == []
        chain.pipeline.on_error(error(1, sent.step, pb.KV_EXHAUSTED))
        again = await chain.link.frame()
        assert (again.sessions[0].position, list(again.released)) == (0, [sent.sessions[0].session])
        chain.pipeline.on_frame(1, answer(again, 7))
        assert await token_of(stream) == 7
        assert chain.breaks == []
