"""What each token id contributes to the text, as bytes.

A token may be half a character, so text cannot be built token by token from strings; from bytes it can,
exactly. This reads the decoder of ``tokenizer.json`` and inverts it once per id: the byte alphabet of GPT-2
(``ByteLevel``), or SentencePiece's word marker and ``<0xNN>`` bytes (``Replace``, ``ByteFallback``,
``Metaspace``). A decoder that looks at neighbouring tokens has no such table and is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

from splitinfer.segment_runtime.text.errors import UnsupportedTokenizer

_SUPPORTED = (
    "ByteLevel, ByteFallback, Metaspace, Replace of a string, Fuse, Strip after Fuse, and sequences of them"
)


@dataclass(frozen=True, slots=True)
class DecoderSteps:
    """The decoder of a tokenizer, flattened.

    Attributes:
        byte_level: tokens are written in the byte alphabet.
        byte_fallback: ``<0xNN>`` is a byte.
        replace: pairs applied to each token in order.
        strip: how many spaces go from the very beginning of a text.
    """

    byte_level: bool = False
    byte_fallback: bool = False
    replace: tuple[tuple[str, str], ...] = ()
    strip: int = 0


def parse_decoder(decoder: Mapping[str, Any] | None) -> DecoderSteps:
    """Read the ``decoder`` of a ``tokenizer.json``.

    Raises:
        UnsupportedTokenizer: a step that this cannot invert exactly.
    """
    byte_level = byte_fallback = fused = False
    replace: list[tuple[str, str]] = []
    strip = 0
    for step in _flatten(decoder):
        match step:
            case {"type": "ByteLevel"}:
                byte_level = True
            case {"type": "ByteFallback"}:
                byte_fallback = True
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                replace.append((old, new))
            case {"type": "Metaspace", "replacement": str(marker), **rest}:
                replace.append((marker, " "))
                strip = 0 if rest.get("prepend_scheme") == "never" else 1
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0} if fused:
                strip = start
            case _:
                raise UnsupportedTokenizer(
                    f"tokenizer: decoder step {json.dumps(step)} has no exact increments; supported are {_SUPPORTED}"
                )
    return DecoderSteps(byte_level, byte_fallback, tuple(replace), strip)


def _flatten(decoder: Mapping[str, Any] | None) -> list[Any]:
    if decoder is None:
        raise UnsupportedTokenizer(f"tokenizer: it has no decoder; supported are {_SUPPORTED}")
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder.get("decoders", []) for step in _flatten(inner)]
    return [decoder]


@lru_cache(maxsize=1)
def byte_alphabet() -> Mapping[str, int]:
    """GPT-2's printable character for each byte, inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class Pieces:
    """Token id -> bytes, and which ids are no text."""

    def __init__(self, tokenizer: Tokenizer, decoder: Mapping[str, Any] | None) -> None:
        """Read the decoder and the special tokens.

        Raises:
            UnsupportedTokenizer: as `parse_decoder`.
        """
        self.steps = parse_decoder(decoder)
        added = tokenizer.get_added_tokens_decoder()
        self.special: frozenset[int] = frozenset(i for i, token in added.items() if token.special)
        self._token_of: Callable[[int], str | None] = tokenizer.id_to_token
        self._cache: dict[int, bytes] = {}

    def text_bytes(self, token: int) -> bytes:
        """What the token adds to the text; nothing for special tokens and for ids that no token has."""
        return b"" if token in self.special else self.token_bytes(token)

    def token_bytes(self, token: int) -> bytes:
        """The token's own bytes, of special tokens too (logprobs show them)."""
        found = self._cache.get(token)
        if found is None:
            name = self._token_of(token) if token >= 0 else None
            found = b"" if name is None else self._bytes_of(name)
            self._cache[token] = found
        return found

    def _bytes_of(self, name: str) -> bytes:
        if self.steps.byte_level:
            try:
                return bytes(map(byte_alphabet().__getitem__, name))
            except KeyError:  # an added token, written as it is
                return name.encode()
        for old, new in self.steps.replace:
            name = name.replace(old, new)
        if self.steps.byte_fallback and len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            try:
                return bytes.fromhex(name[3:5])
            except ValueError:
                pass
        return name.encode()
