"""Asking a server over HTTP: what it says, what it is told of us, and what happens when it does not answer well."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from splitinfer.profiler import prometheus
from splitinfer.profiler.answers import Sample
from splitinfer.profiler.prometheus import HttpConfigError, Prometheus, PrometheusError, http_config

MATRIX = '{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"__name__":"m","node":"a"},"values":[[5,"2"]]}]}}'
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """A server whose answer the test chooses; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[web.Request] = []
        self.forms: list[dict[str, Any]] = []
        self.handler: Handler | None = None
        self.url = ""

    async def query(self, request: web.Request) -> web.StreamResponse:
        """``/api/v1/query``."""
        self.asked.append(request)
        self.forms.append(dict(await request.post()))
        if self.handler is not None:
            return await self.handler(request)
        return web.Response(text=MATRIX, content_type="application/json")


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """It listens."""
    served = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", served.query)
    async with TestServer(app) as running:
        served.url = str(running.make_url(""))
        yield served


async def ask(url: str, **config: Any) -> tuple[Sample, ...]:
    """One query."""
    async with Prometheus(url, http_config(config)) as client:
        return await client.samples("m[2m]")


async def test_a_query_goes_to_the_api_and_its_samples_come_back(server: Server) -> None:
    """Below a path too, as behind a proxy; a query of any length goes in the body."""
    assert await ask(f"{server.url}/prom/") == (Sample("m", {"node": "a"}, 2.0, 5.0),)
    assert [request.path for request in server.asked] == ["/prom/api/v1/query"]
    assert server.forms == [{"query": "m[2m]", "timeout": "10s"}]
    assert "Authorization" not in server.asked[0].headers


async def test_credentials_are_sent_as_they_are_now(server: Server, tmp_path: Path) -> None:
    """A token file is renewed in place: each query has what it holds then."""
    token = tmp_path / "token"
    token.write_text("first\n")
    config = http_config({"authorization": {"credentials_file": str(token)}})
    async with Prometheus(server.url, config) as client:
        await client.samples("m[2m]")
        token.write_text("second")
        await client.samples("m[2m]")
        token.unlink()
        with pytest.raises(PrometheusError, match="the credentials cannot be read"):
            await client.samples("m[2m]")
    await ask(server.url, basic_auth={"username": "u", "password": "p:w"})
    said = [request.headers["Authorization"] for request in server.asked]
    assert said[:2] == ["Bearer first", "Bearer second"]
    assert base64.b64decode(said[2].removeprefix("Basic ")) == b"u:p:w"


async def test_credentials_do_not_follow_a_redirect_to_another_place(server: Server) -> None:
    """Nor is a redirect followed where the settings say so."""
    seen: list[str | None] = []

    async def there(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response(text=MATRIX)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", there)
    async with TestServer(app) as other:

        async def redirect(_request: web.Request) -> web.Response:
            raise web.HTTPTemporaryRedirect(str(other.make_url("/api/v1/query")))

        server.handler = redirect
        await ask(server.url, authorization={"credentials": "secret"})
        assert seen == [None]
        with pytest.raises(PrometheusError, match="307 instead of an answer"):
            await ask(server.url, follow_redirects=False)
        assert seen == [None]


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (401, "no", "401: it wants other credentials"),
        (502, "<html>", "502 instead of an answer"),
        (400, '{"status":"error","errorType":"bad_data","error":"parse"}', "bad_data: parse"),
        (200, "<html>", "Invalid JSON"),
        (200, MATRIX[:-3], "Invalid JSON"),
    ],
)
async def test_an_answer_that_is_none_is_an_error_that_names_the_server(
    server: Server, status: int, text: str, said: str
) -> None:
    """Never an empty list of samples: that would look like nodes that are gone."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, text=text)

    server.handler = answer
    with pytest.raises(PrometheusError) as caught:
        await ask(server.url)
    assert said in str(caught.value)
    assert server.url.rstrip("/") in str(caught.value)


async def test_a_server_that_is_slow_drips_or_is_not_there_is_given_up(
    server: Server, unused_tcp_port: int
) -> None:
    """The time is that of the whole query, so that one byte now and then does not keep it open."""
    held = asyncio.Event()

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while not held.is_set():
            await response.write(b" ")
            await asyncio.sleep(0.05)
        return response

    server.handler = drip
    with pytest.raises(PrometheusError, match=r"no answer in 0\.5 s"):
        await ask(server.url, timeout_seconds=0.5)
    held.set()
    with pytest.raises(PrometheusError, match=f":{unused_tcp_port}"):
        await ask(f"http://127.0.0.1:{unused_tcp_port}")


async def test_an_answer_without_end_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not gathered first and refused then."""
    monkeypatch.setattr(prometheus, "MAX_ANSWER_BYTES", 1 << 20)

    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:  # until the client leaves
            await response.write(bytes(1 << 16))

    server.handler = flood
    with pytest.raises(PrometheusError, match="larger than 1 MiB"):
        await ask(server.url)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"oauth2": {}}, "oauth2: is not honoured here"),
        ({"tls_config": {"min_version": "TLS13"}}, "tls_config.min_version: is not honoured here"),
        ({"basic_auth": {"username": "u"}}, "basic_auth: give password or password_file"),
        ({"authorization": {"type": "Basic", "credentials": "x"}}, "authorization: type Basic"),
        ({"basic_auth": {"username": "u", "password": "hush"}, "authorization": {"credentials": "x"}}, "not both"),
        ({"tls_config": {"cert_file": "c"}}, "tls_config: cert_file and key_file go together"),
        ({"timeout_seconds": 0}, "timeout_seconds: "),
        ({"tls_config": {"ca_file": "/not/there"}}, "tls_config: "),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_honoured_is_refused_by_name(config: dict[str, Any], said: str) -> None:
    """What is passed over could be what keeps a password on an encrypted connection; and no secret is repeated."""
    with pytest.raises(HttpConfigError) as caught:
        Prometheus("https://127.0.0.1:1", http_config(config))
    assert said in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "prometheus:9090", "ftp://x", "http://", "http://u:p@x", "http://x:port"]
)
def test_a_url_that_cannot_be_asked_is_refused(url: str) -> None:
    """By its field."""
    with pytest.raises(HttpConfigError, match=r"^url: "):
        Prometheus(url, http_config({}))
