"""A small client of the OpenAI endpoint: streams one chat answer, and times it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from splitinfer.operator.errors import CommandFailed

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer.

    Attributes:
        text: what was said.
        tokens: tokens of it, as the endpoint counts them.
        ttft_seconds: from the request to the first piece of text.
        decode_seconds: from the first piece to the last.
        finish: why it ended: ``stop`` or ``length``.
    """

    text: str
    tokens: int
    ttft_seconds: float
    decode_seconds: float
    finish: str

    @property
    def summary(self) -> str:
        """One line: time to first token, tokens per second."""
        rate = (
            (self.tokens - 1) / self.decode_seconds if self.tokens > 1 and self.decode_seconds > 0 else None
        )
        speed = f", {rate:.1f} tokens/s" if rate is not None else ""
        cut = ", cut at the token limit" if self.finish == "length" else ""
        return f"first token after {self.ttft_seconds * 1000:.0f} ms, {self.tokens} tokens{speed}{cut}"


def events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The JSON payloads of a server-sent event stream, up to ``[DONE]``.

    Raises:
        CommandFailed: a payload that is not JSON, or an error that the server sent.
    """
    for line in lines:
        if not line.startswith("data:"):
            continue
        payload = line[5:].strip()
        if payload == "[DONE]":
            return
        try:
            event = json.loads(payload)
        except ValueError:
            raise CommandFailed(f"the endpoint sent what is not JSON: {payload[:200]}") from None
        if not isinstance(event, dict):
            raise CommandFailed(f"the endpoint sent what is not an object: {payload[:200]}")
        if "error" in event:
            raise CommandFailed(f"the answer broke off: {_reason(event)}")
        yield event


class ChatClient:
    """Talks to one endpoint."""

    def __init__(self, endpoint: str, transport: httpx.BaseTransport | None = None) -> None:
        """``endpoint`` with or without ``/v1``; ``transport`` is for tests."""
        self.endpoint = endpoint.rstrip("/").removesuffix("/v1")
        # A slow machine may take long for a token; only connecting must be quick.
        self._http = httpx.Client(
            base_url=self.endpoint,
            timeout=httpx.Timeout(600.0, connect=5.0),
            transport=transport,
            # No proxy to this very machine.
            trust_env=urlsplit(self.endpoint).hostname not in ("127.0.0.1", "localhost", "::1"),
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def model(self) -> str:
        """The name of the model that is served. Raises CommandFailed."""
        try:
            answer = self._http.get("/v1/models")
            answer.raise_for_status()
            return str(answer.json()["data"][0]["id"])
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        except (ValueError, LookupError, TypeError) as error:
            raise CommandFailed(f"{self.endpoint} does not answer as an OpenAI endpoint") from error

    def ask(
        self,
        model: str,
        messages: Sequence[Message],
        say: Callable[[str], None],
        parameters: Mapping[str, float | int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Answer:
        """Send a conversation; ``say`` gets the answer piece by piece.

        Raises:
            CommandFailed: no connection, a refusal, or an answer that breaks off.
        """
        body = {
            "model": model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **(parameters or {}),
        }
        begin = clock()
        first: float | None = None
        last, pieces, tokens, finish = begin, list[str](), 0, ""
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
                if not answer.is_success:
                    answer.read()
                    raise CommandFailed(f"{self.endpoint} refuses: {_refusal(answer)}")
                for event in events(answer.iter_lines()):
                    tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                    for choice in event.get("choices", ()):
                        finish = choice.get("finish_reason") or finish
                        if piece := (choice.get("delta") or {}).get("content"):
                            last = clock()
                            first = last if first is None else first
                            pieces.append(piece)
                            say(piece)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if not finish:
            raise CommandFailed("the answer broke off: the endpoint closed the stream before its end")
        if first is None:
            first = last = clock()  # an answer without text
        return Answer("".join(pieces), tokens, first - begin, last - first, finish)

    def _unreachable(self, error: httpx.HTTPError) -> CommandFailed:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return CommandFailed(
                f"nothing answers at {self.endpoint}; start a pipeline with `splitinfer up`, or name another with --url"
            )
        return CommandFailed(f"{self.endpoint}: {str(error) or type(error).__name__}")


def _refusal(answer: httpx.Response) -> str:
    try:
        return f"{answer.status_code}: {_reason(answer.json())}"
    except (ValueError, AttributeError):
        return f"{answer.status_code}: {answer.text[:200]}"


def _reason(body: Mapping[str, Any]) -> str:
    error = body.get("error")
    return str(error.get("message")) if isinstance(error, dict) else str(error)
