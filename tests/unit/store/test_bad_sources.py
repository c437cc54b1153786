"""Bad input: each a StoreError that names the file or field and the mend, with nothing left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from splitinfer.segment_runtime.store.errors import (
    DamagedSource,
    StoreError,
    UnsupportedSource,
)
from splitinfer.segment_runtime.store.importer import import_model
from splitinfer.segment_runtime.store.reader import ModelStore
from tests.unit.store.folders import write_folder

WEIGHTS = "model.safetensors"
SHARDS = "model.safetensors.index.json"


def config(folder: Path, **change: Any) -> None:
    """Change fields of config.json; None takes one away."""
    content = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the tensors in place."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def header(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the header of the weights, not their bytes."""
    data = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    content = json.loads(data[8 : 8 + length])
    change(content)
    text = json.dumps(content).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def to_pickle(folder: Path) -> None:
    """A folder as old checkpoints are."""
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def to_shards(folder: Path, shard: Any) -> None:
    """An index that names a shard of this name."""
    names = list(load_file(folder / WEIGHTS))
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    (folder / SHARDS).write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))


def stray(folder: Path) -> None:
    """A tensor that is in the shard and not in its index."""
    to_shards(folder, "model-00001-of-00001.safetensors")
    content = json.loads((folder / SHARDS).read_text())
    del content["weight_map"]["lm_head.weight"]
    (folder / SHARDS).write_text(json.dumps(content))


def no_weight_map(folder: Path) -> None:
    """An index without its map."""
    to_shards(folder, "a.safetensors")
    (folder / SHARDS).write_text("{}")


def poison(name: str, value: float) -> Callable[[Path], None]:
    """One element that is not finite, the last one."""

    def change(tensors: dict[str, Any]) -> None:
        tensors[name].flat[-1] = value

    return lambda folder: weights(folder, change)


CASES: dict[str, tuple[Callable[[Path], Any], type[StoreError], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), DamagedSource, r"config\.json: missing"),
    "config not JSON": (
        lambda f: (f / "config.json").write_text("{"),
        DamagedSource,
        r"config\.json: cannot be read as JSON",
    ),
    "config a list": (
        lambda f: (f / "config.json").write_text("[]"),
        DamagedSource,
        r"config\.json: not a JSON object",
    ),
    "config binary": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe{"),
        DamagedSource,
        r"config\.json",
    ),
    "unknown": (
        lambda f: config(f, model_type="bloom"),
        UnsupportedSource,
        "'bloom' is not on the allow list",
    ),
    "no type": (lambda f: config(f, model_type=None), UnsupportedSource, "model_type ''"),
    "own code": (lambda f: config(f, auto_map={"AutoModel": "m.M"}), UnsupportedSource, "auto_map"),
    "quantised": (
        lambda f: config(f, quantization_config={"bits": 4}),
        UnsupportedSource,
        "quantization_config",
    ),
    "field missing": (lambda f: config(f, hidden_size=None), DamagedSource, "hidden_size is missing"),
    "field negative": (lambda f: config(f, num_hidden_layers=-1), DamagedSource, "num_hidden_layers is -1"),
    "field text": (lambda f: config(f, vocab_size="20"), DamagedSource, "vocab_size is '20'"),
    "field true": (lambda f: config(f, vocab_size=True), DamagedSource, "vocab_size is True"),
    "heads uneven": (lambda f: config(f, num_key_value_heads=3), DamagedSource, "3 key/value heads"),
    "tie text": (lambda f: config(f, tie_word_embeddings="no"), DamagedSource, "tie_word_embeddings is 'no'"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), DamagedSource, r"tokenizer\.json is missing"),
    "bad tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        DamagedSource,
        r"tokenizer\.json: not a tokenizer",
    ),
    "binary tokenizer": (
        lambda f: (f / "tokenizer.json").write_bytes(b"\xff"),
        DamagedSource,
        r"tokenizer\.json: not a",
    ),
    "bad template": (
        lambda f: (f / "chat_template.jinja").write_bytes(b"\xff"),
        DamagedSource,
        r"chat_template\.jinja: not UTF-8",
    ),
    "template no jinja": (
        lambda f: (f / "chat_template.jinja").write_text("{{ messages }}\n{% for %}"),
        DamagedSource,
        r"chat_template\.jinja: not a jinja template: line 2: .*; mend it, or remove it",
    ),
    "template in config no jinja": (
        lambda f: (f / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ x"})),
        DamagedSource,
        r"tokenizer_config\.json: chat_template: not a jinja template: line 1: ",
    ),
    "pickle": (to_pickle, UnsupportedSource, r"pytorch_model\.bin.*pickle.*safe_serialization"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), DamagedSource, "neither model.safetensors nor"),
    "zero bytes": (
        lambda f: (f / WEIGHTS).write_bytes(b""),
        DamagedSource,
        r"model\.safetensors: not a whole .*0 bytes",
    ),
    "seven bytes": (lambda f: (f / WEIGHTS).write_bytes(b"1234567"), DamagedSource, "7 bytes"),
    "truncated": (
        lambda f: os.truncate(f / WEIGHTS, 4000),
        DamagedSource,
        r"model\.safetensors: not a whole",
    ),
    "header cut": (lambda f: os.truncate(f / WEIGHTS, 100), DamagedSource, "past the end"),
    "header length": (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 64), DamagedSource, "past the end"),
    "header noise": (
        lambda f: (f / WEIGHTS).write_bytes(b"\x08" + b"\0" * 7 + b"notjson!"),
        DamagedSource,
        "not JSON",
    ),
    "extra bytes": (lambda f: (f / WEIGHTS).open("ab").write(b"x"), DamagedSource, "end at byte"),
    "overlap": (
        lambda f: header(
            f, lambda h: h["lm_head.weight"].update(data_offsets=h["model.norm.weight"]["data_offsets"])
        ),
        DamagedSource,
        "model.safetensors",
    ),
    "huge shape": (
        lambda f: header(f, lambda h: h["lm_head.weight"].update(shape=[2**62, 2**62])),
        DamagedSource,
        "'lm_head.weight' of F32",
    ),
    "negative shape": (
        lambda f: header(f, lambda h: h["lm_head.weight"].update(shape=[-20, -16])),
        DamagedSource,
        "'lm_head.weight' has a bad entry",
    ),
    "unknown code": (
        lambda f: header(f, lambda h: h["lm_head.weight"].update(dtype="Q4")),
        DamagedSource,
        "'lm_head.weight'",
    ),
    "float64": (
        lambda f: weights(f, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].astype(np.float64)})),
        UnsupportedSource,
        "'lm_head.weight' has dtype F64",
    ),
    "missing tensor": (
        lambda f: weights(f, lambda t: t.pop("model.layers.1.mlp.up_proj.weight")),
        DamagedSource,
        "'model.layers.1.mlp.up_proj.weight' is missing",
    ),
    "missing head": (
        lambda f: weights(f, lambda t: t.pop("lm_head.weight")),
        DamagedSource,
        "'lm_head.weight' is missing",
    ),
    "extra tensor": (
        lambda f: weights(
            f, lambda t: t.update({"model.layers.3.mlp.up_proj.weight": np.zeros((24, 16), np.float32)})
        ),
        DamagedSource,
        "'model.layers.3.mlp.up_proj.weight' is not one",
    ),
    "twice": (
        lambda f: weights(f, lambda t: t.update({"norm.weight": np.zeros(16, np.float32)})),
        DamagedSource,
        "is there twice",
    ),
    "other shape": (
        lambda f: weights(f, lambda t: t.update({"model.norm.weight": np.zeros(17, np.float32)})),
        DamagedSource,
        r"'model.norm.weight' has shape \[17\], the config says \[16\]",
    ),
    "NaN": (
        poison("model.layers.2.mlp.down_proj.weight", np.nan),
        DamagedSource,
        "'model.layers.2.mlp.down_proj.weight' holds NaN",
    ),
    "infinity": (poison("lm_head.weight", -np.inf), DamagedSource, "'lm_head.weight' holds NaN or infinity"),
    "traversal": (
        lambda f: to_shards(f, "../tiny/model-00001-of-00001.safetensors"),
        DamagedSource,
        "weight_map.*not the plain name",
    ),
    "absolute": (
        lambda f: to_shards(f, "/etc/x.safetensors"),
        DamagedSource,
        "weight_map.*not the plain name",
    ),
    "shard a number": (lambda f: to_shards(f, 7), DamagedSource, "weight_map.*is 7"),
    "shard gone": (lambda f: to_shards(f, "gone.safetensors"), DamagedSource, r"gone\.safetensors: missing"),
    "shard stray": (stray, DamagedSource, "'lm_head.weight' is not where weight_map says"),
    "no weight map": (
        no_weight_map,
        DamagedSource,
        "weight_map",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_is_refused_by_name(folder: Path, store: ModelStore, case: str) -> None:
    """The right error, naming what is wrong, and an empty store."""
    damage, kind, message = CASES[case]
    damage(folder)
    with pytest.raises(kind, match=message) as caught:
        import_model(folder, store=store)
    assert str(folder) in str(caught.value)
    assert not store.root.exists() or list(store.root.iterdir()) == []


@pytest.mark.parametrize("case", ["NaN", "pickle", "truncated"])
def test_keeps_the_model_that_is_there(folder: Path, store: ModelStore, tmp_path: Path, case: str) -> None:
    """A failed import over a good model leaves that one as it was."""
    good = import_model(folder, store=store)
    write_folder(tmp_path / "bad")
    CASES[case][0](tmp_path / "bad")
    with pytest.raises(StoreError):
        import_model(tmp_path / "bad", name="tiny", store=store)
    assert store.open("tiny").digest == good.digest
    assert [p.name for p in store.root.iterdir()] == ["tiny"]
