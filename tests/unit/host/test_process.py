"""Addresses on a command line."""

from __future__ import annotations

import pytest

from splitinfer.segment_runtime.process import parse_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        (":7070", ("0.0.0.0", 7070)),
        ("node-a.edge.local:0", ("node-a.edge.local", 0)),
        ("[::1]:7070", ("[::1]", 7070)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, expected: tuple[str, int]) -> None:
    """An IPv6 host keeps its brackets, so that host:port can be put together again."""
    assert parse_address(text, "--listen") == expected


@pytest.mark.parametrize("text", ["", "host", "host:", "host:port", "host:65536", "host:-1", "::1:80"])
def test_anything_else_is_refused_with_the_field(text: str) -> None:
    """The message names the option and the text."""
    with pytest.raises(ValueError, match=r"^--data: ") as caught:
        parse_address(text, "--data")
    assert repr(text) in str(caught.value)
