"""The JSON of OpenAI's two answers, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from splitinfer.segment_runtime.api.choice import Increment, ShownToken
from splitinfer.segment_runtime.entry.generate import FinishReason
from splitinfer.segment_runtime.text.codec import TextCodec

# OpenAI's stand-in for minus infinity, which JSON does not have.
LEAST_LOGPROB = -9999.0
JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every object of one answer carries."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    include_usage: bool = False

    def wrap(self, kind: str, choices: Sequence[JsonObject], usage: JsonObject | None = None) -> JsonObject:
        """An answer. In a stream that will end with its usage, the other chunks say null."""
        body = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
            "choices": list(choices),
        }
        if usage is not None or self.include_usage:
            body["usage"] = usage
        return body


@dataclass(frozen=True, slots=True)
class FinishedChoice:
    """All of one choice."""

    text: str
    tokens: tuple[ShownToken, ...]
    finish: FinishReason

    @classmethod
    def of(cls, increments: Iterable[Increment]) -> FinishedChoice:
        """Join the increments of a choice; the last one has the finish reason."""
        parts = list(increments)
        finish = parts[-1].finish
        assert finish is not None
        return cls(
            "".join(part.text for part in parts),
            tuple(token for part in parts for token in part.tokens),
            finish,
        )


def usage_of(prompt_tokens: int, completion_tokens: int) -> JsonObject:
    """OpenAI's usage."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class Shape(Protocol):
    """How an endpoint writes its answer."""

    envelope: Envelope

    def whole(self, choices: Sequence[FinishedChoice], usage: JsonObject) -> JsonObject:
        """The answer in one."""

    def opening(self, index: int) -> list[JsonObject]:
        """The chunks with which a choice begins in a stream."""

    def chunks(self, index: int, increment: Increment) -> list[JsonObject]:
        """The chunks of an increment; none where nothing is to be seen yet."""

    def usage(self, usage: JsonObject) -> JsonObject:
        """The chunk that ends a stream with its usage."""


class ChatShape:
    """``chat.completion`` and ``chat.completion.chunk``."""

    def __init__(self, envelope: Envelope, codec: TextCodec, *, logprobs: bool) -> None:
        """``logprobs``: whether they were asked for."""
        self.envelope = envelope
        self._codec = codec
        self._logprobs = logprobs

    def whole(self, choices: Sequence[FinishedChoice], usage: JsonObject) -> JsonObject:
        """As Shape."""
        body = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": self._logprobs_of(choice.tokens),
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(choices)
        ]
        return self.envelope.wrap("chat.completion", body, usage)

    def opening(self, index: int) -> list[JsonObject]:
        """The role comes first, with an empty content."""
        return [self._chunk(index, {"role": "assistant", "content": ""}, None, None)]

    def chunks(self, index: int, increment: Increment) -> list[JsonObject]:
        """The text, then the finish reason in a chunk of its own."""
        chunks = []
        logprobs = self._logprobs_of(increment.tokens) if increment.tokens else None
        if increment.text or logprobs is not None:
            chunks.append(self._chunk(index, {"content": increment.text}, logprobs, None))
        if increment.finish is not None:
            chunks.append(self._chunk(index, {}, None, increment.finish))
        return chunks

    def usage(self, usage: JsonObject) -> JsonObject:
        """No choices, only usage."""
        return self.envelope.wrap("chat.completion.chunk", [], usage)

    def _chunk(
        self, index: int, delta: JsonObject, logprobs: JsonObject | None, finish: FinishReason | None
    ) -> JsonObject:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self.envelope.wrap("chat.completion.chunk", [choice])

    def _logprobs_of(self, tokens: Sequence[ShownToken]) -> JsonObject | None:
        if not self._logprobs:
            return None
        content = [
            {
                **self._entry(token.event.token, token.event.logprob),
                "top_logprobs": [self._entry(*alternative) for alternative in token.event.top],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> JsonObject:
        raw = self._codec.token_bytes(token)
        return {"token": raw.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(raw)}


class CompletionShape:
    """``text_completion``, the same object whole and in chunks."""

    def __init__(self, envelope: Envelope, codec: TextCodec, *, logprobs: bool) -> None:
        """``logprobs``: whether they were asked for."""
        self.envelope = envelope
        self._codec = codec
        self._logprobs = logprobs

    def whole(self, choices: Sequence[FinishedChoice], usage: JsonObject) -> JsonObject:
        """As Shape."""
        body = [
            self._choice(i, choice.text, choice.tokens, choice.finish) for i, choice in enumerate(choices)
        ]
        return self.envelope.wrap("text_completion", body, usage)

    def opening(self, index: int) -> list[JsonObject]:  # noqa: ARG002 - the port has it
        """Nothing comes before the text."""
        return []

    def chunks(self, index: int, increment: Increment) -> list[JsonObject]:
        """The text, with the finish reason in the last one."""
        if not increment.text and not increment.tokens and increment.finish is None:
            return []
        choice = self._choice(index, increment.text, increment.tokens, increment.finish)
        return [self.envelope.wrap("text_completion", [choice])]

    def usage(self, usage: JsonObject) -> JsonObject:
        """No choices, only usage."""
        return self.envelope.wrap("text_completion", [], usage)

    def _choice(
        self, index: int, text: str, tokens: Sequence[ShownToken], finish: FinishReason | None
    ) -> JsonObject:
        logprobs = None
        if self._logprobs:
            logprobs = {
                "tokens": [self._name(token.event.token) for token in tokens],
                "token_logprobs": [_finite(token.event.logprob) for token in tokens],
                "top_logprobs": [self._alternatives(token) for token in tokens],
                "text_offset": [token.offset for token in tokens],
            }
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _alternatives(self, token: ShownToken) -> dict[str, float]:
        """The most probable tokens, and always the chosen one. Of two with the same text the more probable stays."""
        found: dict[str, float] = {}
        for alternative, logprob in (*token.event.top, (token.event.token, token.event.logprob)):
            found.setdefault(self._name(alternative), _finite(logprob))
        return found

    def _name(self, token: int) -> str:
        return self._codec.token_bytes(token).decode(errors="replace")


def _finite(logprob: float | None) -> float:
    return LEAST_LOGPROB if logprob is None else max(logprob, LEAST_LOGPROB)
