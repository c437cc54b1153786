"""Bodies that are no request: whatever is wrong with the bytes, a 4xx in OpenAI's shape, and the server lives."""

from __future__ import annotations

import gzip
import json
from typing import Any

import openai
import pytest

from splitinfer.segment_runtime.api.app import Limits
from tests.support.refused import CHAT, COMPLETION, error_of
from tests.support.serving import Served


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
        (
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            b"no gzip",
            "invalid_content_encoding",
        ),
        ({"Content-Type": "application/json", "Content-Encoding": "br"}, b"{}", "invalid_content_encoding"),
        ({"Content-Type": "application/json", "Content-Encoding": "foo"}, b"{}", "invalid_content_encoding"),
    ],
    ids=[
        "cut",
        "empty",
        "list",
        "nan",
        "utf8",
        "surrogate",
        "deep",
        "text",
        "charset",
        "none",
        "gzip",
        "br",
        "foo",
    ],
)
async def test_a_body_that_is_no_json_is_a_400(
    api: Served, headers: dict[str, str], content: bytes, code: str
) -> None:
    """Whatever is wrong with the bytes: 400 in the shape, and the server lives."""
    response = await api.http.post("/v1/chat/completions", content=content, headers=headers)
    error = error_of(response)
    assert error["code"] == code
    assert (await api.post("chat/completions", CHAT)).status_code == 200


HI = '"messages": [{"role": "user", "content": "Hi"}]'


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", '{"model": "tiny", HI, "temperature": 0, "temperature": 1}', "temperature"),
        ("chat/completions", '{"temperature": 1, "model": "tiny", HI, "temperature": 1}', "temperature"),
        (
            "chat/completions",
            '{"model": "tiny", HI, "temp\\u0065rature": 0, "temperature": 1}',
            "temperature",
        ),
        ("chat/completions", '{"model": "tiny", "model": null, HI}', "model"),
        ("chat/completions", '{"model": "tiny", HI, "colour": 1, "colour": 1}', "colour"),
        (
            "chat/completions",
            '{"model": "tiny", "messages": [{"role": "user", "content": "a", "content": "b"}]}',
            "messages[0].content",
        ),
        (
            "chat/completions",
            '{"model": "tiny", HI, "stream": true, "stream_options": {"include_usage": true, "include_usage": false}}',
            "stream_options.include_usage",
        ),
        ("chat/completions", '{"model": "tiny", HI, "user": {"a": 1, "a": 2}, "user": "me"}', "user"),
        ("completions", '{"model": "tiny", "prompt": "secret", "prompt": "Hello"}', "prompt"),
    ],
)
async def test_a_key_that_is_there_twice_is_a_400_that_names_it(
    api: Served, path: str, body: str, param: str
) -> None:
    """Parsers keep the last one: the others would be ignored without a word. Equal values, escapes, nested ones too."""
    content, headers = body.replace("HI", HI).encode(), {"Content-Type": "application/json"}
    error = error_of(await api.http.post(f"/v1/{path}", content=content, headers=headers))
    assert (error["param"], error["code"]) == (param, "duplicate_parameter")
    assert (error["type"], f"'{param}'" in error["message"]) == ("invalid_request_error", True)
    assert "secret" not in error["message"]
    assert api.generator.requests == []


async def test_equal_keys_of_different_objects_are_no_duplicates(api: Served) -> None:
    """Each message has its own role and content."""
    messages = [{"role": role, "content": "Hi"} for role in ("user", "assistant", "user")]
    assert (await api.post("chat/completions", CHAT | {"messages": messages})).status_code == 200


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


async def test_a_body_that_unpacks_to_gigabytes_is_not_unpacked(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A megabyte of gzip can hold a thousand; to inflate it, were it only to throw it away, would hold up all streams."""
    inflated: list[int] = []
    monkeypatch.setattr(
        "aiohttp.http_parser.DeflateBuffer.feed_data", lambda _self, chunk, *_: inflated.append(len(chunk))
    )
    bomb = gzip.compress(bytes(8 << 20))
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    response = await api.http.post("/v1/completions", content=bomb, headers=headers)
    assert error_of(response)["code"] == "invalid_content_encoding"
    assert (await api.post("completions", COMPLETION)).status_code == 200
    assert inflated == []
