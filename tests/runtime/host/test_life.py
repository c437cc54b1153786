"""A host from its command line to its end: health, reflection, metrics, drain, orphans and bad input."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from random import Random

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from tests.support.forked import ForkedHost, fork_host, run_host
from tests.support.frames import Traffic
from tests.support.homes import alive, wait_gone
from tests.support.models import Case
from tests.support.peer import Peer, peer_of
from tests.support.pipelines import HostProcess

HOST = [sys.executable, "-m", "splitinfer.segment_runtime.host", "--node", "n"]
GONE_SECONDS = 15


def metrics_of(address: str) -> dict[str, float]:
    """Samples of /metrics by name and labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        text = response.read().decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


async def health_of(peer: Peer, service: str = "") -> int:
    """The answer of the health service."""
    stub = health_pb2_grpc.HealthStub(peer.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
    return int(answer.status)


@pytest.fixture
def own(case: Case, root: Path, tmp_path: Path) -> Iterator[ForkedHost]:
    """A host that a test may end."""
    host = fork_host(root / "models", "own", tmp_path)
    yield host
    host.kill()


async def test_health_answers_for_the_host_and_each_service(peer: Peer) -> None:
    """As Kubernetes asks, and as a person does."""
    for service in ("", "splitinfer.v1.Activations", "splitinfer.v1.HostControl"):
        assert await health_of(peer, service) == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_services(peer: Peer) -> None:
    """So that grpcurl works without the proto file."""
    stub = reflection_pb2_grpc.ServerReflectionStub(peer.channel)

    async def ask() -> object:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    answers = [answer async for answer in stub.ServerReflectionInfo(ask())]
    names = {service.name for service in answers[0].list_services_response.service}
    assert {"splitinfer.v1.Activations", "splitinfer.v1.HostControl", "grpc.health.v1.Health"} <= names


async def test_metrics_count_steps_bytes_kv_and_weights(peer: Peer, case: Case, host: HostProcess) -> None:
    """Each with the value that the frames give it."""
    traffic = Traffic(await peer.serve(), Random(2))
    before = metrics_of(host.metrics)
    frames = []
    for _ in range(5):
        frame = traffic.frame()
        answer = await peer.ask(frame)
        assert isinstance(answer, pb.Frame)
        traffic.taken(frame)
        frames.append((frame, answer))
    bad = traffic.frame()
    bad.hop = 3
    assert isinstance(await peer.ask(bad), pb.StreamError)
    after = metrics_of(host.metrics)

    def grew(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    index = case.stored.index
    assert grew("splitinfer_host_step_seconds_count") == 5
    assert grew("splitinfer_host_queue_seconds_count") == 5
    assert grew("splitinfer_host_rows_total") == sum(frame.dims[0] for frame, _ in frames)
    assert grew("splitinfer_host_sent_bytes_total") == sum(len(answer.data) for _, answer in frames)
    received = sum(len(frame.data) for frame, _ in frames) + len(bad.data)
    assert grew("splitinfer_host_received_bytes_total") == received
    assert grew('splitinfer_host_frame_errors_total{code="bad_frame"}') == 1
    per_token = index.blocks * index.kv_bytes_per_token(4)
    assert after["splitinfer_host_kv_bytes"] == sum(traffic.capacities.values()) * per_token > 0
    assert after["splitinfer_host_kv_budget_bytes"] == 128 * per_token
    assert after["splitinfer_host_sessions"] == len(traffic.lengths)
    weights = sum(index.block_weight_bytes(b, 4) for b in range(index.blocks))
    assert after["splitinfer_host_weight_bytes"] == weights
    assert after["splitinfer_host_epoch"] == peer.epoch
    answer = await peer.ask(traffic.release_all())
    assert metrics_of(host.metrics)["splitinfer_host_kv_bytes"] == 0


async def test_sigterm_drains_and_ends_as_soon_as_the_entry_has_moved_away(
    case: Case, own: ForkedHost
) -> None:
    """It says DRAINING up the stream, is not SERVING, prepares nothing, but computes on until it is released."""
    async with peer_of(case.stored, "own", own.address) as peer:
        traffic = Traffic(await peer.serve(), Random(3))
        own.signal(signal.SIGTERM)
        said = await peer.answer()
        assert isinstance(said, pb.StreamError)
        assert (said.code, said.node) == (pb.DRAINING, "own")
        assert await health_of(peer) == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="own is shutting down"):
            await peer.prepare(peer.request(peer.epoch + 1))
        for _ in range(3):
            frame = traffic.frame()
            assert isinstance(await peer.ask(frame), pb.Frame)
            traffic.taken(frame)
        assert own.alive
        await peer.control.Release(pb.EpochRequest(epoch=peer.epoch), timeout=20)
        assert await asyncio.to_thread(wait_gone, own.pid, GONE_SECONDS), (
            "the grace is 20 s, it is not needed"
        )
        peer.gone = True


async def test_the_grace_ends_a_drain_that_nobody_answers(case: Case, root: Path, tmp_path: Path) -> None:
    """An entry that does not move away does not hold the node for ever."""
    host = fork_host(root / "models", "short", tmp_path, "--grace-seconds", "1")
    try:
        async with peer_of(case.stored, "short", host.address) as peer:
            await peer.serve()
            host.signal(signal.SIGTERM)
            assert await asyncio.to_thread(wait_gone, host.pid, GONE_SECONDS)
            peer.gone = True
    finally:
        host.kill()
    assert "grace is over" in host.log.read_text()


async def test_the_end_of_stdin_ends_a_host_with_streams_open(case: Case, own: ForkedHost) -> None:
    """Its parent is gone: no drain, no orphan."""
    async with peer_of(case.stored, "own", own.address) as peer:
        await peer.serve()
        own.parent.close()
        assert await asyncio.to_thread(wait_gone, own.pid, GONE_SECONDS)
        peer.gone = True


async def test_a_drain_ends_when_the_parent_goes(case: Case, own: ForkedHost) -> None:
    """SIGTERM first, then the parent's end within the grace."""
    async with peer_of(case.stored, "own", own.address) as peer:
        await peer.serve()
        own.signal(signal.SIGTERM)
        assert isinstance(await peer.answer(), pb.StreamError)
        own.parent.close()
        assert await asyncio.to_thread(wait_gone, own.pid, 8), (
            "it would be ended at once 10 s after its parent"
        )
        peer.gone = True


def test_sigkill_of_the_parent_ends_the_host(case: Case, root: Path) -> None:
    """A real parent process, killed without a chance to clean up."""
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "sys.stdout.buffer.write(child.stdout.readline())\n"
        "sys.stdout.flush()\n"
        "child.wait()\n"
    )
    options = ["--listen", "127.0.0.1:0", "--store", str(root / "models"), "--exit-with-parent"]
    with subprocess.Popen([sys.executable, "-c", code, *HOST, *options], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            assert json.loads(parent.stdout.readline())["event"] == "listening"
            parent.kill()
            assert wait_gone(child, GONE_SECONDS)
        finally:
            parent.kill()
            if alive(child):
                os.kill(child, signal.SIGKILL)


BAD_INPUT = {
    "port in use": (
        ["--listen", "{taken}"],
        r"--listen: {taken} cannot be bound \(.+\); choose a free port, or 0",
    ),
    "metrics port in use": (
        ["--metrics-port", "{port}"],
        r"--metrics-port: {port} cannot be bound .*; choose",
    ),
    "not this machine": (
        ["--listen", "192.0.2.1:0"],
        r"--listen: 192.0.2.1:0 cannot be bound \(.+\); give an address of this machine",
    ),
    "no address": (["--listen", "nonsense"], r"--listen: 'nonsense' is not host:port"),
    "IPv6 without brackets": (
        ["--listen", "::1:0"],
        r"--listen: '::1:0': an IPv6 address stands in brackets",
    ),
    "unknown engine": (["--engine", "abacus"], r"engine: 'abacus' is not an engine; there are: "),
    "unknown device": (["--device", "abacus"], r"device: 'abacus'"),
    "no such GPU": (["--device", "cuda:99"], r"device: 'cuda:99'"),
    "no thread": (["--threads", "0"], r"threads: 0"),
}


@pytest.fixture
def taken() -> Iterator[dict[str, str]]:
    """An address that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        yield {"taken": f"127.0.0.1:{port}", "port": port}


def assert_one_line(code: int | None, stdout: str, stderr: str, message: str) -> None:
    """Exit code 2, no word on stdout, and all of stderr is one line that names what to change.

    ``stderr`` is that of the process, not Python's: gRPC's core writes to it by itself.
    """
    assert (code, stdout) == (2, ""), stderr
    assert re.fullmatch(f"error: {message}.*\n", stderr), stderr


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_said_in_one_line_and_exits_2(name: str, taken: dict[str, str], tmp_path: Path) -> None:
    """Each names what to change."""
    options, message = BAD_INPUT[name]
    arguments = ["--node", "n", "--listen", "127.0.0.1:0", *(option.format(**taken) for option in options)]
    code, stdout, stderr = run_host(tmp_path, *arguments)
    assert_one_line(code, stdout.decode(), stderr, message.format(**taken))


def test_a_port_in_use_is_said_at_once_from_a_real_command_line(taken: dict[str, str]) -> None:
    """Without a word from a thread or a library, and before an engine is imported."""
    arguments = [*HOST, "--listen", taken["taken"]]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert_one_line(done.returncode, done.stdout, done.stderr, BAD_INPUT["port in use"][1].format(**taken))


def test_a_host_without_a_name_is_refused(tmp_path: Path) -> None:
    """``--node`` is how plans name it."""
    code, _, stderr = run_host(tmp_path, "--listen", "127.0.0.1:0")
    assert code == 2
    assert "--node" in stderr
