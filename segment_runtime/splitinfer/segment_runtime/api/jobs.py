"""From a request to what the pipeline is asked: token ids, sampling, and how many of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from splitinfer.segment_runtime.api.errors import context_exceeded, invalid
from splitinfer.segment_runtime.api.requests import ChatRequest, CompletionRequest, GenerateRequest
from splitinfer.segment_runtime.entry.generate import GenerationRequest, SamplingParams
from splitinfer.segment_runtime.text.codec import TextCodec
from splitinfer.segment_runtime.text.errors import (
    NoChatTemplate,
    TemplateOverran,
    TemplateRefused,
    TextError,
)

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's
# Above this many characters a prompt is tokenised in a thread, so that the loop goes on serving.
INLINE_CHARACTERS = 2_000
_TEMPLATE_CODES: dict[type[TextError], str] = {
    NoChatTemplate: "no_chat_template",
    TemplateRefused: "invalid_value",
    TemplateOverran: "chat_template_overran",
}


@dataclass(frozen=True, slots=True)
class Job:
    """Everything one HTTP request asks of the pipeline.

    Attributes:
        requests: one per choice; the choices of a prompt stand together.
        prompt_tokens: of all prompts, each counted once.
        stops: stop strings.
        continuation: the output goes on from the prompt's text (completions), or begins a text (chat).
    """

    requests: tuple[GenerationRequest, ...]
    prompt_tokens: int
    stops: tuple[str, ...]
    continuation: bool


async def chat_job(
    request: ChatRequest, codec: TextCodec, limit: int, max_choices: int, entropy: Callable[[int], bytes]
) -> Job:
    """The job of a chat request. Raises ApiError."""
    _check_choices(request.n, 1, max_choices)
    try:
        text = await asyncio.wrap_future(
            codec.submit_chat([message.as_template() for message in request.messages])
        )
    except (NoChatTemplate, TemplateRefused, TemplateOverran) as error:
        raise invalid("messages", f"{error}.", _TEMPLATE_CODES[type(error)]) from error
    wanted = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    prompt = await _encode(text, codec, limit, "messages", wanted or 1, special=False)
    top = None
    if request.logprobs:
        top = 0 if request.top_logprobs is None else request.top_logprobs
    requests = _requests(request, prompt, "messages", wanted, None, top, codec, limit, entropy)
    return Job(requests, len(prompt), request.stop, continuation=False)


async def completion_job(
    request: CompletionRequest,
    codec: TextCodec,
    limit: int,
    max_choices: int,
    entropy: Callable[[int], bytes],
) -> Job:
    """The job of a completion request. Raises ApiError."""
    _check_choices(request.n, len(request.prompt), max_choices)
    requests: list[GenerationRequest] = []
    total = 0
    for i, given in enumerate(request.prompt):
        param = "prompt" if len(request.prompt) == 1 else f"prompt[{i}]"
        wanted = request.max_tokens
        if isinstance(given, str):
            prompt: Sequence[int] = await _encode(given, codec, limit, param, wanted or 1, special=True)
        else:
            prompt = given
            if prompt and max(prompt) >= codec.vocab_size:
                raise invalid(
                    param, f"Invalid value for '{param}': the vocabulary has {codec.vocab_size} tokens."
                )
        total += len(prompt)
        requests += _requests(
            request, prompt, param, wanted, DEFAULT_COMPLETION_TOKENS, request.logprobs, codec, limit, entropy
        )
    return Job(tuple(requests), total, request.stop, continuation=True)


async def _encode(
    text: str, codec: TextCodec, limit: int, param: str, output: int, *, special: bool
) -> Sequence[int]:
    least = codec.minimum_tokens(text)
    if least > limit:
        raise context_exceeded(param, limit, least, output, at_least=True)
    if len(text) <= INLINE_CHARACTERS:
        return codec.encode(text, add_special_tokens=special)
    return await asyncio.to_thread(codec.encode, text, add_special_tokens=special)


def _requests(
    request: GenerateRequest,
    prompt: Sequence[int],
    param: str,
    wanted: int | None,
    default: int | None,
    top_logprobs: int | None,
    codec: TextCodec,
    limit: int,
    entropy: Callable[[int], bytes],
) -> tuple[GenerationRequest, ...]:
    """One per choice of a prompt. ``wanted`` None means ``default``, and that None the rest of the context."""
    if not prompt:
        raise invalid(
            param, f"Invalid value for '{param}': it has no tokens; there is nothing to go on from."
        )
    room = limit - len(prompt)
    if room < (wanted or 1):
        raise context_exceeded(param, limit, len(prompt), wanted or 1)
    seed = int.from_bytes(entropy(8)) if request.seed is None else request.seed
    return tuple(
        GenerationRequest(
            prompt=tuple(prompt),
            max_tokens=min(room, room if default is None else default) if wanted is None else wanted,
            sampling=SamplingParams(
                temperature=request.temperature,
                top_p=request.top_p,
                top_k=max(request.top_k, 0),
                seed=derived_seed(seed, choice),
                frequency_penalty=request.frequency_penalty,
                presence_penalty=request.presence_penalty,
                top_logprobs=top_logprobs,
            ),
            stop_token_ids=frozenset() if request.ignore_eos else codec.eos_token_ids,
        )
        for choice in range(request.n)
    )


def derived_seed(seed: int, choice: int) -> int:
    """The seed of one of n choices: the first has the seed itself, so that n=1 and n=2 begin alike.

    The others are hashed, so that choice 1 of seed 1 is not choice 0 of seed 2.
    """
    if choice == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed}:{choice}".encode(), digest_size=8).digest())


def _check_choices(n: int, prompts: int, most: int) -> None:
    if n * prompts > most:
        param = "n" if n > 1 else "prompt"
        raise invalid(
            param,
            f"Invalid value for '{param}': {n * prompts} choices (n times prompts), at most {most} in one request.",
        )
