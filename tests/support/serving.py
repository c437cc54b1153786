"""The real application on a real port, around a fake pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from openai import AsyncOpenAI
from prometheus_client import CollectorRegistry

from splitinfer.segment_runtime.api.app import Limits, create_app
from splitinfer.segment_runtime.api.server import Endpoint, start
from splitinfer.segment_runtime.text.codec import TextCodec
from tests.support.fake_generator import FakeGenerator


@dataclass
class Ticks:
    """A clock that a test turns."""

    now: float = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@dataclass
class Served:
    """A running application and the ways to talk to it."""

    generator: FakeGenerator
    codec: TextCodec
    registry: CollectorRegistry
    clock: Ticks
    endpoint: Endpoint
    openai: Any
    """An AsyncOpenAI, untyped: tests send plain dictionaries, and what its types forbid."""
    http: httpx.AsyncClient
    entropy: list[int] = field(default_factory=list)

    async def post(self, path: str, body: Any) -> httpx.Response:
        """A JSON request under /v1."""
        return await self.http.post(f"/v1/{path}", json=body)

    def metric(self, name: str, **labels: str) -> float:
        """The value of a sample, 0 where there is none."""
        return self.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def served(
    generator: FakeGenerator, codec: TextCodec, limits: Limits | None = None, *, drain_seconds: float = 0
) -> AsyncIterator[Served]:
    """Serve on a free port of the loopback until the block ends."""
    registry, clock, drawn = CollectorRegistry(), Ticks(), list[int]()

    def entropy(count: int) -> bytes:
        drawn.append(count)
        return len(drawn).to_bytes(count)

    app = create_app(
        generator,
        codec,
        registry=registry,
        limits=limits,
        clock=clock,
        now=lambda: 1_700_000_000.9,
        entropy=entropy,
    )
    endpoint = await start(app, "127.0.0.1", 0, drain_seconds=drain_seconds)
    try:
        async with (
            AsyncOpenAI(base_url=f"{endpoint.url}/v1", api_key="none", max_retries=0) as client,
            httpx.AsyncClient(base_url=endpoint.url, timeout=30) as http,
        ):
            yield Served(generator, codec, registry, clock, endpoint, client, http, drawn)
    finally:
        await endpoint.stop()


async def within_a_second(*events: asyncio.Event) -> None:
    """Wait for all; the promise to a client that goes away."""
    async with asyncio.timeout(1):
        for event in events:
            await event.wait()
