"""The default model's own tokenizer and template, out of the store, against transformers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from splitinfer.segment_runtime.store.importer import import_model
from splitinfer.segment_runtime.store.reader import ModelStore, StoredModel
from splitinfer.segment_runtime.text.codec import TextCodec

# Of the characters that the model has tokens for: some control characters, and those beyond U+40000, it drops.
TEXT = st.text(
    st.one_of(
        st.characters(codec="utf-8", min_codepoint=32, max_codepoint=0x3FFFF),
        st.sampled_from("aé漢👩🏽‍💻 \n\t�"),
    ),
    max_size=60,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StoredModel:
    """SmolLM2-135M-Instruct, imported."""
    return import_model("smollm2", store=ModelStore(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def codec(model: StoredModel) -> TextCodec:
    """What the entry makes of it."""
    return TextCodec.from_model(model)


@pytest.fixture(scope="module")
def tokenizer(model: StoredModel) -> Tokenizer:
    """The library alone."""
    return Tokenizer.from_str(model.read_file("tokenizer").decode())


def increments(codec: TextCodec, ids: Sequence[int]) -> str:
    """Decoded token by token."""
    stream = codec.detokeniser(continuation=True)
    return "".join([*map(stream.push, ids), stream.flush()])


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 49_151), max_size=60))
def test_any_ids_decode_as_at_once(codec: TextCodec, tokenizer: Tokenizer, ids: list[int]) -> None:
    """The increments of random ids join to what the library decodes, broken UTF-8 and special tokens included."""
    assert tokenizer.decode(ids) == increments(codec, ids)


@settings(deadline=None)
@given(text=TEXT)
def test_text_comes_back_and_the_bound_holds(codec: TextCodec, tokenizer: Tokenizer, text: str) -> None:
    """The library's ids, the text again from its increments, and never fewer tokens than the bound says."""
    ids = codec.encode(text)
    assert tuple(tokenizer.encode(text).ids) == ids
    assert text == increments(codec, ids)
    assert codec.minimum_tokens(text) <= len(ids)


@settings(max_examples=30, deadline=None)
@given(
    contents=st.lists(TEXT, min_size=1, max_size=4),
    system=st.booleans(),
)
def test_a_conversation_is_what_transformers_feeds_the_model(
    codec: TextCodec, model: StoredModel, tokenizer: Tokenizer, contents: list[str], system: bool
) -> None:
    """The token ids of ``apply_chat_template``, with the model's own template and special tokens."""
    roles = (["system"] if system else []) + ["user", "assistant"] * 2
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    reference = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    reference.chat_template = model.read_file("chat_template").decode()
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(codec.encode(codec.render_chat(messages), add_special_tokens=False)) == expected


def test_it_stops_where_the_model_was_taught_to(codec: TextCodec) -> None:
    """``<|im_end|>`` ends a turn."""
    assert [codec.token_bytes(token) for token in codec.eos_token_ids] == [b"<|im_end|>"]


@settings(deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_the_bound_holds_for_what_the_tokenizer_drops(codec: TextCodec, text: str) -> None:
    """Characters without tokens vanish, in transformers too; the bound knows."""
    assert codec.minimum_tokens(text) <= len(codec.encode(text))
    assert codec.minimum_tokens("\x04" * 1000) == len(codec.encode("\x04" * 1000)) == 0


def test_a_prompt_of_ten_megabytes_is_known_to_be_too_long(codec: TextCodec) -> None:
    """Without tokenising: the longest token bounds it from below, far above any context of this model."""
    assert codec.minimum_tokens("the quick brown fox " * 500_000) > 100_000
