"""The OpenAI endpoint as an aiohttp application."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from splitinfer.segment_runtime.api.errors import ApiError, internal, invalid, of_generation
from splitinfer.segment_runtime.api.jobs import Job, chat_job, completion_job
from splitinfer.segment_runtime.api.logs import describe
from splitinfer.segment_runtime.api.metrics import ApiMetrics
from splitinfer.segment_runtime.api.requests import GenerateRequest, parse_chat, parse_completion
from splitinfer.segment_runtime.api.run import Run
from splitinfer.segment_runtime.api.shapes import (
    ChatShape,
    CompletionShape,
    Envelope,
    FinishedChoice,
    Shape,
    usage_of,
)
from splitinfer.segment_runtime.api.stream import CLIENT_GONE, OUTCOME, encode_json, send_stream
from splitinfer.segment_runtime.entry.generate import GenerationError, Generator
from splitinfer.segment_runtime.text.codec import TextCodec

log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ENDPOINTS = {
    "/v1/models": "models",
    "/v1/models/{model}": "models",
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat.completions",
}
R = TypeVar("R", bound=GenerateRequest)
# Above this many bytes a body is parsed in a thread.
_INLINE_BODY = 64 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take.

    Attributes:
        body_bytes: of a request; a larger one is a 413 before it is read.
        choices: n times the number of prompts.
        stall_seconds: how long a client may take nothing of its stream.
    """

    body_bytes: int = 4 * 1024 * 1024
    choices: int = 16
    stall_seconds: float = 60.0


def create_app(
    generator: Generator,
    codec: TextCodec,
    *,
    registry: CollectorRegistry,
    limits: Limits | None = None,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
    entropy: Callable[[int], bytes] = os.urandom,
) -> web.Application:
    """Build the application; serve it with `server.start`, which lets a client that goes away cancel its handler.

    Args:
        generator: the pipeline.
        codec: text of the model it serves.
        registry: where metrics are registered, and what ``/metrics`` shows: the pipeline's own, too.
        limits: of one request.
        clock: monotonic, for TTFT and TPOT.
        now: wall clock, for ``created``.
        entropy: of ids, and of seeds where a request has none.
    """
    limits = limits or Limits()
    api = Api(generator, codec, ApiMetrics(registry), limits, clock, now, entropy)
    app = web.Application(middlewares=[api.answer_errors], client_max_size=limits.body_bytes)
    app.router.add_get("/health", api.health)
    app.router.add_get("/ready", api.ready)
    app.router.add_get("/metrics", api.exposition)
    app.router.add_get("/v1/models", api.models)
    app.router.add_get("/v1/models/{model}", api.model)
    app.router.add_post("/v1/completions", api.completions)
    app.router.add_post("/v1/chat/completions", api.chat)
    return app


class Api:
    """The handlers."""

    def __init__(
        self,
        generator: Generator,
        codec: TextCodec,
        metrics: ApiMetrics,
        limits: Limits,
        clock: Callable[[], float],
        now: Callable[[], float],
        entropy: Callable[[int], bytes],
    ) -> None:
        """As `create_app`."""
        self._generator = generator
        self._codec = codec
        self._metrics = metrics
        self._limits = limits
        self._clock = clock
        self._now = now
        self._entropy = entropy
        self._created = int(now())

    async def health(self, _request: web.Request) -> web.Response:
        """Live: the loop turns."""
        return _json({"status": "ok"})

    async def ready(self, _request: web.Request) -> web.Response:
        """Ready: a whole pipeline answers."""
        if self._generator.ready():
            return _json({"status": "ready"})
        return _json({"status": "not ready"}, status=503, headers={"Retry-After": "1"})

    async def exposition(self, request: web.Request) -> web.Response:
        """Prometheus, in the format that the scraper accepts."""
        encode, content_type = choose_encoder(request.headers.get(hdrs.ACCEPT, ""))
        return web.Response(body=encode(self._metrics.registry), headers={hdrs.CONTENT_TYPE: content_type})

    async def models(self, _request: web.Request) -> web.Response:
        """The one model."""
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: web.Request) -> web.Response:
        """The model by its name."""
        self._check_model(request.match_info["model"])
        return _json(self._model())

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/completions``."""
        started = self._clock()
        parsed = await self._parse(request, parse_completion)
        self._check_model(parsed.model)
        job = await completion_job(
            parsed, self._codec, self._generator.max_context_tokens, self._limits.choices, self._entropy
        )
        shape = CompletionShape(
            self._envelope("cmpl", parsed), self._codec, logprobs=parsed.logprobs is not None
        )
        return await self._generate(request, parsed, job, shape, "prompt", started)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/chat/completions``."""
        started = self._clock()
        parsed = await self._parse(request, parse_chat)
        self._check_model(parsed.model)
        job = await chat_job(
            parsed, self._codec, self._generator.max_context_tokens, self._limits.choices, self._entropy
        )
        shape = ChatShape(self._envelope("chatcmpl", parsed), self._codec, logprobs=parsed.logprobs)
        return await self._generate(request, parsed, job, shape, "messages", started)

    async def _generate(
        self,
        request: web.Request,
        parsed: GenerateRequest,
        job: Job,
        shape: Shape,
        param: str,
        started: float,
    ) -> web.StreamResponse:
        run = Run(job, self._generator, self._codec, self._metrics, self._clock, started)
        count = len(job.requests)
        try:
            async with run:
                if parsed.stream:
                    return await send_stream(request, run, count, shape, param, self._limits.stall_seconds)
                collected: list[list[Any]] = [[] for _ in range(count)]
                await run.drive(lambda index, increment: collected[index].append(increment))
        except GenerationError as error:
            failure = of_generation(error, param)
            if failure.status >= 500:
                log.warning("request failed", code=failure.code, error=describe(error))
            raise failure from error
        finished = [FinishedChoice.of(increments) for increments in collected]
        return _json(shape.whole(finished, usage_of(run.prompt_tokens, run.completion_tokens)))

    async def _parse(self, request: web.Request, parse: Callable[[bytes], R]) -> R:
        if request.content_type != "application/json":
            raise invalid(None, "The Content-Type must be application/json.", "invalid_content_type")
        if (request.charset or "utf-8").lower().replace("-", "") != "utf8":
            raise invalid(None, "The charset of a JSON body must be UTF-8.", "invalid_content_type")
        encoding = request.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise invalid(
                None,
                f"The Content-Encoding {encoding!r} is not taken; send the body as it is.",
                "invalid_content_encoding",
            )
        limit = self._limits.body_bytes
        if request.content_length is not None and request.content_length > limit:
            raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=request.content_length)
        try:
            body = await request.read()
        except web.RequestPayloadError as error:
            raise invalid(None, f"The body cannot be read: {error}.", "invalid_body") from error
        if len(body) <= _INLINE_BODY:
            return parse(body)
        return await asyncio.to_thread(parse, body)

    def _check_model(self, name: str) -> None:
        served = self._generator.model_name
        if name != served:
            raise ApiError(
                404,
                f"The model '{name}' does not exist; served is '{served}'.",
                param="model",
                code="model_not_found",
            )

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._generator.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "splitinfer",
            "max_model_len": self._generator.max_context_tokens,
        }

    def _envelope(self, prefix: str, parsed: GenerateRequest) -> Envelope:
        return Envelope(
            id=f"{prefix}-{self._entropy(16).hex()}",
            created=int(self._now()),
            model=self._generator.model_name,
            system_fingerprint=self._generator.system_fingerprint,
            include_usage=parsed.include_usage,
        )

    @web.middleware
    async def answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Give every error OpenAI's shape, and count every request of the API."""
        outcome = CLIENT_GONE
        try:
            response = await self._guarded(request, handler)
            outcome = response.status
            return response
        finally:
            resource = request.match_info.route.resource
            endpoint = ENDPOINTS.get(resource.canonical) if resource is not None else None
            if endpoint is not None:
                self._metrics.requests.labels(endpoint, str(request.get(OUTCOME, outcome))).inc()

    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ApiError as error:
            failure = error
        except web.HTTPException as error:
            failure = _of_http(error, request, self._limits)
        except ConnectionResetError:
            raise  # nobody is there to be answered
        except Exception as error:  # noqa: BLE001 - answered as a 500, and logged
            log.error("request failed", error=describe(error))
            failure = internal()
        return _json(failure.body(), status=failure.status, headers=dict(failure.headers()))


def _of_http(error: web.HTTPException, request: web.Request, limits: Limits) -> ApiError:
    """Errors of aiohttp itself: no such path, wrong method, a body over the limit."""
    match error.status:
        case 404:
            return ApiError(404, f"Unknown path: {request.method} {request.path}.", code="unknown_url")
        case 405:
            return ApiError(
                405, f"{request.method} is not allowed on {request.path}.", code="method_not_allowed"
            )
        case 413:
            return ApiError(
                413,
                f"The body is larger than {limits.body_bytes} bytes; shorten it.",
                code="request_too_large",
            )
    return ApiError(error.status, error.reason)


def _json(body: dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=encode_json(body), status=status, headers=headers, content_type="application/json"
    )
