"""Every architecture of the allow list against transformers' own models, configs and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from splitinfer.segment_runtime.store.architectures import ARCHITECTURES
from splitinfer.segment_runtime.store.dimensions import dimensions_of
from splitinfer.segment_runtime.store.importer import import_model
from splitinfer.segment_runtime.store.index import block_unit
from splitinfer.segment_runtime.store.reader import ModelStore, StoredModel
from splitinfer.segment_runtime.store.shapes import block_shapes, embed_shapes, head_shapes

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ARCHITECTURES},
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("llama", {"head_dim": 24}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "qwen3-bias": ("qwen3", {"attention_bias": True, "head_dim": 8}),
    "gemma2-untied": ("gemma2", {"tie_word_embeddings": False, "head_dim": 16}),
    "gpt_neox-no-bias": ("gpt_neox", {"attention_bias": False, "tie_word_embeddings": True}),
    "gpt2-inner": ("gpt2", {"n_inner": 56, "tie_word_embeddings": False}),
    "opt-no-bias": ("opt", {"enable_bias": False}),
}
from_config: Any = AutoModelForCausalLM.from_config  # transformers has no types for it
GPT2_NAMES = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
GPT2_NAMES |= {"max_position_embeddings": "n_positions"}


def config_of(option: str) -> Any:
    """Transformers' config of a small model."""
    kind, change = OPTIONS[option]
    fields = SMALL | change
    if kind == "gpt2":
        fields = {GPT2_NAMES.get(key, key): value for key, value in fields.items()}
    if kind == "opt":
        fields |= {"ffn_dim": 48, "word_embed_proj_dim": 32}
    return AutoConfig.for_model(kind, **fields)


def checkpoint_names(model: StoredModel) -> dict[str, np.ndarray[Any, Any]]:
    """All stored tensors under the checkpoint's names."""
    architecture = model.architecture
    found: dict[str, np.ndarray[Any, Any]] = {}
    for outer, unit in ((architecture.embed, "embed"), (architecture.head, "head")):
        tensors = model.read_unit(unit)
        found |= {name: tensors.pop(inside) for name, inside in outer.items() if inside in tensors}
        assert not tensors
    for block in range(model.index.blocks):
        for name, tensor in model.read_unit(block_unit(block)).items():
            found[f"{architecture.block_prefix}.{block}.{name}"] = tensor
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("option", OPTIONS)
def test_stored_weights_are_the_models(
    tmp_path: Path, store: ModelStore, option: str, dtype: torch.dtype
) -> None:
    """What transformers saves is imported: equal bits under equal names, and the sizes of its config and cache."""
    model = from_config(config_of(option), dtype=dtype)
    model.save_pretrained(tmp_path / "m")
    stored = import_model(tmp_path / "m", store=store, require_tokenizer=False)
    found = checkpoint_names(stored)
    expected = dict(model.state_dict())
    head = expected.pop("lm_head.weight")
    if not model.config.tie_word_embeddings:
        name = next(name for name, inside in stored.architecture.head.items() if inside == "lm_head.weight")
        expected[name] = head
    assert found.keys() == expected.keys()
    width = torch.int32 if dtype == torch.float32 else torch.int16
    for name, tensor in expected.items():
        bits = tensor.view(width).numpy()
        np.testing.assert_array_equal(found[name].view(bits.dtype), bits, err_msg=name)
    index = stored.index
    assert index.dtype == str(dtype).removeprefix("torch.")
    assert index.tied_embeddings == model.config.tie_word_embeddings
    assert (index.hidden_size, index.vocab_size, index.blocks) == (32, 64, 3)
    assert index.max_context_tokens == 40
    # What the cache of the real model holds per token, which is what the KV budget is reckoned with.
    cache = model(torch.tensor([[3, 4, 5]]), use_cache=True).past_key_values
    assert tuple(cache.layers[0].keys.shape) == (1, index.kv_heads, 3, index.head_dim)
    # The stored config is the same model to transformers.
    assert AutoConfig.from_pretrained(stored.path).to_diff_dict() == model.config.to_diff_dict()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_fields_left_out_mean_what_transformers_takes(kind: str) -> None:
    """A config.json with nothing optional: sizes and tying as transformers' class has them; shapes as its model's."""
    reference = AutoConfig.for_model(kind)
    needed = {
        "hidden_size",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
        "max_position_embeddings",
    }
    needed |= {"intermediate_size", "ffn_dim"}
    full = json.loads(reference.to_json_string(use_diff=False))
    names = {GPT2_NAMES.get(key, key) if kind == "gpt2" else key for key in needed}
    bare = {"model_type": kind} | {key: value for key, value in full.items() if key in names}
    dims = dimensions_of(bare)
    assert dims.tied == reference.tie_word_embeddings
    assert dims.blocks == reference.num_hidden_layers
    with torch.device("meta"):
        model = from_config(AutoConfig.for_model(kind))
    architecture = ARCHITECTURES[kind]
    embed, head = embed_shapes(architecture, dims), head_shapes(architecture, dims)
    expected = {name: embed[inside] for name, inside in architecture.embed.items()}
    expected |= {name: head[inside] for name, inside in architecture.head.items()}
    for block in range(dims.blocks):
        shapes = block_shapes(kind, bare, dims)
        expected |= {f"{architecture.block_prefix}.{block}.{name}": shape for name, shape in shapes.items()}
    found = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    if kind == "gpt_neox":  # lm_head in memory, embed_out in files
        found["embed_out.weight"] = found.pop("lm_head.weight")
    assert found == expected
    assert type(model).__name__ == architecture.class_name
