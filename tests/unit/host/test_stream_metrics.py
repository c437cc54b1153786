"""The values of a host's times, on a clock that the test sets. One hop over a fake range, over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

import grpc
import pytest
from prometheus_client import CollectorRegistry

from splitinfer.profiler.series import HOST_SERIES, PHASES, STEP_LABELS
from splitinfer.segment_runtime.channel import SERVER_OPTIONS, FrameLink
from splitinfer.segment_runtime.compute import ComputeThread
from splitinfer.segment_runtime.engine.port import SessionRows
from splitinfer.segment_runtime.host.hop import Hop
from splitinfer.segment_runtime.host.metrics import HostMetrics, StepSums
from splitinfer.segment_runtime.host.ranges import HostRanges
from splitinfer.segment_runtime.host.streams import HopStreams
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.proto import runtime_pb2_grpc as rpc
from splitinfer.segment_runtime.work import work_of
from tests.unit.host.test_hop import frame, make

SECONDS = 20


class Looks:
    """A clock that says a list of times, one a look."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self) -> float:
        """The next of them."""
        return self.times.pop(0)


@contextlib.asynccontextmanager
async def streams_of(
    hop: Hop, clock: Looks
) -> AsyncIterator[tuple[FrameLink, CollectorRegistry, asyncio.Queue[pb.StreamError]]]:
    """A stream to one hop that has no next one: it says so of each frame that it has computed."""
    ranges = cast(
        "HostRanges",
        SimpleNamespace(
            node="n",
            hop=lambda *key: hop if key == (1, 0) else None,
            kv_bytes=0,
            sessions=0,
            epochs=(),
            engine=SimpleNamespace(resident_weight_bytes=0),
        ),
    )
    registry = CollectorRegistry()
    errors: asyncio.Queue[pb.StreamError] = asyncio.Queue()
    with contextlib.closing(ComputeThread("compute")) as compute:
        service = HopStreams(ranges, compute, HostMetrics(registry, ranges), clock)
        server = grpc.aio.server(options=SERVER_OPTIONS)
        rpc.add_ActivationsServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        link = FrameLink(f"127.0.0.1:{port}", 1, 0, on_error=errors.put_nowait, on_lost=lambda _: None)
        try:
            await link.open(SECONDS)
            yield link, registry, errors
        finally:
            await link.close()
            await server.stop(grace=0)


async def code_of(errors: asyncio.Queue[pb.StreamError]) -> int:
    """What comes back next."""
    async with asyncio.timeout(SECONDS):
        return (await errors.get()).code


def sums(registry: CollectorRegistry, phase: str) -> tuple[float | None, ...]:
    """All of a phase, in the order of `HOST_SERIES`."""
    return tuple(registry.get_sample_value(series.name, {"phase": phase}) for series in HOST_SERIES)


def value(registry: CollectorRegistry, name: str) -> float | None:
    """One sample of the host's."""
    return registry.get_sample_value(f"splitinfer_host_{name}")


async def test_a_frame_s_wait_and_its_compute_time_are_told_apart() -> None:
    """It waits 1 s and is decoded, computed and encoded in 2, 4 and 8; the next waits 0.5 s and computes in 0.25."""
    hop, _ = make()
    clock = Looks()
    async with streams_of(hop, clock) as (link, registry, errors):
        clock.times = [100.0, 101.0, 103.0, 107.0, 115.0]
        await link.send(frame(1, (7, 0, 3, 9)))
        assert await code_of(errors) == pb.DOWNSTREAM_LOST
        assert clock.times == [], "the test says every time that is looked at"
        assert (value(registry, "queue_seconds_count"), value(registry, "queue_seconds_sum")) == (1, 1.0)
        assert (value(registry, "step_seconds_count"), value(registry, "step_seconds_sum")) == (1, 4.0)
        assert value(registry, "rows_total") == 3
        clock.times = [200.0, 200.5, 200.5, 200.75, 200.75]
        await link.send(frame(2, (7, 3, 2, 9)))
        assert await code_of(errors) == pb.DOWNSTREAM_LOST
        assert (value(registry, "queue_seconds_count"), value(registry, "queue_seconds_sum")) == (2, 1.5)
        assert (value(registry, "step_seconds_count"), value(registry, "step_seconds_sum")) == (2, 4.25)
        assert value(registry, "rows_total") == 5


async def test_a_frame_that_only_releases_waits_but_is_no_step() -> None:
    """A step of nothing would pull the compute time down; a refused frame is neither."""
    hop, _ = make()
    clock = Looks()
    async with streams_of(hop, clock) as (link, registry, errors):
        clock.times = [100.0, 102.0, 102.0, 102.0, 102.0]
        await link.send(frame(1, released=(7,)))
        assert await code_of(errors) == pb.DOWNSTREAM_LOST
        clock.times = [200.0, 209.0]
        await link.send(frame(1, (7, 0, 3, 9)))
        assert await code_of(errors) == pb.BAD_FRAME
        assert clock.times == []
        assert (value(registry, "queue_seconds_count"), value(registry, "queue_seconds_sum")) == (1, 2.0)
        assert (value(registry, "step_seconds_count"), value(registry, "rows_total")) == (0, 0)
        assert registry.get_sample_value("splitinfer_host_frame_errors_total", {"code": "bad_frame"}) == 1


async def test_the_sums_of_steps_tell_decode_from_prefill() -> None:
    """One block: 3 rows of a prompt in 4 s; then a token of one session, after 3 others, in 0.25 s: 4 tokens of context."""
    hop, _ = make()
    clock = Looks()
    async with streams_of(hop, clock) as (link, registry, errors):
        clock.times = [100.0, 101.0, 103.0, 107.0, 115.0]
        await link.send(frame(1, (7, 0, 3, 9)))
        assert await code_of(errors) == pb.DOWNSTREAM_LOST
        clock.times = [200.0, 200.5, 200.5, 200.75, 200.75]
        await link.send(frame(2, (7, 3, 1, 9)))
        assert await code_of(errors) == pb.DOWNSTREAM_LOST
        assert sums(registry, "prefill") == (1, 4.0, 1, 3, 3)
        assert sums(registry, "decode") == (1, 0.25, 1, 1, 4)


def test_the_sums_are_those_that_the_agent_reads() -> None:
    """Names, help and labels as the profiler has them, which the runtime may not import; all there before any step."""
    registry = CollectorRegistry()
    StepSums(registry)
    expected = {(s.name, s.help, phase) for s in HOST_SERIES for phase in PHASES if s.labels == STEP_LABELS}
    found = {
        (sample.name, family.documentation, sample.labels["phase"])
        for family in registry.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    assert found == expected
    assert len(found) == 2 * len(HOST_SERIES)


@pytest.mark.parametrize(
    ("counts", "positions", "expected"),
    [
        ([1, 1], [4, 9], ("decode", 2, 5 + 10)),
        ([1, 3], [4, 0], ("prefill", 4, 5 + 3)),
        ([3], [6], ("prefill", 3, 9)),
    ],
)
def test_a_frame_is_prefill_as_soon_as_one_session_has_more_rows(
    counts: list[int], positions: list[int], expected: tuple[str, int, int]
) -> None:
    """Phase, rows and context; the rows themselves are part of what they look at."""
    batch = [SessionRows(i, at, count) for i, (at, count) in enumerate(zip(positions, counts, strict=True))]
    work = work_of(batch, 5)
    assert work is not None
    assert (work.phase, work.rows, work.context_tokens) == expected
    assert work.blocks == 5
    assert work_of([], 5) is None
