"""Taking a port for a gRPC server: what is refused, in which words, and that two servers never share one."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from splitinfer.segment_runtime.channel import SERVER_OPTIONS
from splitinfer.segment_runtime.ports import bind, is_wildcard


@pytest.fixture
async def server() -> AsyncIterator[grpc.aio.Server]:
    """One that listens nowhere yet."""
    made = grpc.aio.server(options=SERVER_OPTIONS)
    yield made
    await made.stop(0)


@contextlib.contextmanager
def listening(host: str, *, shares: bool = False) -> Iterator[int]:
    """A port that somebody listens on; ``shares`` it with whoever wants to."""
    with socket.create_server((host, 0), reuse_port=shares) as taken:
        yield taken.getsockname()[1]


def name_is(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """What every name stands for."""

    def found(_host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
            for address in addresses
        ]

    monkeypatch.setattr("splitinfer.segment_runtime.ports.socket.getaddrinfo", found)


async def test_port_0_takes_a_free_one_and_the_host_is_given_back(server: grpc.aio.Server) -> None:
    """So that host:port can be told to others."""
    host, port = bind(server, "127.0.0.1:0", "--listen")
    assert host == "127.0.0.1"
    assert port > 0


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", ""])
@pytest.mark.parametrize("shares", [False, True])
async def test_a_port_that_somebody_listens_on_is_refused(
    server: grpc.aio.Server, capfd: pytest.CaptureFixture[str], host: str, shares: bool
) -> None:
    """Also under a name or a wildcard, also where the other would share it, and gRPC's core says nothing of its own."""
    with listening("127.0.0.1", shares=shares) as port:
        with pytest.raises(
            ValueError, match=rf"^--data: {host}:{port} cannot be bound \(.+\); choose a free port, or 0$"
        ):
            bind(server, f"{host}:{port}", "--data")
    assert capfd.readouterr().err == ""


async def test_a_second_grpc_server_cannot_have_the_port_of_the_first(server: grpc.aio.Server) -> None:
    """By gRPC's own default it could, and each would get some of the streams; neither by asking nor by the options."""
    _, port = bind(server, "127.0.0.1:0", "--listen")
    await server.start()
    second = grpc.aio.server(options=SERVER_OPTIONS)
    with pytest.raises(ValueError, match="cannot be bound"):
        bind(second, f"127.0.0.1:{port}", "--listen")
    with pytest.raises(RuntimeError, match="Failed to bind"):
        second.add_insecure_port(f"127.0.0.1:{port}")
    await second.stop(0)


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
async def test_a_host_that_is_not_this_machine_is_refused(
    server: grpc.aio.Server, capfd: pytest.CaptureFixture[str], host: str
) -> None:
    """No other port would mend it, so the message asks for another host."""
    with pytest.raises(
        ValueError, match=rf"^--data: {host}:0 cannot be bound \(.+\); give an address of this machine$"
    ):
        bind(server, f"{host}:0", "--data")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("other", ["127.0.0.2", "192.0.2.1"])
async def test_a_name_one_of_whose_addresses_is_taken_is_refused(
    server: grpc.aio.Server, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """One is free and gRPC would take it; who connects then to the name meets one of two servers."""
    with listening("127.0.0.1") as port:
        name_is(monkeypatch, other, "127.0.0.1")
        with pytest.raises(ValueError, match=r"localhost:\d+ cannot be bound \(.+in use\)"):
            bind(server, f"localhost:{port}", "--data")


async def test_a_name_one_of_whose_addresses_is_of_this_machine_is_taken(
    server: grpc.aio.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``localhost`` where it stands for ::1 too and there is no IPv6."""
    name_is(monkeypatch, "192.0.2.1", "127.0.0.1")
    assert bind(server, "localhost:0", "--data")[1] > 0


async def test_the_port_of_a_server_that_ended_can_be_had_at_once(server: grpc.aio.Server) -> None:
    """Connections that it left in TIME_WAIT do not count: a host that restarts takes its port again."""
    with socket.create_server(("127.0.0.1", 0)) as before:
        port = before.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            taken, _ = before.accept()
            taken.close()  # first, so that the closed connection waits on the server's side
            assert client.recv(1) == b""
    assert bind(server, f"127.0.0.1:{port}", "--listen") == ("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("0.0.0.0", True),
        ("::", True),
        ("[::]", True),
        ("127.0.0.1", False),
        ("[::1]", False),
        ("node-a", False),
    ],
)
def test_a_wildcard_is_an_address_to_bind_to_only(host: str, expected: bool) -> None:
    """With and without the brackets that an IPv6 host has on a command line."""
    assert is_wildcard(host) is expected


@pytest.mark.parametrize("host", ["a..b", "a" * 70])
async def test_what_is_no_host_name_is_refused_by_its_option(server: grpc.aio.Server, host: str) -> None:
    """Not with the words of the encoding that it does not fit."""
    with pytest.raises(
        ValueError, match=rf"^--listen: {host}:80: {host} is not a host name; give an address"
    ):
        bind(server, f"{host}:80", "--listen")
