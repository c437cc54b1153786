"""What a client sees, and what is logged, when the pipeline refuses or fails under a request that is right."""

from __future__ import annotations

import json

import openai
import pytest
import structlog

from splitinfer.segment_runtime.entry.generate import (
    ContextTooLong,
    GenerationError,
    NotReady,
    PipelineFailed,
    Saturated,
)
from tests.support.refused import CHAT, COMPLETION, error_of
from tests.support.serving import Served


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
    api: Served, stream: bool, refusal: GenerationError, status: int, code: str, retry: str | None
) -> None:
    """What the pipeline refuses becomes its HTTP status, with Retry-After, in a stream too."""
    api.generator.refuse = refusal
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
