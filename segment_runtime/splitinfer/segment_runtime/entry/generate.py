"""The generation port: what the OpenAI API asks of the pipeline.

Errors
------
GenerationError           base
├── ContextTooLong        prompt and output do not fit the context (400)
├── Saturated             the queue is full (429), with `retry_after_seconds`
├── NotReady              no pipeline serves now (503), with `retry_after_seconds`
└── PipelineFailed        the pipeline broke under the request and could not recover (500)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


class GenerationError(Exception):
    """A request that cannot be answered."""


class ContextTooLong(GenerationError):
    """Prompt and output do not fit the context."""


class Saturated(GenerationError):
    """The queue is full."""

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NotReady(GenerationError):
    """No pipeline serves now."""

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class PipelineFailed(GenerationError):
    """The pipeline broke under the request and could not recover."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; OpenAI's parameters and top_k.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus mass, in (0, 1].
        top_k: candidates kept, 0 keeps all.
        seed: with the token's index it alone determines the draw, so that a replay draws alike.
        frequency_penalty: times the count of a token in the output so far, off its logit.
        presence_penalty: off the logit of any token in the output so far.
        top_logprobs: None for no logprobs, else how many alternatives to report.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Token ids in, at most ``max_tokens`` out."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop_token_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token. A stop token is reported with ``finish="stop"`` and is not part of the text."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: FinishReason | None = None


class Generator(Protocol):
    """The pipeline as the API sees it."""

    @property
    def model_name(self) -> str:
        """Served name."""

    @property
    def max_context_tokens(self) -> int:
        """Prompt and output together."""

    @property
    def system_fingerprint(self) -> str:
        """What computes now: another model, dtype or engine is another one. A seed is good for one of them."""

    def ready(self) -> bool:
        """Whether a whole pipeline answers."""

    def submit(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        """Admit a request and give its tokens as they come.

        Admission happens in the call itself, before the first iteration, so that its errors can still
        become an HTTP status. Closing the iterator (``aclose``) cancels and frees the session.

        Raises:
            ContextTooLong, Saturated, NotReady: at once.
            PipelineFailed: while iterating.
            NotReady: while iterating, when the entry shuts down first.
        """
