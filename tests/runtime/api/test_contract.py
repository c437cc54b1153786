"""Every parameter that the ``openai`` package knows is served, harmless, or refused by name; none is ignored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params

from splitinfer.segment_runtime.api import refusals
from splitinfer.segment_runtime.api.requests import HARMLESS, ChatRequest, CompletionRequest
from splitinfer.segment_runtime.entry.generate import GenerationRequest
from tests.support.serving import Served

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "seed": 1}
COMPLETION = {"model": "tiny", "prompt": "Hello", "seed": 1}
KNOWN_CHAT = {*chat_params.CompletionCreateParamsBase.__annotations__, "stream"}
KNOWN_COMPLETION = {*completion_params.CompletionCreateParamsBase.__annotations__, "stream"}

# A value that asks for something, for each refused parameter.
ASKING: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "best_of": 3,
    "echo": True,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "logit_bias": {"5": 1},
    "modalities": ["text", "audio"],
    "moderation": {"model": "m"},
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "high",
    "response_format": {"type": "json_object"},
    "service_tier": "priority",
    "store": True,
    "suffix": "end",
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "verbosity": "high",
    "web_search_options": {},
}
# OpenAI's default, or another value that asks for nothing.
NEUTRAL: dict[str, Any] = {
    "best_of": 1,
    "echo": False,
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "modalities": ["text"],
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "service_tier": "auto",
    "store": False,
    "suffix": "",
    "tool_choice": "auto",
    "tools": [],
    "verbosity": "medium",
}
LABELS: dict[str, Any] = {
    "user": "u",
    "metadata": {"a": "b"},
    "safety_identifier": "s",
    "prompt_cache_key": "k",
}


def sampling(**changes: Any) -> Callable[[GenerationRequest], GenerationRequest]:
    """What a parameter changes of the sampling."""
    return lambda request: replace(request, sampling=replace(request.sampling, **changes))


# What each served parameter changes of what the pipeline is asked. Those that change the answer instead have tests
# of their own in test_openai_client.py, named here.
ASKED: dict[str, tuple[Any, Callable[[GenerationRequest], GenerationRequest]]] = {
    "temperature": (0.5, sampling(temperature=0.5)),
    "top_p": (0.5, sampling(top_p=0.5)),
    "top_k": (5, sampling(top_k=5)),
    "seed": (-9, sampling(seed=-9)),
    "frequency_penalty": (0.5, sampling(frequency_penalty=0.5)),
    "presence_penalty": (0.5, sampling(presence_penalty=0.5)),
    "max_tokens": (3, lambda request: replace(request, max_tokens=3)),
    "ignore_eos": (True, lambda request: replace(request, stop_token_ids=frozenset())),
}
ASKED_CHAT = ASKED | {
    "max_completion_tokens": (3, lambda request: replace(request, max_tokens=3)),
    "logprobs": (True, sampling(top_logprobs=0)),
}
ASKED_COMPLETION = ASKED | {"logprobs": (3, sampling(top_logprobs=3))}
ANSWERED = {"model", "messages", "prompt", "n", "stop", "stream", "stream_options", "top_logprobs"}


@pytest.mark.parametrize(
    ("known", "model", "refused"),
    [
        (KNOWN_CHAT, ChatRequest, refusals.CHAT),
        (KNOWN_COMPLETION, CompletionRequest, refusals.COMPLETION),
    ],
    ids=["chat", "completion"],
)
def test_every_parameter_of_openai_is_decided_about(
    known: set[str], model: type[Any], refused: dict[str, Any]
) -> None:
    """A new version of the package that knows more makes this fail until someone decides."""
    fields = set(model.model_fields)
    assert known - fields - set(refused) == set()
    assert fields & set(refused) == set()
    # Refused and neither known to the package any more: then the entry is dead.
    assert set(refused) - known == set()


@pytest.mark.parametrize(
    ("model", "asked"), [(ChatRequest, ASKED_CHAT), (CompletionRequest, ASKED_COMPLETION)]
)
def test_every_served_parameter_has_a_test_of_its_effect(model: type[Any], asked: dict[str, Any]) -> None:
    """A field that nothing here proves to matter would be ignored silently."""
    assert set(model.model_fields) - set(asked) - ANSWERED - HARMLESS == set()


@pytest.mark.parametrize(
    ("path", "base", "name"),
    [("chat/completions", CHAT, name) for name in sorted(refusals.CHAT)]
    + [("completions", COMPLETION, name) for name in sorted(refusals.COMPLETION)],
)
async def test_a_refused_parameter_is_a_400_that_names_it(
    api: Served, path: str, base: dict[str, Any], name: str
) -> None:
    """Asking for something that is not served is an error; null, and a value that asks for nothing, is none."""
    response = await api.post(path, base | {name: ASKING[name]})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert name in error["message"]
    assert (await api.post(path, base | {name: None})).status_code == 200
    if name in NEUTRAL:
        assert (await api.post(path, base | {name: NEUTRAL[name]})).status_code == 200


@pytest.mark.parametrize(
    ("path", "base", "name", "effect"),
    [("chat/completions", CHAT, name, effect) for name, effect in ASKED_CHAT.items()]
    + [("completions", COMPLETION, name, effect) for name, effect in ASKED_COMPLETION.items()],
)
async def test_a_served_parameter_reaches_the_pipeline(
    api: Served, path: str, base: dict[str, Any], name: str, effect: Any
) -> None:
    """It changes what it must of the pipeline's request, and nothing else; null is as if absent."""
    value, changed = effect
    api.generator.script = lambda request: [5] * request.max_tokens
    for body in (base, base | {name: value}):
        assert (await api.post(path, body)).status_code == 200
    plain, asked = api.generator.requests
    assert changed(plain) == asked
    assert plain != asked
    if name != "seed":
        assert (await api.post(path, base | {name: None})).status_code == 200
        assert plain == api.generator.requests[2]


@pytest.mark.parametrize("name", sorted(HARMLESS))
async def test_a_label_changes_nothing(api: Served, name: str) -> None:
    """Harmless parameters are accepted and leave the pipeline's request as it is."""
    for body in (CHAT, CHAT | {name: LABELS[name]}):
        assert (await api.post("chat/completions", body)).status_code == 200
    assert api.generator.requests[0] == api.generator.requests[1]
