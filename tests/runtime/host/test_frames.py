"""Frames that are wrong, against a real host over gRPC: a typed answer each, and the host serves on."""

from __future__ import annotations

import os
import re
from random import Random

import grpc
import numpy as np
import pytest

from splitinfer.segment_runtime.channel import EPOCH_KEY, HOP_KEY
from splitinfer.segment_runtime.engine.port import Engine, LoadedRange, SessionRows
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.wire import array_of, put_array
from tests.support.frames import FIELDS, Traffic, damaged, decoded
from tests.support.models import Case
from tests.support.peer import Peer

MUTATIONS = int(os.environ.get("SPLITINFER_TEST_MUTATIONS", "2000"))
"""`make soak` raises it to 10,000."""
SEED = int(os.environ.get("SPLITINFER_TEST_SEED", "31"))


async def assert_computes(
    peer: Peer, traffic: Traffic, reference: LoadedRange, draw: np.random.Generator
) -> None:
    """A fresh session through two steps gives bit for bit what the engine gives here."""
    session, position = traffic.next_session, 0
    traffic.next_session += 1
    reference.open(session, 8)
    for count in (3, 1):
        hidden = draw.standard_normal((count, traffic.expected.hidden_size), dtype=np.float32)
        frame = pb.Frame(epoch=traffic.expected.epoch, hop=0, step=traffic.step + 1)
        frame.sessions.add(session=session, position=position, count=count, keep=count, capacity=8)
        put_array(frame, hidden, "float32")
        answer = await peer.ask(frame)
        assert isinstance(answer, pb.Frame), answer
        traffic.taken(frame)
        expected = reference.step(hidden, [SessionRows(session, position, count)])
        assert array_of(answer).tobytes() == expected.tobytes()
        position += count
    reference.close(session)


async def test_damaged_frames_are_answered_one_by_one(peer: Peer, case: Case, engine: Engine) -> None:
    """Each is computed, or refused by the name of its field, or (no frame at all) ends its stream; no KV is lost.

    Between them a fresh session must still give the right bits.
    """
    rng, draw = Random(SEED), np.random.default_rng(SEED)
    reference = engine.load_range(case.stored, 0, case.stored.index.blocks, "float32")
    traffic = Traffic(await peer.serve(), rng)
    seen = {"taken": 0, "refused": 0, "undecodable": 0}
    for number in range(MUTATIONS):
        data = damaged(traffic.frame(), rng)
        await peer.send(data)
        if (frame := decoded(data)) is None:
            assert await peer.ended() != grpc.StatusCode.OK
            seen["undecodable"] += 1
            traffic = Traffic(await peer.serve(), rng)
            continue
        answer = await peer.answer()
        if isinstance(answer, pb.StreamError):
            assert re.fullmatch(FIELDS, answer.field), answer
            assert answer.code in (pb.BAD_FRAME, pb.WRONG_EPOCH, pb.KV_EXHAUSTED), answer
            assert (answer.node, answer.step) == ("alpha", frame.step)
            seen["refused"] += 1
            if answer.code == pb.KV_EXHAUSTED and frame.released:
                only_releases = await peer.answer()
                assert isinstance(only_releases, pb.Frame)
                assert list(only_releases.released) == list(frame.released)
                traffic.taken(only_releases)
            elif answer.code == pb.KV_EXHAUSTED:
                traffic.step = frame.step
        else:
            assert (answer.step, answer.hop) == (frame.step, 1)
            traffic.taken(frame)
            seen["taken"] += 1
        if number % 50 == 0:
            await assert_computes(peer, traffic, reference, draw)
    await assert_computes(peer, traffic, reference, draw)
    assert isinstance(await peer.ask(traffic.release_all()), pb.Frame)
    state = await peer.state()
    assert [(r.kv_bytes, r.sessions) for r in state.ranges] == [(0, 0)]
    assert min(seen.values()) > MUTATIONS // 50, f"the damages are not mixed: {seen}"
    reference.drop()


async def test_frames_out_of_order_are_refused_by_step_and_by_position(peer: Peer) -> None:
    """A frame that was overtaken, a frame that came twice, and rows that begin past the cache."""
    traffic = Traffic(await peer.serve(), Random(1))
    first = traffic.frame()
    assert isinstance(await peer.ask(first), pb.Frame)
    twice = await peer.ask(first)
    assert isinstance(twice, pb.StreamError)
    assert (twice.code, twice.field) == (pb.BAD_FRAME, "step")
    late = pb.Frame.FromString(first.SerializeToString())
    late.step, late.sessions[0].position = 2, 3
    late.sessions[0].capacity = 32
    skipped = await peer.ask(late)
    assert isinstance(skipped, pb.StreamError)
    assert skipped.field.startswith("sessions[0]")


async def test_a_frame_of_another_epoch_is_refused_and_the_stream_lives(peer: Peer) -> None:
    """Fencing, frame by frame."""
    traffic = Traffic(await peer.serve(), Random(1))
    frame = traffic.frame()
    frame.epoch += 1
    answer = await peer.ask(frame)
    assert isinstance(answer, pb.StreamError)
    assert (answer.code, answer.field) == (pb.WRONG_EPOCH, "epoch")
    frame.epoch -= 1
    assert isinstance(await peer.ask(frame), pb.Frame)


@pytest.mark.parametrize(
    "metadata",
    [(), ((EPOCH_KEY, "1"),), ((EPOCH_KEY, "one"), (HOP_KEY, "0")), ((EPOCH_KEY, ""), (HOP_KEY, "-"))],
)
async def test_a_stream_without_its_metadata_is_refused(
    peer: Peer, metadata: tuple[tuple[str, str], ...]
) -> None:
    """The status names both keys."""
    call = await peer.stream(*metadata)
    assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
    details = await call.details()
    assert details is not None
    assert EPOCH_KEY in details
    assert HOP_KEY in details


async def test_a_stream_of_an_epoch_that_is_not_prepared_is_refused(peer: Peer) -> None:
    """Also a hop that the host does not have in an epoch that it has."""
    await peer.serve()
    for epoch, hop in ((peer.epoch + 1, 0), (peer.epoch, 1)):
        call = await peer.stream((EPOCH_KEY, str(epoch)), (HOP_KEY, str(hop)))
        assert await call.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "is not prepared on alpha" in str(await call.details())


async def test_a_hop_has_one_stream_in_its_life(peer: Peer) -> None:
    """A second one is refused while the first runs, and after it ended: its KV is gone with it."""
    await peer.serve()
    key = ((EPOCH_KEY, str(peer.epoch)), (HOP_KEY, "0"))
    second = await peer.stream(*key)
    assert await second.code() == grpc.StatusCode.ALREADY_EXISTS
    assert peer.call is not None
    peer.call.cancel()
    third = await peer.stream(*key)
    assert await third.code() == grpc.StatusCode.ALREADY_EXISTS


async def test_frames_of_a_fenced_epoch_are_refused(peer: Peer) -> None:
    """When a newer epoch is committed the older one takes no frame any more, though its stream is open."""
    traffic = Traffic(await peer.serve(), Random(1))
    assert isinstance(await peer.ask(traffic.frame()), pb.Frame)
    newer = await peer.next_epoch()
    await peer.prepare(peer.request(newer))
    await peer.control.Commit(pb.EpochRequest(epoch=newer), timeout=20)
    traffic = Traffic(traffic.expected, Random(1), step=5)
    answer = await peer.ask(traffic.frame())
    assert isinstance(answer, pb.StreamError)
    assert (answer.code, answer.message.partition(" is ")[2]) == (
        pb.WRONG_EPOCH,
        f"fenced off: epoch {newer} serves",
    )
    assert sum(r.sessions for r in (await peer.state()).ranges) == 0


async def test_the_end_of_a_stream_frees_its_sessions_at_once(peer: Peer) -> None:
    """Cancelled in the middle of a step or not: nobody can continue them."""
    traffic = Traffic(await peer.serve(), Random(1))
    for _ in range(4):
        frame = traffic.frame()
        assert isinstance(await peer.ask(frame), pb.Frame)
        traffic.taken(frame)
    assert (await peer.state()).ranges[0].kv_bytes > 0
    await peer.send(traffic.frame())
    assert peer.call is not None
    peer.call.cancel()
    state = await peer.settled()
    assert (state.ranges[0].kv_bytes, state.ranges[0].sessions) == (0, 0)


async def test_an_upstream_that_ends_its_side_hears_every_error_first(peer: Peer) -> None:
    """Ten bad frames, then the end: ten answers."""
    await peer.serve()
    for step in range(1, 11):
        await peer.send(pb.Frame(epoch=peer.epoch, step=step, hop=9))
    assert peer.call is not None
    await peer.call.done_writing()
    answers = [await peer.answer() for _ in range(10)]
    assert [a.step for a in answers] == list(range(1, 11))
    assert await peer.ended() == grpc.StatusCode.OK
