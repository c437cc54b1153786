"""Which tensors a model of the allow list has, and their shapes: pure, from the config alone.

With it every tensor of a checkpoint is accounted for: what is not expected and what is missing has a name.
Held against transformers' own models, on the meta device, in a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from splitinfer.segment_runtime.store.architectures import Architecture
from splitinfer.segment_runtime.store.dimensions import Dimensions, flag

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


def embed_shapes(architecture: Architecture, dims: Dimensions) -> Shapes:
    """Unit name -> shape of the embeddings: ``tokens``, and ``positions`` where they are learned."""
    shapes: Shapes = {"tokens": (dims.vocab, dims.hidden)}
    if "positions" in architecture.embed.values():
        shapes["positions"] = (dims.max_context + architecture.position_offset, dims.hidden)
    return shapes


def head_shapes(architecture: Architecture, dims: Dimensions) -> Shapes:
    """Unit name -> shape of the final norm and the LM head, the head as if it were not tied."""
    names = architecture.head.values()
    return {name: (dims.vocab, dims.hidden) if name == "lm_head.weight" else (dims.hidden,) for name in names}


def block_shapes(model_type: str, config: Mapping[str, Any], dims: Dimensions) -> Shapes:
    """Unit name -> shape of one block; every block of a model has the same."""
    if model_type == "gpt2":
        return _gpt2(dims)
    if model_type == "gpt_neox":
        return _gpt_neox(config, dims)
    if model_type == "opt":
        return _opt(config, dims)
    if model_type == "phi3":
        return _phi3(dims)
    return _llama_like(model_type, config, dims)


def _linear(name: str, rows: int, columns: int, bias: bool) -> Shapes:
    weight: Shapes = {f"{name}.weight": (rows, columns)}
    return weight | ({f"{name}.bias": (rows,)} if bias else {})


def _norm(name: str, width: int, bias: bool) -> Shapes:
    return {f"{name}.{part}": (width,) for part in (("weight", "bias") if bias else ("weight",))}


def _llama_like(model_type: str, config: Mapping[str, Any], d: Dimensions) -> Shapes:
    # Qwen2 has biases on q, k and v without saying so; the others say so, for o as well.
    attention_bias = flag(config, "attention_bias", False) and model_type not in ("mistral", "qwen2")
    qkv_bias = attention_bias or model_type == "qwen2"
    mlp_bias = flag(config, "mlp_bias", False) and model_type == "llama"
    q, kv = d.heads * d.head_dim, d.kv_heads * d.head_dim
    shapes = {
        **_norm("input_layernorm", d.hidden, False),
        **_norm("post_attention_layernorm", d.hidden, False),
        **_linear("self_attn.q_proj", q, d.hidden, qkv_bias),
        **_linear("self_attn.k_proj", kv, d.hidden, qkv_bias),
        **_linear("self_attn.v_proj", kv, d.hidden, qkv_bias),
        **_linear("self_attn.o_proj", d.hidden, q, attention_bias),
        **_linear("mlp.gate_proj", d.inner, d.hidden, mlp_bias),
        **_linear("mlp.up_proj", d.inner, d.hidden, mlp_bias),
        **_linear("mlp.down_proj", d.hidden, d.inner, mlp_bias),
    }
    if model_type in ("qwen3", "gemma3_text"):
        shapes |= _norm("self_attn.q_norm", d.head_dim, False) | _norm("self_attn.k_norm", d.head_dim, False)
    if model_type in ("gemma2", "gemma3_text"):
        shapes |= _norm("pre_feedforward_layernorm", d.hidden, False)
        shapes |= _norm("post_feedforward_layernorm", d.hidden, False)
    return shapes


def _phi3(d: Dimensions) -> Shapes:
    q, kv = d.heads * d.head_dim, d.kv_heads * d.head_dim
    return {
        **_norm("input_layernorm", d.hidden, False),
        **_norm("post_attention_layernorm", d.hidden, False),
        **_linear("self_attn.qkv_proj", q + 2 * kv, d.hidden, False),
        **_linear("self_attn.o_proj", d.hidden, q, False),
        **_linear("mlp.gate_up_proj", 2 * d.inner, d.hidden, False),
        **_linear("mlp.down_proj", d.hidden, d.inner, False),
    }


def _gpt_neox(config: Mapping[str, Any], d: Dimensions) -> Shapes:
    bias = flag(config, "attention_bias", True)
    return {
        **_norm("input_layernorm", d.hidden, True),
        **_norm("post_attention_layernorm", d.hidden, True),
        **_linear("attention.query_key_value", 3 * d.hidden, d.hidden, bias),
        **_linear("attention.dense", d.hidden, d.hidden, bias),
        **_linear("mlp.dense_h_to_4h", d.inner, d.hidden, True),
        **_linear("mlp.dense_4h_to_h", d.hidden, d.inner, True),
    }


def _gpt2(d: Dimensions) -> Shapes:
    # GPT-2's linear layers are convolutions of width one: input before output.
    return {
        **_norm("ln_1", d.hidden, True),
        **_norm("ln_2", d.hidden, True),
        "attn.c_attn.weight": (d.hidden, 3 * d.hidden),
        "attn.c_attn.bias": (3 * d.hidden,),
        "attn.c_proj.weight": (d.hidden, d.hidden),
        "attn.c_proj.bias": (d.hidden,),
        "mlp.c_fc.weight": (d.hidden, d.inner),
        "mlp.c_fc.bias": (d.inner,),
        "mlp.c_proj.weight": (d.inner, d.hidden),
        "mlp.c_proj.bias": (d.hidden,),
    }


def _opt(config: Mapping[str, Any], d: Dimensions) -> Shapes:
    bias = flag(config, "enable_bias", True)
    shapes = _norm("self_attn_layer_norm", d.hidden, True) | _norm("final_layer_norm", d.hidden, True)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= _linear(f"self_attn.{name}", d.hidden, d.hidden, bias)
    return shapes | _linear("fc1", d.inner, d.hidden, bias) | _linear("fc2", d.hidden, d.inner, bias)
