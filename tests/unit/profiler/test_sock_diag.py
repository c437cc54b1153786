"""What the kernel says of connections, from bytes: right ones to the last field, any others to an error."""

from __future__ import annotations

import errno
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinfer.profiler.sock_diag import (
    APP_LIMITED,
    HEADER,
    INET_DIAG_INFO,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOCK_DIAG_BY_FAMILY,
    SockDiagError,
    TcpSocket,
    parse_messages,
)

SOCKET = TcpSocket("10.0.0.1:5000", "10.0.0.2:6000", 77, 0.0213, 0.0204, 1.25e6, True, 1 << 40, 0.25)


def message(kind: int, body: bytes) -> bytes:
    """One of netlink, padded."""
    return HEADER.pack(HEADER.size + len(body), kind, 2, 1, 0) + body + bytes(-len(body) % 4)


def attribute(kind: int, body: bytes) -> bytes:
    """One of a message, padded."""
    return struct.pack("=HH", 4 + len(body), kind) + body + bytes(-len(body) % 4)


def info(one: TcpSocket, nbytes: int = 240) -> bytes:
    """``struct tcp_info`` field by field, as linux/tcp.h has it; of a kernel that knows ``nbytes`` of it."""
    microseconds = [round(1e6 * (t or 0)) for t in (one.round_trip_seconds, one.least_round_trip_seconds)]
    words = [200, 0, 1448, 536, 0, 0, 0, 0, 0, round(one.idle_seconds * 1e3), 0, 0, 0, 1500, 64000, microseconds[0],
             100, 7, 10, 1448, 3, 0, 14600, 0]  # fmt: skip
    flags = APP_LIMITED if one.app_limited else 0
    data = struct.pack("=8B24I", 1, 0, 0, 0, 0, 7, 0x77, flags, *words)
    data += struct.pack("=4Q", 9, 9, one.acknowledged_bytes, 9)
    data += struct.pack("=6I", 9, 9, 0, microseconds[1], 9, 9)
    data += struct.pack("=Q", round(one.delivery_bytes_per_second or 0))
    return (data + bytes(240))[:nbytes]


def connection(one: TcpSocket, family: int = 2, *, addresses: bytes | None = None, known: int = 240) -> bytes:
    """A message of a connection between 10.0.0.1:5000 and 10.0.0.2:6000, other attributes around what is read."""
    addresses = addresses or bytes([10, 0, 0, 1]) + bytes(12) + bytes([10, 0, 0, 2]) + bytes(12)
    body = struct.pack("=4B", family, 1, 0, 0) + struct.pack(">HH", 5000, 6000) + addresses
    body += struct.pack("=3I", 0, 1, 2) + struct.pack("=5I", 0, 0, 0, 1000, one.inode)
    body += attribute(8, b"\0") + attribute(INET_DIAG_INFO, info(one, known)) + attribute(4, b"cubic\0")
    return message(SOCK_DIAG_BY_FAMILY, body)


def test_every_field_comes_from_its_place() -> None:
    """And the end of the answer is told from the end of a datagram."""
    assert parse_messages(connection(SOCKET)) == ([SOCKET], False)
    other = replace(SOCKET, app_limited=False, inode=78)
    both = connection(SOCKET) + connection(other) + message(NLMSG_DONE, bytes(4))
    assert parse_messages(both) == ([SOCKET, other], True)


def test_what_is_not_known_is_none() -> None:
    """A connection on which nothing was acknowledged yet has no round trip and no rate, not zero ones."""
    young = replace(
        SOCKET, round_trip_seconds=None, least_round_trip_seconds=None, delivery_bytes_per_second=None
    )
    assert parse_messages(connection(young))[0] == [young]
    never = replace(SOCKET, least_round_trip_seconds=0xFFFFFFFF / 1e6)
    assert parse_messages(connection(never))[0] == [replace(SOCKET, least_round_trip_seconds=None)]


def test_addresses_are_written_as_people_write_them() -> None:
    """IPv6 in brackets; IPv4 as a dual-stack socket has it is IPv4, so that one peer has one name."""
    mapped = bytes(10) + b"\xff\xff" + bytes([10, 0, 0, 1]) + bytes(10) + b"\xff\xff" + bytes([10, 0, 0, 2])
    assert parse_messages(connection(SOCKET, 10, addresses=mapped))[0] == [SOCKET]
    plain = bytes.fromhex("fd00" + "00" * 13 + "01" + "fd00" + "00" * 13 + "02")
    (found,) = parse_messages(connection(SOCKET, 10, addresses=plain))[0]
    assert (found.local, found.remote) == ("[fd00::1]:5000", "[fd00::2]:6000")


def test_an_old_kernel_and_a_refusal_are_named() -> None:
    """No field is read from where none is."""
    with pytest.raises(SockDiagError, match=r"tcp_info of 104 bytes: Linux 4\.9"):
        parse_messages(connection(SOCKET, known=104))
    with pytest.raises(SockDiagError, match="No such file or directory"):
        parse_messages(message(NLMSG_ERROR, struct.pack("=i", -errno.ENOENT) + bytes(16)))


def test_a_connection_without_info_is_passed_over() -> None:
    """It is about to go."""
    body = connection(SOCKET)[HEADER.size : HEADER.size + 72]
    assert parse_messages(message(SOCK_DIAG_BY_FAMILY, body)) == ([], False)


def parsed(data: bytes) -> None:
    """Connections or the module's error; nothing else may come out."""
    try:
        found, _ = parse_messages(data)
    except SockDiagError:
        return
    assert all(one.idle_seconds >= 0 and one.round_trip_seconds != 0 for one in found)


@given(st.binary(max_size=600))
def test_any_bytes_give_connections_or_an_error(data: bytes) -> None:
    """Never another exception, and never an endless loop."""
    parsed(data)


@given(st.data())
def test_damaged_answers_give_connections_or_an_error(data: st.DataObject) -> None:
    """A real answer cut off or with bytes changed, lengths among them."""
    whole = bytearray(connection(SOCKET) + connection(SOCKET, 10))
    for _ in range(data.draw(st.integers(0, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    parsed(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
