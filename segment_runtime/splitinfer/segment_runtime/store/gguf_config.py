"""GGUF metadata as a transformers config, and GGUF tensor names as transformers' names. Pure.

Refuses what it does not know: a key of the architecture that is not in the table could change what is computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from splitinfer.segment_runtime.store.errors import DamagedSource, UnsupportedSource

Metadata = Mapping[str, Any]

# GGUF architecture -> transformers' class; model_type is the same word for all of them.
_CLASSES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_COUNTS: Mapping[str, str] = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
}
# Keys that are read or checked one by one.
_OTHERS = {
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
}
_OTHERS |= {"rope.dimension_count", "rope.freq_base", "vocab_size"}
# Keys that say nothing at these values.
_NEUTRAL: Mapping[str, Callable[[Any], bool]] = {
    "rope.scaling.type": lambda value: value == "none",
    "rope.scaling.factor": lambda value: value in (0, 1),
    "expert_count": lambda value: value == 0,
    "expert_used_count": lambda value: value == 0,
    "attention.causal": bool,
}
_BLOCK_NAMES: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER_NAMES: Mapping[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_ROPE_FREQS = "rope_freqs.weight"


def config_of(metadata: Metadata, tensors: AbstractSet[str]) -> dict[str, Any]:
    """A config that transformers' AutoConfig accepts.

    Raises:
        UnsupportedSource: an architecture or an option that is refused by name.
        DamagedSource: a key that is missing or not a number.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _CLASSES:
        raise UnsupportedSource(
            f"general.architecture: {architecture!r} is not one of those read from GGUF ({', '.join(_CLASSES)}); "
            "import the model's Hugging Face folder, or hf://ORG/NAME"
        )
    _refuse_unknown(metadata, f"{architecture}.")
    if _ROPE_FREQS in tensors:
        raise UnsupportedSource(
            f"tensor {_ROPE_FREQS!r}: RoPE scaled by frequency (Llama 3.1) cannot be told from a GGUF; "
            "import the model's Hugging Face folder, or hf://ORG/NAME"
        )
    config: dict[str, Any] = {"model_type": architecture, "architectures": [_CLASSES[architecture]]}
    config |= {field: _count(metadata, f"{architecture}.{key}") for key, field in _COUNTS.items()}
    heads = config["num_attention_heads"]
    config["num_key_value_heads"] = _count(metadata, f"{architecture}.attention.head_count_kv", heads)
    config["head_dim"] = _head_dim(metadata, architecture, config["hidden_size"] // heads)
    tokens = metadata.get("tokenizer.ggml.tokens")
    config["vocab_size"] = _count(metadata, f"{architecture}.vocab_size", len(tokens) if tokens else None)
    config["rms_norm_eps"] = _number(metadata, f"{architecture}.attention.layer_norm_rms_epsilon")
    theta = _number(metadata, f"{architecture}.rope.freq_base", 10000.0)
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    config["tie_word_embeddings"] = "output.weight" not in tensors
    config["hidden_act"] = "silu"
    if architecture == "qwen2":
        del config["head_dim"]
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        config[f"{name}_token_id"] = metadata.get(f"tokenizer.ggml.{key}_token_id")
    return config


def hf_name(metadata: Metadata, name: str) -> str:
    """The transformers name of a GGUF tensor. Raises DamagedSource for one that these architectures do not have."""
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _BLOCK_NAMES:
        raise DamagedSource(f"tensor {name!r} is not one that a {metadata['general.architecture']} model has")
    return f"model.layers.{match[1]}.{_BLOCK_NAMES[match[2]]}.{match[3]}"


def heads_of_rows(config: Mapping[str, Any], name: str) -> int:
    """Rows of one head where llama.cpp has them in another order (q and k of llama), else 1."""
    permuted = config["model_type"] == "llama" and name.endswith(
        ("self_attn.q_proj.weight", "self_attn.k_proj.weight")
    )
    return int(config["head_dim"]) if permuted else 1


def _refuse_unknown(metadata: Metadata, prefix: str) -> None:
    for key, value in metadata.items():
        name = key.removeprefix(prefix)
        if name == key or name in _COUNTS or name in _OTHERS:
            continue
        if name not in _NEUTRAL or not _NEUTRAL[name](value):
            raise UnsupportedSource(
                f"{key}: {value!r} is an option that is not known here and could change what is computed; "
                "import the model's Hugging Face folder, or hf://ORG/NAME"
            )


def _head_dim(metadata: Metadata, architecture: str, default: int) -> int:
    """One width for keys, values and rotation. Raises UnsupportedSource if they differ."""
    sizes = {
        key: _count(metadata, f"{architecture}.{key}", None)
        for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")
        if f"{architecture}.{key}" in metadata
    }
    if len(set(sizes.values())) > 1:
        raise UnsupportedSource(
            f"{architecture}: {sizes}: heads whose keys, values and rotation differ in width"
        )
    return next(iter(sizes.values()), default)


def _count(metadata: Metadata, key: str, default: int | None = None) -> int:
    value = metadata.get(key, default)
    if value is None:
        raise DamagedSource(f"{key} is missing from the GGUF metadata")
    if type(value) is not int or value < 1:
        raise DamagedSource(f"{key} is {value!r}, not one positive whole number")
    return value


def _number(metadata: Metadata, key: str, default: float | None = None) -> float:
    value = metadata.get(key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise DamagedSource(f"{key} is {value!r}, not a number")
    return float(value)
