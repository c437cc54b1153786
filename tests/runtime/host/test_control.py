"""Prepare, commit, release and describe, against a real host process."""

from __future__ import annotations

import asyncio
import itertools
import re
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest

from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from tests.support.forked import fork_host
from tests.support.frames import Traffic
from tests.support.models import Case
from tests.support.peer import Peer, peer_of


async def refusal(peer: Peer, request: pb.PrepareRequest) -> tuple[grpc.StatusCode, str]:
    """The status and the sentence of a prepare that must be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await peer.prepare(request)
    return caught.value.code(), str(caught.value.details())


async def test_a_host_starts_empty_and_says_what_it_is(peer: Peer) -> None:
    """Engine, device, threads and no range."""
    state = await peer.state()
    assert (state.node, state.engine, state.device, state.threads) == ("alpha", "torch", "cpu", 1)
    assert (list(state.ranges), state.memory_used_bytes, state.draining) == ([], 0, False)


async def test_prepare_loads_what_it_names_and_reports_bytes(peer: Peer, case: Case) -> None:
    """Several ranges of one model on one host, shared blocks in memory once, and release frees them."""
    epoch = await peer.next_epoch()
    index = case.stored.index
    said = await peer.prepare(peer.request(epoch, [(0, 2), (3, 4), (1, 3)]))
    total = sum(index.block_weight_bytes(b, 4) for b in (0, 1, 3, 1, 2))
    blocks = [index.block_weight_bytes(b, 4) for b in (0, 1, 3, 1, 2)]
    assert [u.loaded_bytes for u in said] == [0, *itertools.accumulate(blocks), total], "block by block"
    assert [u.ready for u in said] == [False] * (len(said) - 1) + [True]
    assert {u.total_bytes for u in said} == {total}
    assert (said[-1].loaded_bytes, said[-1].ready) == (total, True)
    state = await peer.state()
    assert [(r.hop, r.start, r.stop) for r in state.ranges] == [(0, 0, 2), (1, 3, 4), (2, 1, 3)]
    assert state.memory_used_bytes == sum(index.block_weight_bytes(b, 4) for b in (0, 1, 2, 3))
    await peer.control.Release(pb.EpochRequest(epoch=epoch), timeout=20)
    assert (await peer.state()).memory_used_bytes == 0


async def test_prepare_twice_is_prepare_once(peer: Peer) -> None:
    """The same plan again is answered at once; another plan under the same epoch is refused."""
    request = peer.request(await peer.next_epoch())
    await peer.prepare(request)
    assert (await peer.prepare(request))[-1].ready
    assert len((await peer.state()).ranges) == 1
    request.plan_digest = "another"
    code, message = await refusal(peer, request)
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "is prepared already, for another plan; use a newer epoch" in message


async def test_an_epoch_behind_the_fence_is_refused(peer: Peer) -> None:
    """Also one that was released before it was ever prepared: its entry has given it up."""
    epoch = await peer.next_epoch()
    await peer.control.Release(pb.EpochRequest(epoch=epoch), timeout=20)
    code, message = await refusal(peer, peer.request(epoch))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert f"epoch: {epoch} is fenced off: epoch {epoch} was seen" in message


async def test_an_older_epoch_is_not_committed_after_a_newer_one(peer: Peer) -> None:
    """A commit that was delayed must not take the sessions of what serves."""
    old = await peer.next_epoch()
    await peer.prepare(peer.request(old))
    await peer.prepare(peer.request(old + 1))
    await peer.control.Commit(pb.EpochRequest(epoch=old + 1), timeout=20)
    with pytest.raises(grpc.aio.AioRpcError, match=f"{old} is fenced off: epoch {old + 1} serves"):
        await peer.control.Commit(pb.EpochRequest(epoch=old), timeout=20)


async def test_commit_of_what_is_not_prepared_is_refused(peer: Peer) -> None:
    """With the epoch and the node in the sentence."""
    with pytest.raises(grpc.aio.AioRpcError, match="epoch: 123456 was not prepared on alpha"):
        await peer.control.Commit(pb.EpochRequest(epoch=123456), timeout=20)


async def test_commit_says_which_next_hop_cannot_be_reached(peer: Peer) -> None:
    """The address stands in the error."""
    request = peer.request(await peer.next_epoch())
    request.ranges[0].next = "127.0.0.1:1"
    await peer.prepare(request)
    with pytest.raises(grpc.aio.AioRpcError, match=re.escape("hop 1 at 127.0.0.1:1: UNAVAILABLE")) as caught:
        await peer.control.Commit(pb.EpochRequest(epoch=request.epoch), timeout=20)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("changes", "ranges", "message"),
    [
        ({"dtype": 9}, None, "dtype: 9 is not a dtype"),
        ({}, [], "ranges: a host of the plan has at least one range"),
        ({}, [(3, 3)], r"ranges\[0\]: \[3:3\) is not within the 5 blocks"),
        ({}, [(0, 6)], r"ranges\[0\]: \[0:6\) is not within the 5 blocks"),
        ({"hops": 0}, None, r"ranges\[0\].hop: 0, the plan has 0 hops"),
        (
            {"model_digest": "0" * 64},
            None,
            "model_digest: llama on alpha has digest .* import the same model",
        ),
        ({"model_name": "nobody", "model_digest": "1" * 64}, None, "nobody"),
        ({"max_context_tokens": 0}, None, "max_context_tokens: 0 must be at least 1"),
        ({"kv_budget_tokens": 5}, None, "max_context_tokens: 32 must be .* at most kv_budget_tokens, 5"),
    ],
)
async def test_a_prepare_that_cannot_be_met_is_refused_by_field(
    peer: Peer, changes: dict[str, Any], ranges: list[tuple[int, int]] | None, message: str
) -> None:
    """And nothing of it stays."""
    request = peer.request(await peer.next_epoch(), ranges, **changes)
    code, said = await refusal(peer, request)
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert re.search(message, said), said
    assert not (await peer.state()).ranges


async def test_a_range_is_dropped_while_another_serves(peer: Peer) -> None:
    """A second epoch is loaded and dropped beside the stream, which goes on."""
    traffic = Traffic(await peer.serve(), Random(4))
    for _ in range(3):
        epoch = await peer.next_epoch()
        await peer.prepare(peer.request(epoch, [(1, 3)]))
        frame = traffic.frame()
        assert isinstance(await peer.ask(frame), pb.Frame)
        traffic.taken(frame)
        await peer.control.Release(pb.EpochRequest(epoch=epoch), timeout=20)
    assert [r.epoch for r in (await peer.state()).ranges] == [peer.epoch]
    assert isinstance(await peer.ask(traffic.frame()), pb.Frame)


async def test_release_ends_the_stream_and_says_so(peer: Peer) -> None:
    """With steps under way or not, the upstream learns why, and nothing stays."""
    traffic = Traffic(await peer.serve(), Random(4))
    assert isinstance(await peer.ask(traffic.frame()), pb.Frame)
    await peer.control.Release(pb.EpochRequest(epoch=peer.epoch), timeout=20)
    assert await peer.ended() == grpc.StatusCode.FAILED_PRECONDITION
    assert peer.call is not None
    assert await peer.call.details() == f"epoch {peer.epoch} hop 0 was let go"
    state = await peer.state()
    assert (list(state.ranges), state.memory_used_bytes) == ([], 0)


async def test_a_load_whose_caller_went_away_is_given_up(peer: Peer) -> None:
    """Nobody would ever release it."""
    epoch = await peer.next_epoch()
    call = peer.control.Prepare(peer.request(epoch))
    assert await call.read() is not None  # it has begun
    call.cancel()
    async with asyncio.timeout(20):
        code, _ = await refusal(peer, peer.request(epoch, plan_digest="other"))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    # Given up at its next block, or finished before it could be told; then the next entry's fence drops it.
    state = await peer.state()
    assert {r.epoch for r in state.ranges} <= {epoch}
    assert state.fence == epoch


async def test_the_memory_limit_holds_for_weights_and_kv_of_both_epochs(
    case: Case, root: Path, tmp_path: Path
) -> None:
    """Exactly what fits is taken; a byte more is refused with the numbers before anything loads."""
    index = case.stored.index
    two = sum(index.block_weight_bytes(b, 4) for b in (0, 1))
    kv = index.kv_bytes_per_token(4)
    limit = two + 2 * 64 * kv
    tight = fork_host(root / "models", "tight", tmp_path, "--memory-limit-bytes", str(limit))
    try:
        async with peer_of(case.stored, "tight", tight.address) as peer:
            await peer.prepare(peer.request(1, [(0, 2)], budget=64))
            code, message = await refusal(peer, peer.request(2, [(0, 2)], budget=65))
            assert code == grpc.StatusCode.FAILED_PRECONDITION
            assert f"tight would need {limit + 2 * kv} bytes ({two} of weights for 2 blocks" in message
            assert f"its limit is {limit}" in message
            _, message = await refusal(peer, peer.request(3, [(1, 3)], budget=64))
            assert "of weights for 3 blocks" in message, "the union with what serves counts"
            assert (await peer.state()).memory_used_bytes == two
    finally:
        tight.stop()
