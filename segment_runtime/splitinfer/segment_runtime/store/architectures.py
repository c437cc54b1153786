"""The allow list: which architectures can be cut, and where their tensors live.

Pure data, no tensor library. A key in ``embed`` and ``head`` maps the checkpoint's tensor name to its name
inside the unit file; a block's tensors lose the prefix ``block_prefix.N.``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from splitinfer.segment_runtime.store.errors import UnsupportedSource


@dataclass(frozen=True, slots=True)
class Architecture:
    """One entry of the allow list.

    Attributes:
        model_type: transformers' ``config.model_type``.
        class_name: transformers' ``architectures[0]``.
        block_prefix: checkpoint prefix of block ``N``, followed by ``.N.``.
        embed: checkpoint name -> unit name; ``tokens`` always, ``positions`` where they are learned.
        head: checkpoint name -> unit name; ``norm.weight``, ``norm.bias``, ``lm_head.weight``, ``lm_head.bias``.
        position_offset: added to a position before it indexes the learned position table (OPT: 2).
        embed_scale: the token embedding is multiplied by sqrt(hidden_size), rounded to the dtype (Gemma).
        ignored: checkpoint suffixes that carry nothing (buffers that old checkpoints stored).
    """

    model_type: str
    class_name: str
    block_prefix: str
    embed: Mapping[str, str]
    head: Mapping[str, str]
    position_offset: int = 0
    embed_scale: bool = False
    ignored: tuple[str, ...] = field(default=())


def _llama_like(model_type: str, class_name: str, *, embed_scale: bool = False) -> Architecture:
    return Architecture(
        model_type=model_type,
        class_name=class_name,
        block_prefix="model.layers",
        embed={"model.embed_tokens.weight": "tokens"},
        head={"model.norm.weight": "norm.weight", "lm_head.weight": "lm_head.weight"},
        embed_scale=embed_scale,
        ignored=("rotary_emb.inv_freq",),
    )


ARCHITECTURES: Mapping[str, Architecture] = {
    a.model_type: a
    for a in (
        _llama_like("llama", "LlamaForCausalLM"),
        _llama_like("mistral", "MistralForCausalLM"),
        _llama_like("qwen2", "Qwen2ForCausalLM"),
        _llama_like("qwen3", "Qwen3ForCausalLM"),
        _llama_like("gemma2", "Gemma2ForCausalLM", embed_scale=True),
        _llama_like("gemma3_text", "Gemma3ForCausalLM", embed_scale=True),
        _llama_like("phi3", "Phi3ForCausalLM"),
        Architecture(
            model_type="gpt_neox",
            class_name="GPTNeoXForCausalLM",
            block_prefix="gpt_neox.layers",
            embed={"gpt_neox.embed_in.weight": "tokens"},
            head={
                "gpt_neox.final_layer_norm.weight": "norm.weight",
                "gpt_neox.final_layer_norm.bias": "norm.bias",
                "embed_out.weight": "lm_head.weight",
            },
            ignored=("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"),
        ),
        Architecture(
            model_type="gpt2",
            class_name="GPT2LMHeadModel",
            block_prefix="transformer.h",
            embed={"transformer.wte.weight": "tokens", "transformer.wpe.weight": "positions"},
            head={
                "transformer.ln_f.weight": "norm.weight",
                "transformer.ln_f.bias": "norm.bias",
                "lm_head.weight": "lm_head.weight",
            },
            ignored=("attn.bias", "attn.masked_bias"),
        ),
        Architecture(
            model_type="opt",
            class_name="OPTForCausalLM",
            block_prefix="model.decoder.layers",
            embed={
                "model.decoder.embed_tokens.weight": "tokens",
                "model.decoder.embed_positions.weight": "positions",
            },
            head={
                "model.decoder.final_layer_norm.weight": "norm.weight",
                "model.decoder.final_layer_norm.bias": "norm.bias",
                "lm_head.weight": "lm_head.weight",
            },
            position_offset=2,
        ),
    )
}


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The allow-list entry of a ``config.json``.

    Raises:
        UnsupportedSource: custom code, or an architecture that is not on the list, by name.
    """
    if "auto_map" in config:
        raise UnsupportedSource(
            "config.json: auto_map asks for code from the model folder; splitinfer never runs it. "
            "Use a checkpoint whose architecture transformers has itself."
        )
    model_type = str(config.get("model_type", ""))
    if model_type not in ARCHITECTURES:
        raise UnsupportedSource(
            f"config.json: model_type {model_type!r} is not on the allow list ({', '.join(sorted(ARCHITECTURES))}): "
            "its blocks have no recipe that was held against transformers' own model"
        )
    found = ARCHITECTURES[model_type]
    if model_type == "opt":
        if config.get("word_embed_proj_dim", config.get("hidden_size")) != config.get("hidden_size"):
            raise UnsupportedSource(
                "config.json: word_embed_proj_dim differs from hidden_size (OPT-350m): not supported"
            )
        if not config.get("layer_norm_elementwise_affine", True):
            raise UnsupportedSource(
                "config.json: layer_norm_elementwise_affine=false: norms without weights are not supported"
            )
        if not config.get("do_layer_norm_before", True):
            raise UnsupportedSource(
                "config.json: do_layer_norm_before=false (OPT-350m) has no final norm: not supported"
            )
    if config.get("quantization_config"):
        raise UnsupportedSource(
            "config.json: quantization_config: a quantised checkpoint cannot be read; import the float one"
        )
    return found
