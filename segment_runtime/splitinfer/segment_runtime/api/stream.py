"""Server-sent events: a run written to a client as it comes, at the client's pace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import structlog
from aiohttp import web

from splitinfer.segment_runtime.api.choice import Increment
from splitinfer.segment_runtime.api.errors import ApiError, internal, of_generation
from splitinfer.segment_runtime.api.logs import describe
from splitinfer.segment_runtime.api.run import Run
from splitinfer.segment_runtime.api.shapes import Shape, usage_of
from splitinfer.segment_runtime.entry.generate import GenerationError

log = structlog.get_logger(__name__)

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # a proxy in front must not gather events
}
OUTCOME: web.RequestKey[int] = web.RequestKey("outcome", int)
"""What a stream came to once the client has its end; its status was sent long before."""
CLIENT_GONE = 499
_DONE = b"data: [DONE]\n\n"


class ClientStalled(Exception):
    """The client has read nothing for too long."""


async def send_stream(
    request: web.Request, run: Run, choices: int, shape: Shape, param: str, stall_seconds: float
) -> web.StreamResponse:
    """Write an admitted run as events.

    The pipeline is followed at its own pace into a queue that max_tokens bounds, so a slow reader holds no session;
    what waits in the queue goes out in one write. A client that takes nothing for ``stall_seconds`` is let go.
    """
    response = web.StreamResponse(headers=HEADERS)
    await response.prepare(request)
    queue: asyncio.Queue[tuple[int, Increment] | None] = asyncio.Queue()
    driver = asyncio.create_task(run.drive(lambda index, increment: queue.put_nowait((index, increment))))
    driver.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        opening = [chunk for index in range(choices) for chunk in shape.opening(index)]
        await _write(response, _events(opening), stall_seconds)
        ended = False
        while not ended:
            items = [await queue.get()]
            while not queue.empty():
                items.append(queue.get_nowait())
            ended = items[-1] is None
            chunks = [chunk for item in items if item is not None for chunk in shape.chunks(*item)]
            await _write(response, _events(chunks), stall_seconds)
        last, outcome = await _last_events(driver, run, shape, param)
        await _write(response, last, stall_seconds)
        # At once: a client that has all of it may close, and cancel this handler, before it comes to its end.
        request[OUTCOME] = outcome
        await response.write_eof()
    except (ConnectionResetError, ClientStalled) as error:
        if OUTCOME in request:
            return response
        request[OUTCOME] = CLIENT_GONE
        log.info("stream abandoned", reason=str(error) or type(error).__name__)
        if request.transport is not None:
            request.transport.abort()  # what is buffered will not be read
    finally:
        driver.cancel()
        # Its errors were told above, or there is nobody to tell.
        await asyncio.wait([driver])
        if not driver.cancelled():
            driver.exception()
    return response


async def _last_events(driver: asyncio.Task[None], run: Run, shape: Shape, param: str) -> tuple[bytes, int]:
    """Usage and DONE, or the error: its status was sent, so it goes into the stream, without DONE; and what it came to."""
    try:
        await driver
    except GenerationError as error:
        failure = of_generation(error, param)
        log.error("stream failed", code=failure.code, error=describe(error))
    except Exception as error:  # noqa: BLE001 - told to the client as an event, and logged
        failure = internal()
        log.error("stream failed", error=describe(error))
    else:
        ending = []
        if shape.envelope.include_usage:
            ending.append(shape.usage(usage_of(run.prompt_tokens, run.completion_tokens)))
        return _events(ending) + _DONE, 200
    return _failed(failure), failure.status


def _failed(failure: ApiError) -> bytes:
    return _events([failure.body()])


def _events(chunks: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(b"data: " + encode_json(chunk) + b"\n\n" for chunk in chunks)


def encode_json(body: dict[str, Any]) -> bytes:
    """Compact UTF-8. JSON escapes line breaks, so an event is one line."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


async def _write(response: web.StreamResponse, data: bytes, stall_seconds: float) -> None:
    if not data:
        return
    try:
        async with asyncio.timeout(stall_seconds):
            await response.write(data)
    except TimeoutError:
        raise ClientStalled(f"the client read nothing for {stall_seconds:g} s") from None
