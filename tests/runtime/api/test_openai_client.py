"""The real ``openai`` package against the real application on a real port."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from splitinfer.segment_runtime.entry.generate import GenerationRequest
from splitinfer.segment_runtime.entry.sampler import uniform
from splitinfer.segment_runtime.text.codec import TextCodec
from tests.support.fake_generator import FakeGenerator
from tests.support.serving import Served, served
from tests.support.tiny_text import tiny_codec

ANSWER = "The café serves 漢字 and 🎉 to all."
USER = [{"role": "user", "content": "Hello"}]


async def test_models(api: Served) -> None:
    """The list and the model by name."""
    models = await api.openai.models.list()
    assert [m.id for m in models.data] == ["tiny"]
    assert (await api.openai.models.retrieve("tiny")).id == "tiny"
    with pytest.raises(openai.NotFoundError) as error:
        await api.openai.models.retrieve("other")
    assert error.value.code == "model_not_found"


async def test_chat(api: Served) -> None:
    """The whole answer, its reason and its usage; the prompt is the rendered template without another BOS."""
    answer = await api.openai.chat.completions.create(model="tiny", messages=USER)
    prompt = api.codec.encode(
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False
    )
    request = api.generator.requests[0]
    assert prompt == request.prompt
    assert request.max_tokens == 200 - len(prompt)
    assert request.stop_token_ids == {2}
    (choice,) = answer.choices
    assert choice.message.content == ANSWER
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.created == 1_700_000_000
    assert answer.system_fingerprint == "fp_test"
    assert answer.usage is not None
    generated = len(api.codec.encode(ANSWER)) + 1  # the stop token was generated, too
    assert (len(prompt), generated) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert answer.usage.total_tokens == len(prompt) + generated


async def test_chat_stream(api: Served) -> None:
    """The role first, one event per token with text, the reason alone, the usage last; never half a character."""
    stream = await api.openai.chat.completions.create(
        model="tiny",
        messages=USER,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    *body, last, usage = chunks
    assert body[0].choices[0].delta.role == "assistant"
    assert body[0].choices[0].delta.content == ""
    texts = [chunk.choices[0].delta.content for chunk in body[1:]]
    stepwise = api.codec.detokeniser()
    expected = [text for text in map(stepwise.push, api.codec.encode(ANSWER)) if text]
    assert expected == texts
    assert "".join(expected) == ANSWER
    assert last.choices[0].finish_reason == "stop"
    assert last.choices[0].delta.content is None
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == len(api.codec.encode(ANSWER)) + 1
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


async def test_no_usage_unless_asked(api: Served) -> None:
    """Without include_usage no chunk has it, and every chunk has a choice."""
    stream = await api.openai.chat.completions.create(model="tiny", messages=USER, stream=True)
    assert all([chunk.choices and chunk.usage is None async for chunk in stream])


async def test_completion(api: Served) -> None:
    """16 tokens unless asked otherwise, as OpenAI; cut off means ``length``."""
    answer = await api.openai.completions.create(model="tiny", prompt="Once")
    expected = api.codec.decode(api.codec.encode(ANSWER)[:16])
    assert answer.choices[0].text == expected
    assert answer.choices[0].finish_reason == "length"
    assert answer.object == "text_completion"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    assert api.generator.requests[0].prompt == api.codec.encode("Once")


async def test_completion_cut_inside_a_character(api: Served) -> None:
    """The unfinished character at the end is U+FFFD, in one and in a stream alike."""
    ids = api.codec.encode("ab漢")
    api.generator.script = lambda _: ids
    answer = await api.openai.completions.create(model="tiny", prompt="x", max_tokens=len(ids) - 1)
    stream = await api.openai.completions.create(
        model="tiny", prompt="x", max_tokens=len(ids) - 1, stream=True
    )
    assert answer.choices[0].text == "ab�"
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "ab�"


async def test_completion_stream(api: Served) -> None:
    """The same text as in one, the reason in the last chunk."""
    stream = await api.openai.completions.create(
        model="tiny", prompt="Once", max_tokens=100, stream=True, stream_options={"include_usage": True}
    )
    *chunks, usage = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert {chunk.choices[0].finish_reason for chunk in chunks[:-1]} == {None}
    assert usage.usage is not None
    assert usage.usage.prompt_tokens == len(api.codec.encode("Once"))


@pytest.mark.parametrize(
    "prompt", ["Hi", ["Hi", "Ho ho"], [5, 6, 7], [[5, 6], [7]]], ids=["text", "texts", "ids", "lists_of_ids"]
)
async def test_all_forms_of_a_prompt(api: Served, prompt: Any) -> None:
    """Strings and token ids, alone and in lists; choices are numbered through, the usage counts each prompt once."""
    answer = await api.openai.completions.create(model="tiny", prompt=prompt, n=2, max_tokens=3)
    several: list[Any] = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
    expected: list[tuple[int, ...]] = [
        api.codec.encode(p) if isinstance(p, str) else tuple(p) for p in several
    ]
    assert [p for p in expected for _ in range(2)] == [r.prompt for r in api.generator.requests]
    assert [c.index for c in answer.choices] == list(range(2 * len(expected)))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(map(len, expected))
    assert answer.usage.completion_tokens == 3 * 2 * len(expected)


@pytest.fixture
async def drawing() -> AsyncIterator[Served]:
    """Tokens drawn as the sampler draws: from the seed and the index alone."""

    def script(request: GenerationRequest) -> list[int]:
        return [3 + int(uniform(request.sampling.seed, i) * 94) for i in range(request.max_tokens)]

    async with served(FakeGenerator(script), tiny_codec()) as running:
        yield running


async def test_a_seed_reproduces_and_the_choices_differ(drawing: Served) -> None:
    """Same seed, same texts; n choices differ; the first of n is the only one of n=1; no seed, another text."""

    async def texts(seed: int | None, n: int) -> list[str]:
        answer = await drawing.openai.completions.create(model="tiny", prompt="x", seed=seed, n=n)
        return [choice.text for choice in answer.choices]

    three = await texts(7, 3)
    assert three == await texts(7, 3)
    assert len(set(three)) == 3
    assert three[:1] == await texts(7, 1)
    assert not set(three) & set(await texts(8, 3))
    assert await texts(None, 1) != await texts(None, 1)


async def test_choices_of_a_stream_are_told_apart(drawing: Served) -> None:
    """n=3 in a stream: every choice has its role, its text, one reason; together the texts of n=3 in one."""
    arguments = {"model": "tiny", "messages": USER, "seed": 7, "n": 3, "max_tokens": 20}
    whole = await drawing.openai.chat.completions.create(**arguments)
    texts, reasons = ["", "", ""], []
    stream = await drawing.openai.chat.completions.create(**arguments, stream=True)
    async for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons += [(choice.index, choice.finish_reason)] if choice.finish_reason else []
    assert texts == [choice.message.content for choice in whole.choices]
    assert sorted(reasons) == [(0, "length"), (1, "length"), (2, "length")]


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_strings(api: Served, stream: bool) -> None:
    """The text ends before the stop string, across token borders; the session is closed at once."""
    answer = await api.openai.completions.create(
        model="tiny", prompt="x", max_tokens=100, stop=["zzz", "字 an"], stream=stream
    )
    if isinstance(answer, openai.AsyncStream):
        chunks = [chunk async for chunk in answer]
        text, reason = "".join(c.choices[0].text for c in chunks), chunks[-1].choices[0].finish_reason
    else:
        text, reason = answer.choices[0].text, answer.choices[0].finish_reason
    assert (text, reason) == ("The café serves 漢", "stop")
    assert api.generator.open_sessions == 0
    assert api.generator.streams[0].given < len(api.codec.encode(ANSWER))


async def test_a_stop_string_ends_its_own_choice_only(api: Served) -> None:
    """Of two choices the one that meets its stop string is closed while the other goes on."""
    codec: TextCodec = api.codec
    scripts = iter(["ab STOP xx", "cd ef gh"])
    api.generator.script = lambda _: (*codec.encode(next(scripts)), 2)
    answer = await api.openai.completions.create(model="tiny", prompt="x", n=2, max_tokens=50, stop="STOP")
    assert [c.text for c in answer.choices] == ["ab ", "cd ef gh"]


async def test_chat_logprobs(api: Served) -> None:
    """One entry per shown token, its bytes joining to the text; alternatives as many as asked; -inf is -9999."""
    answer = await api.openai.chat.completions.create(
        model="tiny",
        messages=USER,
        logprobs=True,
        top_logprobs=2,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    joined = b"".join(bytes(entry.bytes or []) for entry in logprobs.content)
    assert joined.decode() == ANSWER
    assert {len(entry.top_logprobs) for entry in logprobs.content} == {2}
    assert logprobs.content[0].logprob == pytest.approx(-0.6931, abs=1e-4)
    assert logprobs.content[2].logprob == -9999.0
    plain = await api.openai.chat.completions.create(model="tiny", messages=USER, logprobs=True)
    assert plain.choices[0].logprobs is not None
    assert all(entry.top_logprobs == [] for entry in plain.choices[0].logprobs.content or [])


async def test_chat_logprobs_stream_with_their_text(api: Served) -> None:
    """A chunk's logprobs are of the tokens whose text begins in it; none is lost or doubled."""
    whole = await api.openai.chat.completions.create(model="tiny", messages=USER, logprobs=True)
    stream = await api.openai.chat.completions.create(model="tiny", messages=USER, logprobs=True, stream=True)
    entries: list[Any] = []
    spelled, text = b"", ""
    async for chunk in stream:
        choice = chunk.choices[0]
        if choice.logprobs is not None:
            entries += choice.logprobs.content
            spelled += b"".join(bytes(entry.bytes) for entry in choice.logprobs.content)
            text += choice.delta.content
            assert codecs.getincrementaldecoder("utf-8")().decode(spelled) == text
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.content == entries


async def test_completion_logprobs(api: Served) -> None:
    """The four parallel lists; the chosen token is always among the alternatives; offsets point into the text."""
    api.generator.script = lambda _: (*api.codec.encode("the quick fox"), 2)
    answer = await api.openai.completions.create(model="tiny", prompt="x", logprobs=1)
    logprobs, text = answer.choices[0].logprobs, answer.choices[0].text
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert "".join(logprobs.tokens) == text == "the quick fox"
    for token, offset, top, logprob in zip(
        logprobs.tokens, logprobs.text_offset, logprobs.top_logprobs, logprobs.token_logprobs, strict=True
    ):
        assert text[offset:].startswith(token)
        assert top[token] >= logprob
    none = await api.openai.completions.create(model="tiny", prompt="x", logprobs=0)
    assert none.choices[0].logprobs is not None
    assert [list(top) for top in none.choices[0].logprobs.top_logprobs or []] == [
        [t] for t in logprobs.tokens
    ]


async def test_text_parts_are_one_content(api: Served) -> None:
    """A list of text parts is joined by line breaks; ``developer`` is the model's ``system``."""
    await api.openai.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ],
    )
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\n"
    )
    assert api.generator.requests[0].prompt == api.codec.encode(expected, add_special_tokens=False)
