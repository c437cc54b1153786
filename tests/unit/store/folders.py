"""Small Hugging Face folders, written with numpy and the safetensors library: no torch, nothing of the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from splitinfer.segment_runtime.store.architectures import ARCHITECTURES
from splitinfer.segment_runtime.store.dimensions import dimensions_of
from splitinfer.segment_runtime.store.shapes import block_shapes, embed_shapes, head_shapes

Tensors = dict[str, NDArray[Any]]

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 20,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tokenizer_json() -> bytes:
    """A word tokenizer of the model's size."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(20)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str().encode()


def random_tensors(config: Mapping[str, Any], seed: int = 0, dtype: Any = np.float32) -> Tensors:
    """Every tensor that a model of this config has, under the checkpoint's names, the LM head too."""
    rng = np.random.default_rng(seed)
    architecture, dims = ARCHITECTURES[config["model_type"]], dimensions_of(config)
    shapes = {name: embed_shapes(architecture, dims)[unit] for name, unit in architecture.embed.items()}
    shapes |= {name: head_shapes(architecture, dims)[unit] for name, unit in architecture.head.items()}
    for block in range(dims.blocks):
        for name, shape in block_shapes(config["model_type"], config, dims).items():
            shapes[f"{architecture.block_prefix}.{block}.{name}"] = shape
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def write_folder(
    path: Path, config: Mapping[str, Any] = CONFIG, tensors: Tensors | None = None, *, shards: int = 1
) -> Tensors:
    """Write config, tokenizer and weights; returns the weights."""
    path.mkdir(parents=True)
    tensors = random_tensors(config) if tensors is None else tensors
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_bytes(tokenizer_json())
    if shards == 1:
        save_file(tensors, path / "model.safetensors")
        return tensors
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[shard::shards]}
        save_file(part, path / name)
        weight_map |= dict.fromkeys(part, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors
