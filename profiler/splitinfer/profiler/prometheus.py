"""Asking a Prometheus server, with the HTTP client settings that Prometheus itself has for its own clients.

Errors
------
PrometheusError           the server cannot be asked, or its answer cannot be used; the message says which, and why
HttpConfigError           a setting that does not exist here, or cannot be honoured; the message names the field
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from splitinfer.profiler.answers import AnswerError, Sample, parse_samples, parse_time

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""An answer that goes on beyond this is given up; what a thousand nodes say of a hundred links each takes half of it."""


class PrometheusError(Exception):
    """Nothing was learned from the server."""


class HttpConfigError(Exception):
    """A setting that does not exist here, or cannot be honoured."""


class _Settings(BaseModel):
    # What is not known here must not be passed over: it may be what keeps a password on an encrypted connection.
    model_config = ConfigDict(frozen=True, extra="forbid")

    def _one_of(self, given: str, file: str) -> Self:
        """For validators: a secret, or the file that has it."""
        if (getattr(self, given) is None) == (getattr(self, file) is None):
            raise ValueError(f"give {given} or {file}")
        return self


class BasicAuth(_Settings):
    """User and password; the file is read anew for each query, as Prometheus does."""

    username: str
    password: str | None = None
    password_file: Path | None = None

    @model_validator(mode="after")
    def _one_password(self) -> BasicAuth:
        return self._one_of("password", "password_file")


class Authorization(_Settings):
    """The Authorization header."""

    type: str = "Bearer"
    credentials: str | None = None
    credentials_file: Path | None = None

    @model_validator(mode="after")
    def _one_credential(self) -> Authorization:
        if self.type.lower() == "basic":
            raise ValueError("type Basic is what basic_auth is for")
        return self._one_of("credentials", "credentials_file")


class TlsConfig(_Settings):
    """Whom to trust, and who we are."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    insecure_skip_verify: bool = False

    @model_validator(mode="after")
    def _pair(self) -> TlsConfig:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        return self


class HttpConfig(_Settings):
    """The part of Prometheus' ``http_config`` that is honoured; anything else is refused by name."""

    basic_auth: BasicAuth | None = None
    authorization: Authorization | None = None
    tls_config: TlsConfig = TlsConfig()
    follow_redirects: bool = True
    proxy_url: str | None = None
    timeout_seconds: Annotated[float, Field(gt=0, le=300)] = 10.0
    """Of a whole query. Prometheus has it outside of ``http_config``."""

    @model_validator(mode="after")
    def _one_identity(self) -> HttpConfig:
        if self.basic_auth is not None and self.authorization is not None:
            raise ValueError("give basic_auth or authorization, not both")
        return self


def http_config(given: Mapping[str, Any]) -> HttpConfig:
    """Settings from a mapping, as a YAML file has them. Raises HttpConfigError."""
    try:
        return HttpConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]  # the input may be a password
        field = ".".join(str(part) for part in first["loc"]) or "http_config"
        said = "is not honoured here; remove it" if first["type"] == "extra_forbidden" else first["msg"]
        raise HttpConfigError(f"{field}: {said.removeprefix('Value error, ')}") from None


class Prometheus:
    """One server. An async context manager."""

    def __init__(self, url: str, config: HttpConfig) -> None:
        """Nothing is sent yet. Raises HttpConfigError for a URL or a file that cannot be used."""
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise HttpConfigError(f"url: {error}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise HttpConfigError("url: http://HOST:PORT or https://HOST:PORT is asked for")
        if parsed.userinfo:
            raise HttpConfigError("url: a password in it would stand in logs; use basic_auth")
        self._url = parsed
        self._config = config
        self._client = httpx.AsyncClient(
            verify=_tls(config.tls_config),
            follow_redirects=config.follow_redirects,
            proxy=config.proxy_url,
            trust_env=False,  # what is not in the settings does not decide where credentials go
            timeout=config.timeout_seconds,
        )

    async def __aenter__(self) -> Prometheus:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def samples(self, query: str, at_seconds: float | None = None) -> tuple[Sample, ...]:
        """The newest sample of every series that a range selector finds, up to a time of the server's clock.

        Raises PrometheusError.
        """
        body = await self._ask(query, at_seconds)
        try:
            return parse_samples(body)
        except AnswerError as error:
            raise PrometheusError(f"{self._url}: {error}") from None

    async def now_seconds(self) -> float:
        """The server's clock: only by this one are its samples old or new. Raises PrometheusError."""
        body = await self._ask("time()")
        try:
            return parse_time(body)
        except AnswerError as error:
            raise PrometheusError(f"{self._url}: {error}") from None

    async def _ask(self, query: str, at_seconds: float | None = None) -> bytes:
        seconds = self._config.timeout_seconds
        where = f"{str(self._url).rstrip('/')}/api/v1/query"
        form = {"query": query, "timeout": f"{max(1, round(seconds))}s"}
        if at_seconds is not None:
            form["time"] = f"{at_seconds:.3f}"
        try:
            async with (
                asyncio.timeout(seconds),  # the client's own is for each part of an answer
                self._client.stream("POST", where, data=form, headers=self._identity()) as response,
            ):
                body = b""
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > MAX_ANSWER_BYTES:
                        raise PrometheusError(
                            f"{self._url}: the answer is larger than {MAX_ANSWER_BYTES >> 20} MiB"
                        )
        except (TimeoutError, httpx.TimeoutException):
            raise PrometheusError(f"{self._url}: no answer in {seconds:g} s") from None
        except httpx.HTTPError as error:
            raise PrometheusError(f"{self._url}: {str(error) or type(error).__name__}") from None
        if response.status_code in (401, 403):
            raise PrometheusError(f"{self._url}: {response.status_code}: it wants other credentials")
        if response.status_code != 200 and not body.startswith(b'{"status"'):
            raise PrometheusError(f"{self._url}: {response.status_code} instead of an answer")
        return body

    def _identity(self) -> dict[str, str]:
        """The Authorization header. Files are read each time, because tokens are renewed in place."""
        basic, token = self._config.basic_auth, self._config.authorization
        if basic is not None:
            password = basic.password if basic.password is not None else _secret(basic.password_file)
            pair = base64.b64encode(f"{basic.username}:{password}".encode())
            return {"Authorization": f"Basic {pair.decode()}"}
        if token is not None:
            credentials = (
                token.credentials if token.credentials is not None else _secret(token.credentials_file)
            )
            return {"Authorization": f"{token.type} {credentials}"}
        return {}


def _secret(path: Path | None) -> str:
    assert path is not None, "one of the two is given"
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PrometheusError(f"{path}: the credentials cannot be read: {error}") from None


def _tls(config: TlsConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
        if config.cert_file is not None and config.key_file is not None:
            context.load_cert_chain(config.cert_file, config.key_file)
    except (OSError, ssl.SSLError) as error:
        raise HttpConfigError(f"tls_config: {error}") from None
    if config.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
