"""Clients that go away, read slowly or crowd in, over raw sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from typing import Any

import pytest
from aiohttp import web

from splitinfer.segment_runtime.api import stream as stream_module
from splitinfer.segment_runtime.api.app import Limits
from splitinfer.segment_runtime.text.codec import TextCodec
from tests.support.fake_generator import FakeGenerator
from tests.support.serving import Served, served, within_a_second
from tests.support.tiny_text import tiny_codec
from tests.support.waiting import until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}

REQUESTS = "splitinfer_entry_requests_total"


def raw_request(body: dict[str, Any]) -> bytes:
    """A chat request on the wire."""
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def connect(api: Served, body: dict[str, Any], *, receive_buffer: int | None = None) -> socket.socket:
    """Send a request over a socket of our own, and read nothing."""
    loop = asyncio.get_running_loop()
    connection = socket.socket()
    connection.setblocking(False)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await loop.sock_connect(connection, (api.endpoint.host, api.endpoint.port))
    await loop.sock_sendall(connection, raw_request(body))
    return connection


async def admitted(api: Served, count: int = 1) -> None:
    """Wait until the sessions are there and wait at the gate."""
    await api.generator.admitted(count)
    async with asyncio.timeout(5):
        for stream in api.generator.streams:
            await stream.waiting.wait()


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("pause_after", [0, 3], ids=["before_the_first_token", "midway"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_client_that_goes_away_frees_its_sessions_within_a_second(
    api: Served, stream: bool, pause_after: int, reset: bool
) -> None:
    """Whether it closes or resets, streams or waits, has seen tokens or not: all its sessions are closed."""
    api.generator.pause_after = pause_after
    connection = await connect(api, CHAT | {"stream": stream, "n": 3})
    await admitted(api, 3)
    assert api.generator.open_sessions == 3
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    await within_a_second(*(session.ended for session in api.generator.streams))
    assert api.generator.open_sessions == 0
    api.generator.gate.set()
    assert (await api.post("chat/completions", CHAT)).status_code == 200
    assert api.metric("splitinfer_entry_requests_total", endpoint="chat.completions", code="499") == 1


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_a_client_that_has_all_of_a_stream_and_closes_is_not_one_that_went_away(
    api: Served, reset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has ``[DONE]`` before the server is done with the request: what it got is counted, not how soon it left."""
    cancelled = asyncio.Event()

    async def held(*_: object) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    monkeypatch.setattr(web.StreamResponse, "write_eof", held)
    connection = await connect(api, CHAT | {"stream": True})
    reader, writer = await asyncio.open_connection(sock=connection)
    await reader.readuntil(b"data: [DONE]\n\n")
    if reset:
        writer.transport.abort()
    writer.close()
    await within_a_second(cancelled)

    def counted() -> list[float]:
        return [api.metric(REQUESTS, endpoint="chat.completions", code=code) for code in ("200", "499")]

    await asyncio.to_thread(until, lambda: any(counted()), seconds=5, what="the request to be counted")
    assert counted() == [1, 0]


async def test_a_client_that_goes_away_while_its_body_arrives_is_nothing(api: Served) -> None:
    """Half a request, then silence for good: no session, and the next one is served."""
    reader, writer = await asyncio.open_connection(api.endpoint.host, api.endpoint.port)
    writer.write(raw_request(CHAT)[:-5])
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert reader.at_eof() or not await reader.read()
    assert (await api.post("chat/completions", CHAT)).status_code == 200
    assert len(api.generator.streams) == 1


def much(tokens: int) -> FakeGenerator:
    """A pipeline with long answers."""
    return FakeGenerator(lambda request: [100] * request.max_tokens, max_context_tokens=tokens)


async def test_a_slow_reader_holds_no_session_and_stalls_nobody() -> None:
    """A client that reads nothing: its generation ends at the pipeline's pace, others are served, and it can read later.

    What waits for it is bounded by max_tokens, and it gets every token in the end.
    """
    async with served(much(20_000), tiny_codec()) as api:
        connection = await connect(api, CHAT | {"stream": True, "max_tokens": 15_000}, receive_buffer=4096)
        async with asyncio.timeout(20):
            await api.generator.admitted()
            await api.generator.streams[0].ended.wait()
        assert api.generator.streams[0].given == 15_000
        other = await api.post("chat/completions", CHAT | {"max_tokens": 5})
        assert other.json()["usage"]["completion_tokens"] == 5
        reader, writer = await asyncio.open_connection(sock=connection, limit=1 << 24)
        async with asyncio.timeout(30):
            await reader.readuntil(b"\r\n\r\n")
            received = await reader.readuntil(b"data: [DONE]\n\n")
        assert received.count(b'"content":"') == 15_001
        writer.close()


async def test_a_client_that_never_reads_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the stall limit its connection is aborted, and it is logged and counted as gone."""
    abandoned = asyncio.Event()

    class Log:
        def info(self, event: str, *, reason: str) -> None:
            assert (event, reason) == ("stream abandoned", "the client read nothing for 0.2 s")
            abandoned.set()

    monkeypatch.setattr(stream_module, "log", Log())
    async with served(much(20_000), tiny_codec(), Limits(stall_seconds=0.2)) as api:
        connection = await connect(api, CHAT | {"stream": True, "max_tokens": 15_000}, receive_buffer=4096)
        async with asyncio.timeout(20):
            await abandoned.wait()
        reader, writer = await asyncio.open_connection(sock=connection)
        assert b"[DONE]" not in await reader.read()
        assert api.generator.open_sessions == 0
        assert (await api.post("chat/completions", CHAT | {"max_tokens": 1})).status_code == 200
        assert api.metric("splitinfer_entry_requests_total", endpoint="chat.completions", code="499") == 1
        writer.close()


async def test_an_announced_length_over_the_limit_is_refused_before_the_body(api: Served) -> None:
    """The head alone says 10 MB: the 413 comes while not one byte of the body was sent."""
    reader, writer = await asyncio.open_connection(api.endpoint.host, api.endpoint.port)
    writer.write(raw_request(CHAT | {"user": "x" * 10_000_000}).partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    async with asyncio.timeout(5):
        assert (await reader.readline()).split()[1] == b"413"
    writer.close()


async def test_a_keep_alive_connection_serves_one_request_after_another(api: Served) -> None:
    """A stream ends its response and not its connection; an error does not either."""
    reader, writer = await asyncio.open_connection(api.endpoint.host, api.endpoint.port)
    for body, status, end in (
        (CHAT | {"stream": True}, b"200", b"data: [DONE]\n\n\r\n0\r\n\r\n"),
        (CHAT | {"n": 0}, b"400", b'"code":"invalid_value"}}'),
        (CHAT | {"stream": True}, b"200", b"data: [DONE]\n\n\r\n0\r\n\r\n"),
    ):
        writer.write(raw_request(body))
        assert (await reader.readline()).split()[1] == status
        await reader.readuntil(end)
    writer.close()


@pytest.mark.parametrize("kind", ["stream", "whole", "body"])
async def test_a_stop_ends_what_does_not_end_by_itself(api: Served, kind: str) -> None:
    """Neither a request that runs on nor a body that never comes holds up a stop; the sessions are freed."""
    api.generator.pause_after = 1
    request = raw_request(CHAT | {"stream": kind == "stream"})
    reader, writer = await asyncio.open_connection(api.endpoint.host, api.endpoint.port)
    writer.write(request[:-3] if kind == "body" else request)
    await (api.http.get("/health") if kind == "body" else admitted(api))
    async with asyncio.timeout(5):
        await api.endpoint.stop()
        await within_a_second(*(session.ended for session in api.generator.streams))
        assert b"[DONE]" not in await reader.read()
    assert api.generator.open_sessions == 0
    writer.close()


async def is_listening(api: Served) -> bool:
    """Whether a new connection is taken."""
    try:
        _, writer = await asyncio.open_connection(api.endpoint.host, api.endpoint.port)
    except ConnectionError:
        return False
    writer.close()
    return True


async def test_a_stop_lets_a_running_request_finish(generator: FakeGenerator, codec: TextCodec) -> None:
    """Within the drain time an answer that is under way is given whole, and no new connection is taken."""
    generator.pause_after = 1
    async with served(generator, codec, drain_seconds=20) as api:
        reader, writer = await asyncio.open_connection(api.endpoint.host, api.endpoint.port)
        writer.write(raw_request(CHAT | {"stream": True}))
        await admitted(api)
        stop = asyncio.create_task(api.endpoint.stop())
        async with asyncio.timeout(5):
            while await is_listening(api):
                pass
        generator.gate.set()
        async with asyncio.timeout(10):
            assert b"data: [DONE]" in await reader.read()
            await stop
        writer.close()


async def test_events_are_server_sent_events(api: Served) -> None:
    """The bytes: the content type, one ``data:`` line of JSON and one empty line per event, DONE last."""
    api.generator.script = lambda _: (*api.codec.encode("a\nb\r\n\u2028c"), 2)
    response = await api.http.post("/v1/chat/completions", json=CHAT | {"stream": True})
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache"
    *events, done, rest = response.content.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert all(event.startswith(b"data: {") and event.count(b"\n") == 0 for event in events)
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(texts) == "a\nb\r\n\u2028c"


async def test_a_long_prompt_is_tokenised_beside_the_loop(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a long prompt is tokenised the loop answers others; a short one is not worth a thread."""
    main, entered, leave = threading.get_ident(), threading.Event(), threading.Event()
    encode = type(api.codec).encode

    def slow(self: Any, text: str, **options: bool) -> tuple[int, ...]:
        if threading.get_ident() != main:
            entered.set()
            assert leave.wait(20)
        return encode(self, text, **options)

    monkeypatch.setattr(type(api.codec), "encode", slow)
    api.generator.max_context_tokens = 100_000
    long = asyncio.create_task(api.post("completions", {"model": "tiny", "prompt": "ab " * 2000}))
    async with asyncio.timeout(10):
        assert await asyncio.to_thread(entered.wait, 5)
        assert (await api.http.get("/health")).status_code == 200
        assert (await api.post("chat/completions", CHAT)).status_code == 200
        leave.set()
        assert (await long).json()["usage"]["prompt_tokens"] == len(encode(api.codec, "ab " * 2000))
