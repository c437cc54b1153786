"""How many bytes of text one token can take at most, so that a hopeless prompt is refused without tokenising it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from splitinfer.segment_runtime.text.pieces import Pieces, byte_alphabet

# Normalisers that keep every byte or more, and those that compose characters: by at most a factor of 4 in UTF-8
# (three bytes of a Hangul syllable from nine of its jamo; one byte from a four-byte compatibility letter).
_KEEPING = {"Replace", "Prepend"}
_COMPOSING = {"NFC": 4, "NFKC": 4}
_KEEPING_PRE_TOKENIZERS = {"ByteLevel", "Digits", "Metaspace", "Split"}


@dataclass(frozen=True, slots=True)
class TokenBound:
    """A lower bound on the tokens of a text.

    Attributes:
        bytes_per_token: the most bytes of input that one token can stand for.
        vanishing: bytes that the vocabulary lacks; the tokenizer drops them (SmolLM2 lacks some control characters).
    """

    bytes_per_token: int
    vanishing: bytes = b""

    def minimum_tokens(self, text: str) -> int:
        """Never more than the tokens of ``text``. One pass over its bytes."""
        size = len(text.encode().translate(None, self.vanishing))
        return -(-size // self.bytes_per_token)


def bound_of(document: Mapping[str, Any], tokenizer: Tokenizer, pieces: Pieces) -> TokenBound | None:
    """The bound of a tokenizer, or None where nothing bounds it.

    Nothing bounds it where text can vanish (stripping, removing splits, tokens that swallow the space around
    them) or where a run of unknown characters becomes one unknown token.
    """
    model = document.get("model") or {}
    vanishing = _missing_bytes(tokenizer, byte_level=pieces.steps.byte_level)
    if model.get("type") != "BPE":
        return None
    if not pieces.steps.byte_level and (vanishing or not model.get("byte_fallback")):
        return None
    factor = 1
    for step in _flatten(document.get("normalizer"), "normalizers"):
        kind = step.get("type")
        if kind in _COMPOSING and not vanishing:
            factor *= _COMPOSING[kind]
        elif kind not in _KEEPING or (kind == "Replace" and not _keeps(step)):
            return None
    for step in _flatten(document.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") not in _KEEPING_PRE_TOKENIZERS or step.get("behavior") == "Removed":
            return None
    if any(token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values()):
        return None
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    return TokenBound(factor * max((len(pieces.token_bytes(i)) for i in ids), default=1), vanishing)


def _missing_bytes(tokenizer: Tokenizer, *, byte_level: bool) -> bytes:
    """The bytes of UTF-8 that no token of their own stands for."""
    names = (
        {byte: name for name, byte in byte_alphabet().items()}
        if byte_level
        else {byte: f"<0x{byte:02X}>" for byte in range(256)}
    )
    used = (*range(0x80, 0xC0), *range(0xC2, 0xF5), *range(0x80))
    return bytes(byte for byte in used if tokenizer.token_to_id(names[byte]) is None)


def _keeps(step: Mapping[str, Any]) -> bool:
    """A replacement of a fixed string by one that is not shorter."""
    pattern = step.get("pattern") or {}
    old, new = pattern.get("String"), step.get("content")
    return isinstance(old, str) and isinstance(new, str) and len(new.encode()) >= len(old.encode())


def _flatten(step: Mapping[str, Any] | None, inner: str) -> Iterator[Mapping[str, Any]]:
    if step is None:
        return
    if step.get("type") == "Sequence":
        for part in step.get(inner, []):
            yield from _flatten(part, inner)
    else:
        yield step
