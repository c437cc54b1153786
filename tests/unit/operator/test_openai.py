"""The chat client against answers that are good, slow in pieces, broken off and refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx
import pytest

from splitinfer.operator.commands.chat import Conversation
from splitinfer.operator.errors import CommandFailed
from splitinfer.operator.openai import ChatClient


def stream(*pieces: str, finish: str | None = "stop", usage: int | None = None) -> bytes:
    """An answer as server-sent events."""
    events: list[dict[str, Any]] = [{"choices": [{"delta": {"role": "assistant"}}]}]
    events += [{"choices": [{"delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    if finish:
        events.append({"choices": [{"delta": {}, "finish_reason": finish}]})
    if usage is not None:
        events.append({"choices": [], "usage": {"completion_tokens": usage}})
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return f": a comment\n\n{text}data: [DONE]\n\n".encode()


def client(answer: httpx.Response | Exception, seen: list[httpx.Request] | None = None) -> ChatClient:
    """A client whose endpoint always answers so."""

    def respond(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ChatClient("http://127.0.0.1:1/v1/", httpx.MockTransport(respond))


def ticks() -> Iterator[float]:
    """A clock that goes on by a second each time it is read."""
    return (float(second) for second in count())


def test_an_answer_is_said_in_pieces_and_timed() -> None:
    """Pieces as they come; first token and rate from the clock and the endpoint's count."""
    said: list[str] = []
    seen: list[httpx.Request] = []
    clock = ticks()
    answer = client(httpx.Response(200, content=stream("Blue", " it", " is", usage=5)), seen).ask(
        "tiny", [{"role": "user", "content": "Why?"}], said.append, {"temperature": 0}, lambda: next(clock)
    )

    assert said == ["Blue", " it", " is"]
    assert (answer.text, answer.tokens, answer.finish) == ("Blue it is", 5, "stop")
    assert (answer.ttft_seconds, answer.decode_seconds) == (1.0, 2.0)
    assert answer.summary == "first token after 1000 ms, 5 tokens, 2.0 tokens/s"
    body = json.loads(seen[0].content)
    assert seen[0].url.path == "/v1/chat/completions"
    assert body["temperature"] == 0
    assert body["stream_options"] == {"include_usage": True}


def test_an_answer_cut_at_the_limit_says_so() -> None:
    """finish_reason length is not silence."""
    answer = client(httpx.Response(200, content=stream("a", finish="length", usage=1))).ask("m", [], print)
    assert "cut at the token limit" in answer.summary


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.ConnectError("refused"), "nothing answers at http://127.0.0.1:1; start a pipeline"),
        (httpx.ReadTimeout(""), "ReadTimeout"),
        (httpx.Response(429, json={"error": {"message": "the queue is full"}}), "429: the queue is full"),
        (httpx.Response(502, text="<html>"), "502: <html>"),
        (httpx.Response(200, content=stream("a", finish=None)), "closed the stream before its end"),
        (httpx.Response(200, content=b"data: {nonsense\n\n"), "not JSON"),
        (httpx.Response(200, content=b"data: []\n\n"), "not an object"),
        (httpx.Response(200, content=b'data: {"error": {"message": "lost"}}\n\n'), "broke off: lost"),
    ],
)
def test_what_goes_wrong_is_told(answer: httpx.Response | Exception, words: str) -> None:
    """No connection, a refusal, an answer that ends early: one line each."""
    with pytest.raises(CommandFailed) as failed:
        client(answer).ask("m", [], lambda _piece: None)
    assert words in str(failed.value)


def test_the_served_model_is_asked_for() -> None:
    """The first model of the list; anything else than a list is refused."""
    assert client(httpx.Response(200, json={"data": [{"id": "tiny"}]})).model() == "tiny"
    with pytest.raises(CommandFailed, match="does not answer as an OpenAI endpoint"):
        client(httpx.Response(200, json={"hello": "world"})).model()


def test_a_conversation_keeps_what_was_said_and_forgets_what_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Question and answer are kept together or not at all; the system message begins."""
    good = Conversation(client(httpx.Response(200, content=stream("Blue", usage=1))), "m", "Be brief.", {})
    good.ask("Why?")
    assert [message["role"] for message in good.messages] == ["system", "user", "assistant"]
    assert good.messages[-1]["content"] == "Blue"
    assert capsys.readouterr().out == "Blue\n"

    bad = Conversation(client(httpx.ConnectError("refused")), "m", None, {})
    with pytest.raises(CommandFailed):
        bad.ask("Why?")
    assert bad.messages == []
