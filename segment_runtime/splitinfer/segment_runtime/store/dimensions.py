"""The sizes of a model, out of its ``config.json``, whatever the architecture calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from splitinfer.segment_runtime.store.errors import DamagedSource

# What transformers takes where a config.json leaves a field out; held against transformers in a test. None: no such field.
_KV_HEADS: Mapping[str, int] = {"mistral": 8, "qwen2": 32, "qwen3": 32, "gemma2": 4, "gemma3_text": 4}
_HEAD_DIM: Mapping[str, int] = {"qwen3": 128, "gemma2": 256, "gemma3_text": 256}
_TIED = frozenset({"gemma2", "gemma3_text", "gpt2", "opt"})
# Architectures whose config has neither field, whatever a file says.
_MULTI_HEAD = frozenset({"gpt2", "gpt_neox", "opt"})
_FIXED_HEAD_DIM = _MULTI_HEAD | {"phi3", "qwen2"}


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Counts of a decoder. ``inner``: width of the MLP; ``max_context``: positions the model was made for."""

    blocks: int
    hidden: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    max_context: int
    tied: bool


def dimensions_of(config: Mapping[str, Any]) -> Dimensions:
    """Read the sizes of a config whose ``model_type`` is on the allow list.

    Raises:
        DamagedSource: a field that is missing or is not a positive whole number, by name.
    """
    kind = str(config.get("model_type"))
    gpt2 = kind == "gpt2"
    hidden = count(config, "n_embd" if gpt2 else "hidden_size")
    heads = count(config, "n_head" if gpt2 else "num_attention_heads")
    kv_heads = heads
    if kind not in _MULTI_HEAD:
        kv_heads = count(config, "num_key_value_heads", _KV_HEADS.get(kind, heads))
    if kind in _FIXED_HEAD_DIM or (kind not in _HEAD_DIM and config.get("head_dim") is None):
        if hidden % heads:
            raise DamagedSource(
                f"config.json: hidden size {hidden} is not a multiple of its {heads} attention heads"
            )
        head_dim = hidden // heads
    else:
        head_dim = count(config, "head_dim", _HEAD_DIM.get(kind))
    if heads % kv_heads:
        raise DamagedSource(
            f"config.json: {heads} attention heads do not share {kv_heads} key/value heads evenly"
        )
    inner_name = {"gpt2": "n_inner", "opt": "ffn_dim"}.get(kind, "intermediate_size")
    return Dimensions(
        blocks=count(config, "n_layer" if gpt2 else "num_hidden_layers"),
        hidden=hidden,
        vocab=count(config, "vocab_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        inner=count(config, inner_name, 4 * hidden if gpt2 else None),
        max_context=count(config, "n_positions" if gpt2 else "max_position_embeddings"),
        tied=flag(config, "tie_word_embeddings", kind in _TIED),
    )


def count(config: Mapping[str, Any], field: str, default: int | None = None) -> int:
    """A positive whole number; a field that is absent or null takes the default. Raises DamagedSource, naming it."""
    value = config.get(field)
    if value is None:
        value = default
    if value is None:
        raise DamagedSource(f"config.json: {field} is missing; a {config.get('model_type')} model needs it")
    if type(value) is not int or value < 1:
        raise DamagedSource(f"config.json: {field} is {value!r}, not a positive whole number")
    return value


def flag(config: Mapping[str, Any], field: str, default: bool) -> bool:
    """A boolean; absent takes the default. Raises DamagedSource, naming the field."""
    value = config.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise DamagedSource(f"config.json: {field} is {value!r}, not true or false")
    return value
