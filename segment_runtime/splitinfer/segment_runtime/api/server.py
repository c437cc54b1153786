"""Serving the application on a port."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

_LEAST_PATIENCE = 0.01


class EndpointUnavailable(Exception):
    """The address cannot be listened on."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An application that is being served."""

    runner: web.AppRunner
    host: str
    port: int

    @property
    def url(self) -> str:
        """The base URL for an OpenAI client is this and ``/v1``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def stop(self) -> None:
        """Stop listening, let running requests finish for ``drain_seconds``, then cancel them."""
        await self.runner.cleanup()


async def start(app: web.Application, host: str, port: int, *, drain_seconds: float = 10.0) -> Endpoint:
    """Listen; port 0 takes a free one.

    handler_cancellation is what frees the session of a client that goes away, streaming or not.

    Raises:
        EndpointUnavailable: the port is in use, or the host is not one of this machine.
    """
    # aiohttp waits this long twice, before it breaks off reading a body and before it cancels; 0 would be forever.
    patience = max(drain_seconds / 2, _LEAST_PATIENCE)
    # Nothing is inflated: a few megabytes can hold gigabytes, and what is left of a refused body is read to its end on
    # this loop, where all streams wait for it. The application refuses a body that is encoded.
    runner = web.AppRunner(
        app, handler_cancellation=True, access_log=None, shutdown_timeout=patience, auto_decompress=False
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise EndpointUnavailable(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another host or port"
        ) from error
    return Endpoint(runner, host, runner.addresses[0][1])
