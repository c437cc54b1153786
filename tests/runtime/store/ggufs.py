"""Small GGUF files, written with the gguf package from transformers' models as llama.cpp's converter lays them out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
OUTER |= {"lm_head.weight": "output.weight"}

CONTROL, USER_DEFINED, NORMAL = 3, 4, 1


def gguf_name(name: str) -> str:
    """The GGUF name of a transformers tensor."""
    if name in OUTER:
        return OUTER[name]
    _, _, block, *middle, last = name.split(".")
    return f"blk.{block}.{PARTS['.'.join(middle)]}.{last}"


def permute(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """As llama.cpp's converter for Llama reorders q and k: pairs half a head apart become neighbours."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def train_bpe(texts: Iterable[str], pre_tokenizer: Any, size: int = 400) -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE that was trained with this pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    vocab = tokenizer.get_vocab()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return sorted(vocab, key=lambda token: vocab[token]), [" ".join(merge) for merge in merges]


def write_gguf(
    path: Path,
    model: Any,
    *,
    quantisation: str = "F32",
    tokens: list[str] | None = None,
    merges: list[str] | None = None,
    pre: str | None = "default",
    extra: dict[str, Any] | None = None,
    types: dict[str, int] | None = None,
    more: dict[str, np.ndarray[Any, Any]] | None = None,
) -> None:
    """Write model, metadata and tokenizer.

    Args:
        path: the new file.
        model: a Llama, Qwen2 or Qwen3 of transformers.
        quantisation: of the matrices; vectors are float32.
        tokens: the vocabulary, by default one token per byte.
        merges: of the vocabulary.
        pre: name of the pre-tokenizer.
        extra: more metadata, or other values, of type string, bool, int or float; None takes a key away.
        types: tokens that are not normal ones.
        more: tensors under GGUF names.
    """
    config = model.config
    kind = config.model_type
    tokens = tokens or [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    tokens = tokens + [f"[PAD{i}]" for i in range(len(tokens), config.vocab_size)]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    metadata: dict[str, Any] = {
        f"{kind}.context_length": config.max_position_embeddings,
        f"{kind}.block_count": config.num_hidden_layers,
        f"{kind}.feed_forward_length": config.intermediate_size,
        f"{kind}.embedding_length": config.hidden_size,
        f"{kind}.attention.head_count": config.num_attention_heads,
        f"{kind}.attention.head_count_kv": config.num_key_value_heads,
        f"{kind}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{kind}.rope.freq_base": 12345.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    metadata |= (
        {f"{kind}.rope.dimension_count": head_dim}
        if kind == "llama"
        else {f"{kind}.attention.key_length": head_dim}
    )
    writer = GGUFWriter(path, kind)
    add: dict[type, Any] = {
        str: writer.add_string,
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
    }
    for key, value in (metadata | (extra or {})).items():
        if value is not None:
            add[type(value)](key, value)
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.merges", merges or ["a b"])
    writer.add_array("tokenizer.ggml.token_type", [(types or {}).get(token, NORMAL) for token in tokens])
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        array = tensor.numpy()
        if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = permute(array, heads)
        kind_of = GGMLQuantizationType[quantisation if array.ndim > 1 else "F32"]
        writer.add_tensor(gguf_name(name), quantize(np.ascontiguousarray(array), kind_of), raw_dtype=kind_of)
    for name, array in (more or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
