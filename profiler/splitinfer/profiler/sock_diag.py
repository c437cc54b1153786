"""What the kernel knows of TCP connections: round trip, delivery rate, bytes, over netlink (``sock_diag(7)``).

Any user may ask, and sees the connections of the network namespace that it asks in. The parsing is pure; the messages and
``struct tcp_info`` are those of ``linux/inet_diag.h`` and ``linux/tcp.h``, where fields are only ever added at the end.

Errors
------
SockDiagError             the kernel refuses, is too old, or says what is no answer
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
NLM_F_REQUEST, NLM_F_DUMP = 0x001, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
INET_DIAG_INFO, TCP_ESTABLISHED = 2, 1

HEADER = struct.Struct("=IHHII")
REQUEST = struct.Struct("=BBBxI48x")
MESSAGE = struct.Struct("=BBBB2s2s16s16s4x8x4x4x4x4xI")
"""Family, state, timer, retransmissions, ports, addresses, and after what is passed over the inode."""
ATTRIBUTE = struct.Struct("=HH")
INFO = struct.Struct("=7xB36xI20xI48xQ20xI8xQ")
"""Flags, ms since data was sent, smoothed round trip, bytes acknowledged, least round trip, delivery rate (Linux 4.9)."""
APP_LIMITED = 0x01 if sys.byteorder == "little" else 0x80
"""Bit fields start at the machine's end of a byte."""
NO_ROUND_TRIP = 0xFFFFFFFF
ANSWER_BYTES = 1 << 20
ANSWER_SECONDS = 2.0


class SockDiagError(Exception):
    """The kernel refuses, is too old, or says what is no answer."""


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """An established connection as one end of it sees it.

    Attributes:
        local: ``host:port`` of this end; IPv6 in brackets, an IPv4 address in IPv6 as IPv4.
        remote: of the other end.
        inode: of the socket; ``/proc/PID/fd`` has it at the process that holds it.
        round_trip_seconds: smoothed over the last packets; None before one was acknowledged.
        least_round_trip_seconds: of the last minutes.
        delivery_bytes_per_second: of the newest packets; None before there are any.
        app_limited: there was not enough to send: the rate is a lower bound of what the link can do.
        acknowledged_bytes: that the other end has.
        idle_seconds: since data was last sent.
    """

    local: str
    remote: str
    inode: int
    round_trip_seconds: float | None
    least_round_trip_seconds: float | None
    delivery_bytes_per_second: float | None
    app_limited: bool
    acknowledged_bytes: int
    idle_seconds: float


def parse_messages(data: bytes) -> tuple[list[TcpSocket], bool]:
    """One datagram of an answer: its connections, and whether it was the last.

    Raises:
        SockDiagError: an error of the kernel, or bytes that are no netlink messages.
    """
    found: list[TcpSocket] = []
    for kind, body in _parts(data, HEADER):
        if kind == NLMSG_DONE:
            return found, True
        if kind == NLMSG_ERROR:
            code = struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
            raise SockDiagError(f"the kernel refuses: {os.strerror(-code) if -4096 < code < 0 else code}")
        if kind == SOCK_DIAG_BY_FAMILY and (one := _socket(body)) is not None:
            found.append(one)
    return found, False


def _parts(data: bytes, header: struct.Struct) -> Iterator[tuple[int, bytes]]:
    """Messages, or the attributes in one: each begins with its length and its kind, and is padded to 4 bytes."""
    at = 0
    while at < len(data):
        if at + header.size > len(data):
            raise SockDiagError(f"{len(data) - at} bytes are left over")
        length, kind, *_ = header.unpack_from(data, at)
        if not header.size <= length <= len(data) - at:
            raise SockDiagError(f"a part of {length} bytes where {len(data) - at} are left")
        yield kind, data[at + header.size : at + length]
        at += (length + 3) & ~3


def _socket(body: bytes) -> TcpSocket | None:
    """A connection; None where its kernel tells nothing of it, because it is about to go."""
    if len(body) < MESSAGE.size:
        raise SockDiagError(f"a connection of {len(body)} bytes")
    family, _state, _, _, sport, dport, source, destination, inode = MESSAGE.unpack_from(body)
    info = next(
        (part for kind, part in _parts(body[MESSAGE.size :], ATTRIBUTE) if kind == INET_DIAG_INFO), None
    )
    if info is None:
        return None
    if len(info) < INFO.size:
        raise SockDiagError(f"tcp_info of {len(info)} bytes: Linux 4.9 or newer is needed")
    flags, idle, trip, acknowledged, least, rate = INFO.unpack_from(info)
    return TcpSocket(
        local=_address(family, source, sport),
        remote=_address(family, destination, dport),
        inode=inode,
        round_trip_seconds=trip / 1e6 or None,
        least_round_trip_seconds=None if least in (0, NO_ROUND_TRIP) else least / 1e6,
        delivery_bytes_per_second=float(rate) or None,
        app_limited=bool(flags & APP_LIMITED),
        acknowledged_bytes=acknowledged,
        idle_seconds=idle / 1e3,
    )


def _address(family: int, address: bytes, port: bytes) -> str:
    number = int.from_bytes(port, "big")
    if family == socket.AF_INET:
        return f"{socket.inet_ntop(socket.AF_INET, address[:4])}:{number}"
    if address.startswith(bytes(10) + b"\xff\xff"):
        return f"{socket.inet_ntop(socket.AF_INET, address[12:])}:{number}"
    return f"[{socket.inet_ntop(socket.AF_INET6, address)}]:{number}"


def established() -> list[TcpSocket]:
    """All established TCP connections of this network namespace, now.

    Raises:
        SockDiagError: there is no such interface, or it does not answer.
    """
    found: list[TcpSocket] = []
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
            kernel.settimeout(ANSWER_SECONDS)
            for family in (socket.AF_INET, socket.AF_INET6):
                body = REQUEST.pack(
                    family, socket.IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 1 << TCP_ESTABLISHED
                )
                header = (HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
                kernel.send(HEADER.pack(*header) + body)
                last = False
                while not last:
                    some, last = parse_messages(kernel.recv(ANSWER_BYTES))
                    found += some
    except OSError as error:
        raise SockDiagError(f"sock_diag: {error}") from error
    return found
