"""Asking the agents themselves, without a Prometheus server: the source of the local substrate.

As a server would, it remembers what an agent said last: one that does not answer once is not unknown at once, it grows old.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import httpx

from splitinfer.profiler.answers import Sample
from splitinfer.profiler.exposition import ExpositionError, parse_exposition
from splitinfer.profiler.sources import Gathered, SourceError

MAX_BODY_BYTES = 8 << 20
"""An agent that measures a thousand links says less than one tenth of it."""
AT_A_TIME = 32


@dataclass(frozen=True, slots=True)
class _Kept:
    """Samples of one agent, and when they were asked for, on the monotonic clock."""

    samples: tuple[Sample, ...]
    asked_at: float


class AgentsSource:
    """Agents by the addresses of their metrics. An async context manager."""

    def __init__(
        self,
        addresses: Callable[[], Sequence[str]],
        window_seconds: float,
        timeout_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Nothing is sent yet.

        Args:
            addresses: ``host:port`` of each agent's metrics, asked anew each time because agents come and go.
            window_seconds: how long what an agent said is remembered.
            timeout_seconds: of a whole answer.
            clock: monotonic; ages are told by it.
            wall: seconds since the epoch; looked at once, to date what is gathered from then on.
        """
        self._addresses = addresses
        self._window = window_seconds
        self._timeout = timeout_seconds
        self._clock = clock
        self._epoch = wall() - clock()
        self._kept: dict[str, _Kept] = {}
        self._limit = asyncio.Semaphore(AT_A_TIME)
        # Addresses are those of agents; a proxy of the environment has no part in it, nor has a redirect.
        self._client = httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=timeout_seconds)

    async def __aenter__(self) -> AgentsSource:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def gather(self) -> Gathered:
        """What each agent says, or said last. Raises SourceError where none answers."""
        addresses = tuple(dict.fromkeys(self._addresses()))
        answers = await asyncio.gather(*(self._ask(address) for address in addresses))
        failures: dict[str, str] = {}
        for address, answer in zip(addresses, answers, strict=True):
            if isinstance(answer, str):
                failures[address] = answer
            else:
                self._kept[address] = answer
        if addresses and len(failures) == len(addresses):
            raise SourceError(f"no agent answers: {addresses[0]}: {failures[addresses[0]]}")
        now = self._clock()
        dated = self._epoch + now
        self._kept = {
            address: kept
            for address, kept in self._kept.items()
            if address in addresses and now - kept.asked_at <= self._window
        }
        samples = tuple(
            replace(sample, at_seconds=self._epoch + kept.asked_at)
            for kept in self._kept.values()
            for sample in kept.samples
        )
        return Gathered(samples, dated, failures)

    async def _ask(self, address: str) -> _Kept | str:
        async with self._limit:
            asked_at = self._clock()
            try:
                async with (
                    asyncio.timeout(self._timeout),
                    self._client.stream("GET", f"http://{address}/metrics") as response,
                ):
                    body = b""
                    async for part in response.aiter_bytes():
                        body += part
                        if len(body) > MAX_BODY_BYTES:
                            return f"says more than {MAX_BODY_BYTES >> 20} MiB"
            except (TimeoutError, httpx.TimeoutException):
                return f"no answer in {self._timeout:g} s"
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                return str(error) or type(error).__name__
        if response.status_code != 200:
            return f"{response.status_code} instead of metrics"
        try:
            samples = parse_exposition(body, address, 0.0)
        except ExpositionError as error:
            return str(error)
        return _Kept(samples, asked_at) if samples else "says nothing of any node; is it an agent?"
