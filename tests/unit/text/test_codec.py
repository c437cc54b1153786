"""The codec around the tokenizer: what it reads, what it refuses, and the bound that spares tokenising."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from splitinfer.segment_runtime.text.codec import TextCodec
from splitinfer.segment_runtime.text.errors import UnsupportedTokenizer
from splitinfer.segment_runtime.text.pieces import byte_alphabet
from tests.support.tiny_text import byte_level_tokenizer, codec_of, sentencepiece_tokenizer, tiny_codec

UNHURRIED = settings(deadline=None)  # a busy machine is no failure


def copy_of(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that a test may change."""
    return Tokenizer.from_str(tokenizer.to_str())


def with_nfc() -> Tokenizer:
    """Composes characters before it looks: three jamo become one syllable."""
    tokenizer = copy_of(byte_level_tokenizer())
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def without_bytes() -> Tokenizer:
    """Has no token for "x", for what most Hangul begins with, nor for a tab: it drops them, as SmolLM2 drops some."""
    document = json.loads(byte_level_tokenizer().to_str())
    gone = {byte_name(b"x"), byte_name(b"\xea"), byte_name(b"\t")}
    model = document["model"]
    model["vocab"] = {name: i for name, i in model["vocab"].items() if not gone & set(name)}
    model["merges"] = [merge for merge in model["merges"] if not gone & set("".join(merge))]
    return Tokenizer.from_str(json.dumps(document))


def byte_name(byte: bytes) -> str:
    """A byte in the byte alphabet."""
    return next(name for name, value in byte_alphabet().items() if value == byte[0])


@pytest.mark.parametrize(
    "codec",
    [tiny_codec(), codec_of(sentencepiece_tokenizer()), codec_of(with_nfc()), codec_of(without_bytes())],
    ids=["byte_level", "sentencepiece", "nfc", "without_bytes"],
)
@UNHURRIED
@given(
    text=st.one_of(
        st.text(max_size=60),
        st.text("x\t각\u1100\u1161\u11a8é\u0301a 👩", max_size=60),
        st.lists(st.sampled_from(["the ", "quick brown", "<|im_start|>", " capital", "🎉"])).map("".join),
    )
)
@example(text="<|endoftext|>" * 9)
@example(text="x\t" * 500)
def test_the_bound_holds(codec: TextCodec, text: str) -> None:
    """minimum_tokens is never above the number of tokens, and says something."""
    assert codec.minimum_tokens(text) <= len(codec.encode(text))
    assert codec.minimum_tokens("y" * 10_000) > 0


@pytest.mark.parametrize("breaks", ["strip", "whitespace", "rstrip", "nfc"])
def test_no_bound_is_claimed_where_text_can_vanish(breaks: str) -> None:
    """A tokenizer that drops or swallows space has no bound: a megabyte of spaces may be no token at all."""
    tokenizer = copy_of(byte_level_tokenizer())
    if breaks == "strip":
        tokenizer.normalizer = normalizers.Strip()
    elif breaks == "whitespace":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()]
        )
    elif breaks == "nfc":
        # Composition can turn bytes that are there into some that are not.
        tokenizer = without_bytes()
        tokenizer.normalizer = normalizers.NFC()
    else:
        tokenizer.add_special_tokens([AddedToken("<|pad|>", rstrip=True, special=True)])
    codec = codec_of(tokenizer)
    assert codec.minimum_tokens("<|pad|>" + " " * 10_000) == 0


def test_a_stored_truncation_and_padding_are_switched_off() -> None:
    """tokenizer.json may carry a length limit of its training; a prompt is never cut or padded silently."""
    tokenizer = copy_of(byte_level_tokenizer())
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    assert tiny_codec().encode("the quick brown fox") == codec_of(tokenizer).encode("the quick brown fox")


def test_special_tokens_written_out_become_their_ids() -> None:
    """As rendered templates need."""
    assert tiny_codec().encode("<|im_start|><|im_end|>") == (1, 2)


@pytest.mark.parametrize("document", [b"", b"[]", b"\xff", b"{}", b'{"model": 1}'], ids=repr)
def test_what_is_no_tokenizer_is_refused_with_the_mend(document: bytes) -> None:
    """A damaged tokenizer.json is an error that says what to do."""
    with pytest.raises(UnsupportedTokenizer, match="import the model again"):
        TextCodec(document)
