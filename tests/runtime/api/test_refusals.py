"""What is refused, and how: OpenAI's error shape, the parameter's name, and no token asked of the pipeline."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
import structlog

from splitinfer.segment_runtime.api.app import Limits
from splitinfer.segment_runtime.entry.generate import ContextTooLong, NotReady, PipelineFailed, Saturated
from tests.support.fake_generator import FakeGenerator
from tests.support.serving import Served, served
from tests.support.tiny_text import tiny_codec

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
COMPLETION = {"model": "tiny", "prompt": "Hello"}


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error object, after its shape was checked."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


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


@pytest.mark.parametrize(
    ("headers", "content", "code"),
    [
        ({"Content-Type": "application/json"}, b"{", "invalid_json"),
        ({"Content-Type": "application/json"}, b"", "invalid_json"),
        ({"Content-Type": "application/json"}, b"[]", "invalid_json"),
        ({"Content-Type": "application/json"}, b'{"temperature": NaN}', "invalid_json"),
        ({"Content-Type": "application/json"}, b'{"model": "\xff"}', "invalid_utf8"),
        ({"Content-Type": "application/json"}, b'{"model": "\\ud800"}', "invalid_json"),
        ({"Content-Type": "application/json"}, b"[" * 100_000, "invalid_json"),
        ({"Content-Type": "text/plain"}, b"{}", "invalid_content_type"),
        ({"Content-Type": "application/json; charset=latin-1"}, b"{}", "invalid_content_type"),
        ({}, b"{}", "invalid_content_type"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"no gzip", None),
    ],
    ids=["cut", "empty", "list", "nan", "utf8", "surrogate", "deep", "text", "charset", "none", "gzip"],
)
async def test_a_body_that_is_no_json_is_a_400(
    api: Served, headers: dict[str, str], content: bytes, code: str | None
) -> None:
    """Whatever is wrong with the bytes: 400 in the shape, and the server lives."""
    response = await api.http.post("/v1/chat/completions", content=content, headers=headers)
    error = error_of(response)
    assert code is None or error["code"] == code
    assert (await api.post("chat/completions", CHAT)).status_code == 200


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


async def test_ten_megabytes_are_a_413(api: Served) -> None:
    """Refused by the announced length, and by the bytes where none is announced; the server lives."""
    text = json.dumps({"model": "tiny", "prompt": "x" * 10_000_000}).encode()
    headers = {"Content-Type": "application/json"}

    async def chunked() -> Any:
        for at in range(0, len(text), 1 << 16):
            yield text[at : at + (1 << 16)]

    for content in (text, chunked()):
        error = error_of(await api.http.post("/v1/completions", content=content, headers=headers), 413)
        assert error["code"] == "request_too_large"
        assert str(Limits().body_bytes) in error["message"]
    with pytest.raises(openai.APIStatusError) as refused:
        await api.openai.completions.create(model="tiny", prompt="x" * 10_000_000)
    assert refused.value.status_code == 413
    assert (await api.post("completions", COMPLETION)).status_code == 200


async def test_a_model_without_a_template_cannot_chat(generator: FakeGenerator) -> None:
    """A 400 that says what to use instead."""
    async with served(generator, tiny_codec(chat=False)) as api:
        error = error_of(await api.post("chat/completions", CHAT))
        assert error["code"] == "no_chat_template"
        assert "/v1/completions" in error["message"]
        assert (await api.post("completions", COMPLETION)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "status", "code", "retry"),
    [
        (Saturated("the queue is full", 3), 429, "saturated", "3"),
        (Saturated("the queue is full", 0), 429, "saturated", "1"),
        (NotReady("no pipeline", 7), 503, "not_ready", "7"),
        (ContextTooLong("does not fit"), 400, "context_length_exceeded", None),
    ],
    ids=["saturated", "saturated_now", "not_ready", "context"],
)
async def test_a_refused_admission_is_a_status(
    api: Served, stream: bool, refusal: Exception, status: int, code: str, retry: str | None
) -> None:
    """What the pipeline refuses becomes its HTTP status, with Retry-After, in a stream too."""
    api.generator.refuse = refusal  # type: ignore[assignment]
    response = await api.post("chat/completions", CHAT | {"stream": stream})
    assert error_of(response, status)["code"] == code
    assert response.headers.get("Retry-After") == retry


async def test_choices_are_admitted_all_or_none(api: Served) -> None:
    """When the third of four is refused, the two before it are closed without having run."""
    api.generator.refuse, api.generator.admits = Saturated("full", 1), 2
    with pytest.raises(openai.RateLimitError):
        await api.openai.chat.completions.create(**CHAT, n=4)
    assert len(api.generator.streams) == 2
    assert api.generator.open_sessions == 0


async def test_a_pipeline_that_fails_is_a_500(api: Served) -> None:
    """Its own words, which may name nodes, stay inside; the other choices are closed."""
    api.generator.break_after, api.generator.failure = 3, PipelineFailed("node-7 is gone")
    response = await api.post("completions", COMPLETION | {"n": 2})
    error = error_of(response, 500)
    assert (error["code"], error["type"]) == ("pipeline_failed", "server_error")
    assert "node-7" not in response.text
    assert api.generator.open_sessions == 0


@pytest.mark.parametrize("failure", [PipelineFailed("node-7 is gone"), ValueError("a bug on node-7")])
async def test_a_stream_that_fails_ends_with_an_error_event(api: Served, failure: Exception) -> None:
    """The text so far, an error event, no DONE, and the client package raises."""
    api.generator.break_after, api.generator.failure = 3, failure
    response = await api.post("completions", COMPLETION | {"stream": True})
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert "[DONE]" not in events
    assert json.loads(events[-1])["error"]["type"] == "server_error"
    assert "choices" in json.loads(events[0])
    assert "node-7" not in response.text
    with pytest.raises(openai.APIError):
        async for _ in await api.openai.completions.create(**COMPLETION, stream=True):
            pass
    assert api.generator.open_sessions == 0


async def test_a_session_that_ends_without_a_reason_is_an_error(api: Served) -> None:
    """A pipeline that stops talking is not taken for an answer."""
    api.generator.script = lambda _: [5, 6]
    assert error_of(await api.post("completions", COMPLETION), 500)["code"] == "pipeline_failed"


async def test_a_failure_logs_where_it_was_and_nothing_that_users_wrote(
    api: Served, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has the traceback; neither the prompt nor its token ids, which local variables hold, are in it."""
    # What structlog does before anyone configures it: the richest traceback there is, to the terminal.
    monkeypatch.setattr("structlog._config._CONFIG.logger_factory", structlog.PrintLoggerFactory())
    api.generator.break_after, api.generator.failure = 1, ValueError("a bug")
    for stream in (False, True):
        await api.post("completions", COMPLETION | {"prompt": "Zanzibar", "stream": stream})
    logged = capfd.readouterr()
    assert (logged.out + logged.err).count("ValueError: a bug") == 2
    assert "fake_generator.py" in logged.out + logged.err
    for secret in ("Zanzibar", str(api.codec.encode("Zanzibar")[0:3]).strip("()")):
        assert secret not in logged.out + logged.err
