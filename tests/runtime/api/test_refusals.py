"""What is refused, and how: OpenAI's error shape, the parameter's name, and no token asked of the pipeline."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.fake_generator import FakeGenerator
from tests.support.refused import CHAT, COMPLETION, error_of
from tests.support.serving import Served, served
from tests.support.tiny_text import byte_level_tokenizer, codec_of, tiny_codec


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}
                ]
            },
            "messages[0].content[1].type",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.0}, "top_k"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"stop": 1}, "stop"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5.0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"user": 7}, "user"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"colour": "red"}, "colour"),
        ({"prompt": "Hi"}, "prompt"),
    ],
    ids=lambda v: json.dumps(v)[:60] if isinstance(v, dict) else None,
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_wrong_chat_request_is_a_400_that_names_it(
    api: Served, change: dict[str, Any], param: str, stream: bool
) -> None:
    """Wrong type, wrong range, unknown or missing: 400 with the path of the parameter, streaming or not."""
    if stream and "stream_options" in change and "stream" not in change:
        stream = False
    error = error_of(await api.post("chat/completions", CHAT | {"stream": stream} | change))
    assert error["param"] == param
    assert param in error["message"]
    assert error["type"] == "invalid_request_error"
    assert api.generator.requests == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt[1]"),
        ({"prompt": [[1], [2, "x"]]}, "prompt[1][1]"),
        ({"prompt": [1, -1]}, "prompt[1]"),
        ({"prompt": [1, True]}, "prompt[1]"),
        ({"prompt": [1, 10**9]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": ["a"] * 17}, "prompt"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": []}, "messages"),
        ({"best_of": 2}, "best_of"),
    ],
    ids=lambda v: json.dumps(v)[:60] if isinstance(v, dict) else None,
)
async def test_a_wrong_completion_request_is_a_400_that_names_it(
    api: Served, change: dict[str, Any], param: str
) -> None:
    """As for chat; a prompt without tokens has nothing to go on from."""
    error = error_of(await api.post("completions", COMPLETION | change))
    assert error["param"] == param
    assert param in error["message"]
    assert api.generator.requests == []


async def test_an_unknown_model_is_a_404(api: Served) -> None:
    """The name that was asked for and the one that is served."""
    for path, body in (("chat/completions", CHAT), ("completions", COMPLETION)):
        error = error_of(await api.post(path, body | {"model": "gpt-9"}), 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "gpt-9" in error["message"]
        assert "tiny" in error["message"]


async def test_unknown_paths_and_methods(api: Served) -> None:
    """404 and 405 in the same shape."""
    assert error_of(await api.http.get("/v1/embeddings"), 404)["code"] == "unknown_url"
    assert error_of(await api.http.get("/v1/completions"), 405)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("max_tokens", "asked"),
    [(None, "at least"), (150, "requested 450 tokens (300 in the prompt, 150 for the completion)")],
)
async def test_too_long_a_context_says_the_numbers(api: Served, max_tokens: int | None, asked: str) -> None:
    """A prompt that cannot fit, and one that would without its completion."""
    words = 100 if max_tokens else 3000
    body = {"model": "tiny", "prompt": "ab " * words, "max_tokens": max_tokens}
    error = error_of(await api.post("completions", body))
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "prompt"
    assert "maximum context length is 200 tokens" in error["message"]
    assert asked in error["message"]


async def test_the_context_is_full_to_the_last_token(api: Served) -> None:
    """Prompt and output may fill the context exactly; one more is refused; by default the rest is given."""
    prompt = [5] * 190
    assert (
        await api.post("completions", {"model": "tiny", "prompt": prompt, "max_tokens": 10})
    ).status_code == 200
    assert (await api.post("completions", {"model": "tiny", "prompt": prompt})).status_code == 200
    assert [request.max_tokens for request in api.generator.requests] == [10, 10]
    for body in ({"prompt": prompt, "max_tokens": 11}, {"prompt": [5] * 200}):
        assert (
            error_of(await api.post("completions", {"model": "tiny", **body}))["code"]
            == "context_length_exceeded"
        )


async def test_a_hopeless_prompt_is_refused_without_tokenising_it(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 MB against a context of 200 tokens: the numbers, and the tokenizer is never called."""
    monkeypatch.setattr(type(api.codec), "encode", lambda *_, **__: pytest.fail("tokenised"))
    text = "many words " * 200_000
    for path, body in (
        ("completions", {"model": "tiny", "prompt": text}),
        ("chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": text}]}),
    ):
        error = error_of(await api.post(path, body))
        assert error["code"] == "context_length_exceeded"
        assert "at least" in error["message"]


async def test_a_model_without_a_template_cannot_chat(generator: FakeGenerator) -> None:
    """A 400 that says what to use instead."""
    async with served(generator, tiny_codec(chat=False)) as api:
        error = error_of(await api.post("chat/completions", CHAT))
        assert error["code"] == "no_chat_template"
        assert "/v1/completions" in error["message"]
        assert (await api.post("completions", COMPLETION)).status_code == 200


async def test_a_template_that_takes_too_much_holds_up_nobody(generator: FakeGenerator) -> None:
    """A 400 with its reason; meanwhile more completions than there are threads go through the tokenizer and are answered."""
    nested = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    async with served(generator, codec_of(byte_level_tokenizer(), nested)) as api:
        chats = [asyncio.create_task(api.post("chat/completions", CHAT)) for _ in range(3)]
        long = {"model": "tiny", "prompt": " " * 2_100, "max_tokens": 1}
        await asyncio.gather(*[api.post("completions", long) for _ in range(40)])
        assert (await api.post("completions", COMPLETION)).status_code == 200
        assert not all(chat.done() for chat in chats)
        for chat in chats:
            error = error_of(await chat)
            assert error["code"] == "chat_template_overran"
            assert error["param"] == "messages"
            assert "processor time" in error["message"]
