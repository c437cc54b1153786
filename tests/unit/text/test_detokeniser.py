"""Increments are exact: they join to the decoding, and no one sees half a character."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from splitinfer.segment_runtime.text.errors import UnsupportedTokenizer
from splitinfer.segment_runtime.text.pieces import parse_decoder
from tests.support.tiny_text import byte_level_tokenizer, codec_of, sentencepiece_tokenizer, tiny_codec

UNHURRIED = settings(deadline=None)  # a busy machine is no failure

# Text that is valid UTF-8, with many characters of several bytes.
TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("aé漢👩🏽‍💻 \n�")), max_size=40)
IDS = st.lists(st.integers(-1, 520), max_size=40)  # special ones and ones that no token has, too
TOKENIZERS = pytest.mark.parametrize(
    "tokenizer", [byte_level_tokenizer(), sentencepiece_tokenizer()], ids=["byte_level", "sentencepiece"]
)


@UNHURRIED
@given(ids=IDS)
def test_byte_level_increments_join_to_the_decoding_of_tokenizers(ids: list[int]) -> None:
    """For any ids, broken UTF-8 included, the joined increments are what the library decodes at once."""
    codec = tiny_codec()
    stream = codec.detokeniser()
    increments = [*map(stream.push, ids), stream.flush()]
    expected = byte_level_tokenizer().decode([i for i in ids if i >= 0])
    assert expected == "".join(increments)
    assert expected == codec.decode(ids)


@TOKENIZERS
@UNHURRIED
@given(text=TEXT)
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    """Encoding and decoding give the text back, as the library does."""
    codec = codec_of(tokenizer)
    ids = codec.encode(text)
    assert tokenizer.decode(list(ids)) == codec.decode(ids)
    assert text == codec.decode(ids)


@TOKENIZERS
@UNHURRIED
@given(text=TEXT)
def test_every_increment_is_whole_characters_and_comes_at_once(tokenizer: Tokenizer, text: str) -> None:
    """After each token, exactly the characters whose bytes are complete have been emitted: none early, none late."""
    codec = codec_of(tokenizer)
    stream = codec.detokeniser(continuation=True)
    seen, raw = "", b""
    for token in codec.encode(text):
        seen += stream.push(token)
        raw += codec.token_bytes(token)
        assert codecs.getincrementaldecoder("utf-8")().decode(raw) == seen
    assert stream.flush() == ""


@UNHURRIED
@given(ids=st.lists(st.integers(3, 258), max_size=30))
def test_what_is_held_back_is_never_more_than_a_character(ids: list[int]) -> None:
    """Random bytes: at most 3 are held at any time, so the flush is one U+FFFD at most."""
    stream = tiny_codec().detokeniser()
    for token in ids:
        stream.push(token)
    assert stream.flush() in ("", "�")


def test_a_broken_byte_is_shown_at_once() -> None:
    """0xFF begins no character: it is U+FFFD now, not when the next token comes."""
    codec = tiny_codec()
    token = next(i for i in range(600) if codec.token_bytes(i) == b"\xff")
    assert codec.detokeniser().push(token) == "�"


def test_half_a_surrogate_pair_is_shown_when_it_is_clear() -> None:
    """0xED begins a character, but none goes on with 0xA1: both are U+FFFD then, and what follows is not eaten."""
    codec = tiny_codec()
    lead, half, late, letter = (
        next(i for i in range(600) if codec.token_bytes(i) == b) for b in (b"\xed", b"\xa1", b"\x80", b"a")
    )
    stream = codec.detokeniser()
    assert [stream.push(i) for i in (lead, half, late, letter)] == ["", "��", "�", "a"]
    assert stream.flush() == ""


def test_special_tokens_are_no_text() -> None:
    """They are skipped wherever they stand, and do not break a character that spans them."""
    codec = tiny_codec()
    left, right = (next(i for i in range(600) if codec.token_bytes(i) == b) for b in (b"\xc3", b"\xa9"))
    assert codec.decode([0, left, 1, right, 2]) == "é"
    assert codec.token_bytes(2) == b"<|im_end|>"


def test_a_continuation_keeps_the_space_before_its_first_word() -> None:
    """SentencePiece marks words with a space in front: no text at the beginning, but text after a prompt."""
    codec = codec_of(sentencepiece_tokenizer())
    ids = codec.encode("the fox")
    begin, go_on = codec.detokeniser(), codec.detokeniser(continuation=True)
    assert "".join([*map(begin.push, ids), begin.flush()]) == "the fox"
    assert "".join([*map(go_on.push, ids), go_on.flush()]) == " the fox"


@pytest.mark.parametrize(
    "decoder", [None, decoders.WordPiece(), decoders.CTC(), decoders.BPEDecoder()], ids=str
)
def test_a_decoder_without_exact_increments_is_refused_by_name(decoder: decoders.Decoder | None) -> None:
    """A tokenizer whose tokens have no bytes of their own is refused, not decoded approximately."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    if decoder is not None:
        tokenizer.decoder = decoder
    with pytest.raises(UnsupportedTokenizer, match="no decoder" if decoder is None else '"type": "'):
        codec_of(tokenizer)


def test_metaspace_and_nested_sequences_are_read() -> None:
    """The older form of a SentencePiece decoder; its scheme decides about the first space."""
    always = parse_decoder({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"})
    never = parse_decoder(
        {
            "type": "Sequence",
            "decoders": [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"}],
        }
    )
    assert (always.strip, never.strip) == (1, 0)
    assert always.replace == (("▁", " "),)
