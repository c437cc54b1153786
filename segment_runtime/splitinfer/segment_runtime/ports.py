"""Taking the port of a gRPC server, for hosts and the entry alike, or saying in one line why not."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

import grpc

from splitinfer.segment_runtime.process import parse_address


def bind(server: grpc.aio.Server, address: str, field: str) -> tuple[str, int]:
    """Have ``server`` listen on ``address``; gives the host, and the port it got.

    gRPC names no reason to the caller, but writes it to stderr from its core. So a socket of our own asks first.

    Raises:
        ValueError: not host:port, or it cannot be bound; names ``field``.
    """
    host, port = parse_address(address, field)
    try:
        _ask(host, port)
    except UnicodeError:  # no name at all: two dots in a row, a part of more than 63 characters
        raise ValueError(
            f"{field}: {address}: {host} is not a host name; give an address of this machine"
        ) from None
    except OSError as error:
        mend = (
            "choose a free port, or 0"
            if error.errno in (errno.EADDRINUSE, errno.EACCES)
            else "give an address of this machine"
        )
        raise ValueError(f"{field}: {address} cannot be bound ({error.strerror}); {mend}") from None
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        bound = 0
    if not bound:  # taken since it was asked for
        raise ValueError(f"{field}: {address} cannot be bound; choose a free port, or 0")
    return host, bound


def _ask(host: str, port: int) -> None:
    """Bind as gRPC is about to, and let go again. Raises OSError.

    A name may stand for several addresses. gRPC is content with any of them; here one that another process listens on
    is enough for a no, or the two would share the name, and who connects would meet one or the other.
    """
    found = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
    )
    refusals: list[OSError] = []
    for family, kind, protocol, _, place in found:
        try:
            with socket.socket(family, kind, protocol) as asked:
                # As gRPC: what an ended process left in TIME_WAIT does not count. Not SO_REUSEPORT: what listens does.
                asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                asked.bind(place)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
            refusals.append(error)
    if len(refusals) == len(found):
        raise refusals[0]


def is_wildcard(host: str) -> bool:
    """Whether a host is an address to bind to that nobody can connect to from elsewhere."""
    try:
        return ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False  # a name
