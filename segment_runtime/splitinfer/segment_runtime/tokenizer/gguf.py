"""The tokenizer of a GGUF file, built with the tokenizers library from the file's metadata.

A GGUF has vocabulary and merges but only the *name* of the pre-tokenizer. The names that are known here give the
tokenizer that the model was trained with; where transformers' own GGUF reader gives another one, docs/models.md says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from splitinfer.segment_runtime.store.errors import DamagedSource, UnsupportedSource
from splitinfer.segment_runtime.store.hf_folder import checked_template

_CONTROL, _USER_DEFINED = 3, 4

# Words, numbers of up to three digits, signs, line ends, spaces: Llama 3.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The same with single digits: Qwen 2 and 3.
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """A ``tokenizer.json`` and what goes with it."""

    json: bytes
    chat_template: str | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


def read_tokenizer(metadata: Mapping[str, Any]) -> GgufTokenizer:
    """Build the tokenizer.

    Raises:
        UnsupportedSource: a kind or a pre-tokenizer that is not known, by name.
        DamagedSource: metadata that is missing or does not fit together.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise UnsupportedSource(
            f"tokenizer.ggml.model: {kind!r} is not read from GGUF, only byte-level BPE ('gpt2'); "
            "import the model's Hugging Face folder, or hf://ORG/NAME"
        )
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in _PRE_TOKENIZERS:
        raise UnsupportedSource(
            f"tokenizer.ggml.pre: {pre!r} is not one of those known ({', '.join(sorted(_PRE_TOKENIZERS))}); "
            "import the model's Hugging Face folder, or hf://ORG/NAME"
        )
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    tokenizer = Tokenizer(_bpe(tokens, _strings(metadata, "tokenizer.ggml.merges"), pre))
    if pre in _QWEN:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, tokens, metadata.get("tokenizer.ggml.token_type") or [])
    bos = _id(metadata, "bos", tokens)
    eos = _id(metadata, "eos", tokens)
    # llama.cpp adds the first token where the file does not say, for the families that were trained with it.
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", pre in _LLAMA))
    add_eos = bool(metadata.get("tokenizer.ggml.add_eos_token", False))
    _add_ends(tokenizer, tokens, bos if add_bos else None, eos if add_eos else None)
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise DamagedSource("tokenizer.chat_template is not text")
    if template is not None:
        checked_template("tokenizer.chat_template", template)
    ends = (eos, _id(metadata, "eot", tokens), _id(metadata, "eom", tokens))
    return GgufTokenizer(
        json=tokenizer.to_str().encode(),
        chat_template=template,
        bos_token_id=bos,
        eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
    )


def _byte_level() -> Any:
    """GPT-2's own splitting."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _digits_first() -> Any:
    """Every digit by itself, before anything else: the space before a number is never part of it."""
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


def _split(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_LLAMA = frozenset({"llama-bpe", "llama3", "llama-v3"})
_QWEN = frozenset({"qwen2", "deepseek-r1-qwen"})
_PRE_TOKENIZERS: Mapping[str, Callable[[], Any]] = {
    "default": _byte_level,
    "gpt-2": _byte_level,
    "smollm": _digits_first,
    **{name: lambda: _split(_LLAMA3) for name in _LLAMA},
    **{name: lambda: _split(_QWEN2) for name in _QWEN},
}


def _bpe(tokens: list[str], merges: list[str], pre: str) -> Any:
    pairs = []
    for merge in merges:
        left, space, right = merge.partition(" ")
        if not (left and space and right) or " " in right:
            raise DamagedSource(f"tokenizer.ggml.merges: {merge!r} is not two pieces")
        pairs.append((left, right))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    try:
        # Llama 3 takes a whole word that is in the vocabulary before it tries merges.
        return models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre in _LLAMA)
    except Exception as error:  # the library raises bare Exception
        raise DamagedSource(f"tokenizer.ggml.merges: {error}") from error


def _add_tokens(tokenizer: Any, tokens: list[str], types: list[int]) -> None:
    """Control tokens are special, user-defined ones are plain text that is never cut."""
    if types and len(types) != len(tokens):
        raise DamagedSource(f"tokenizer.ggml.token_type: {len(types)} types for {len(tokens)} tokens")
    typed = list(zip(tokens, types, strict=False))
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t, kind in typed if kind == _CONTROL]
    )
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False, special=False) for t, kind in typed if kind == _USER_DEFINED]
    )


def _add_ends(tokenizer: Any, tokens: list[str], bos: int | None, eos: int | None) -> None:
    ends = [end for end in (bos, eos) if end is not None]
    if not ends:
        return
    first = [tokens[bos]] if bos is not None else []
    last = [tokens[eos]] if eos is not None else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *[f"{t}:1" for t in first], "$B:1", *[f"{t}:1" for t in last]],
        special_tokens=[(tokens[end], end) for end in dict.fromkeys(ends)],
    )


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DamagedSource(f"{key} is missing from the GGUF metadata or is not a list of strings")
    return value


def _id(metadata: Mapping[str, Any], name: str, tokens: list[str]) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.get(key)
    if value is not None and not (isinstance(value, int) and 0 <= value < len(tokens)):
        raise DamagedSource(f"{key} is {value!r}; the vocabulary has {len(tokens)} tokens")
    return value
