"""Importing a folder: every tensor lands in its unit, once, and the index says what is there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from splitinfer.segment_runtime.store.importer import ImportProgress, import_model
from splitinfer.segment_runtime.store.index import block_unit
from splitinfer.segment_runtime.store.reader import ModelStore, StoredModel
from tests.unit.store.folders import CONFIG, Tensors, random_tensors, write_folder


def units(model: StoredModel) -> dict[str, Tensors]:
    """All units as the store's reader gives them."""
    return {unit: model.read_unit(unit) for unit in model.index.units}


def test_every_tensor_is_in_its_unit(folder: Path, store: ModelStore) -> None:
    """The bytes of the checkpoint come back, under the unit's names, and the index carries the sizes."""
    source = load_file(folder / "model.safetensors")
    model = import_model(folder, store=store)
    assert list(model.index.units) == ["embed", "block-000", "block-001", "block-002", "head"]
    found: Tensors = {}
    for block in range(3):
        unit = model.read_unit(block_unit(block))
        found |= {f"model.layers.{block}.{name}": tensor for name, tensor in unit.items()}
    found["model.embed_tokens.weight"] = model.read_unit("embed")["tokens"]
    found["model.norm.weight"] = model.read_unit("head")["norm.weight"]
    found["lm_head.weight"] = model.read_unit("head")["lm_head.weight"]
    assert found.keys() == source.keys()
    for name, tensor in source.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    index = model.index
    assert (index.name, index.blocks, index.hidden_size, index.vocab_size) == ("tiny", 3, 16, 20)
    assert (index.kv_heads, index.head_dim, index.max_context_tokens) == (2, 4, 32)
    assert (index.dtype, index.tied_embeddings) == ("float32", False)
    assert (index.bos_token_id, index.eos_token_ids) == (1, (2,))


def test_unit_files_are_plain_safetensors(folder: Path, store: ModelStore) -> None:
    """The library opens them, and size and sha256 are those of the index."""
    model = import_model(folder, store=store)
    for entry in model.index.units.values():
        data = (model.path / entry.file).read_bytes()
        assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        found = {name: (t.shape, str(t.dtype)) for name, t in load_file(model.path / entry.file).items()}
        assert found == {name: (t.shape, t.dtype) for name, t in entry.tensors.items()}


def test_shards_give_the_same_model(folder: Path, tmp_path: Path, store: ModelStore) -> None:
    """Sharded or not: equal digests."""
    write_folder(tmp_path / "sharded", shards=3)
    assert import_model(tmp_path / "sharded", store=store).digest == import_model(folder, store=store).digest


@pytest.mark.parametrize(("dtype", "name"), [(np.float16, "float16"), (ml_dtypes.bfloat16, "bfloat16")])
def test_dtypes_are_kept(tmp_path: Path, store: ModelStore, dtype: type, name: str) -> None:
    """Half widths are stored as they are, bit for bit; mixed ones are told by the most elements."""
    tensors = random_tensors(CONFIG, dtype=dtype)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float32)
    # The library's numpy side cannot write bfloat16: same bytes, other code.
    raw = {key: t.view(np.uint16) if t.dtype.itemsize == 2 else t for key, t in tensors.items()}
    write_folder(tmp_path / "half", tensors=raw)
    path = tmp_path / "half" / "model.safetensors"
    code = {"float16": b'"F16"', "bfloat16": b'"BF16"'}[name]
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"U16"', code)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    model = import_model(tmp_path / "half", store=store)
    assert model.index.dtype == name
    tokens = model.read_unit("embed")["tokens"]
    np.testing.assert_array_equal(
        tokens.view(np.uint16), tensors["model.embed_tokens.weight"].view(np.uint16)
    )
    assert str(model.read_unit("head")["norm.weight"].dtype) == "float32"


class TestTying:
    """The LM head is stored unless it is the embedding."""

    TIED = CONFIG | {"tie_word_embeddings": True}

    def import_with(
        self, tmp_path: Path, store: ModelStore, config: dict[str, Any], **change: NDArray[Any] | None
    ) -> StoredModel:
        """Import with the LM head changed or taken away."""
        tensors = random_tensors(config)
        for name, value in change.items():
            if value is None:
                del tensors[f"{name}.weight"]
            else:
                tensors[f"{name}.weight"] = value
        write_folder(tmp_path / "m", config, tensors)
        return import_model(tmp_path / "m", store=store)

    def test_absent_head_is_tied(self, tmp_path: Path, store: ModelStore) -> None:
        """Config says tied and there is no head: the unit holds the norm only."""
        model = self.import_with(tmp_path, store, self.TIED, lm_head=None)
        assert model.index.tied_embeddings
        assert set(model.read_unit("head")) == {"norm.weight"}

    def test_equal_head_is_dropped(self, tmp_path: Path, store: ModelStore) -> None:
        """Config says tied and the head is the embedding's bytes: it is not stored twice."""
        tokens = random_tensors(CONFIG)["model.embed_tokens.weight"]
        model = self.import_with(tmp_path, store, self.TIED, lm_head=tokens)
        assert model.index.tied_embeddings
        assert set(model.read_unit("head")) == {"norm.weight"}

    def test_different_head_wins(self, tmp_path: Path, store: ModelStore) -> None:
        """Config says tied and the head is another: both are stored, and the stored config no longer says tied."""
        model = self.import_with(tmp_path, store, self.TIED)
        assert not model.index.tied_embeddings
        assert model.config["tie_word_embeddings"] is False
        np.testing.assert_array_equal(
            model.read_unit("head")["lm_head.weight"], random_tensors(CONFIG)["lm_head.weight"]
        )


def test_base_model_names(tmp_path: Path, store: ModelStore) -> None:
    """GPT-2's own checkpoint has no ``transformer.`` before its names, and buffers that carry nothing."""
    config = {
        "model_type": "gpt2",
        "n_embd": 16,
        "n_head": 2,
        "n_layer": 2,
        "n_positions": 8,
        "vocab_size": 20,
    }
    tensors = random_tensors(config)
    del tensors["lm_head.weight"]
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    bare["h.0.attn.bias"] = np.ones((1, 1, 8, 8), np.uint8)
    write_folder(tmp_path / "gpt2", config, bare)
    model = import_model(tmp_path / "gpt2", store=store)
    np.testing.assert_array_equal(
        model.read_unit("block-001")["ln_1.weight"], tensors["transformer.h.1.ln_1.weight"]
    )
    assert set(model.read_unit("embed")) == {"tokens", "positions"}
    assert "attn.bias" not in model.read_unit("block-000")


def test_gpt_neox_head_under_either_name(tmp_path: Path, store: ModelStore) -> None:
    """``embed_out`` in old files, ``lm_head`` as transformers has it in memory."""
    config = CONFIG | {"model_type": "gpt_neox"}
    tensors = random_tensors(config)
    write_folder(tmp_path / "old", config, tensors)
    tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    write_folder(tmp_path / "new", config, tensors)
    assert (
        import_model(tmp_path / "old", store=store).digest
        == import_model(tmp_path / "new", store=store).digest
    )


class TestSideFiles:
    """Template and special tokens come from where transformers takes them."""

    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            ({}, None),
            ({"tokenizer_config.json": json.dumps({"chat_template": "T"})}, "T"),
            (
                {"tokenizer_config.json": json.dumps({"chat_template": "T"}), "chat_template.jinja": "J ü"},
                "J ü",
            ),
            (
                {
                    "tokenizer_config.json": json.dumps(
                        {
                            "chat_template": [
                                {"name": "rag", "template": "R"},
                                {"name": "default", "template": "D"},
                            ]
                        }
                    )
                },
                "D",
            ),
        ],
    )
    def test_chat_template(
        self, folder: Path, store: ModelStore, files: dict[str, str], expected: str | None
    ) -> None:
        """The .jinja file, else tokenizer_config.json's, its ``default`` out of a list; else none."""
        for name, text in files.items():
            (folder / name).write_text(text)
        model = import_model(folder, store=store)
        found = model.read_file("chat_template").decode() if "chat_template" in model.index.files else None
        assert expected == found

    def test_generation_config_ends_text(self, folder: Path, store: ModelStore) -> None:
        """eos: generation_config.json before config.json, one or several."""
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
        assert import_model(folder, store=store).index.eos_token_ids == (5, 7)

    @pytest.mark.parametrize(("bos", "expected"), [("w3", 3), ({"content": "w4"}, 4), (None, None)])
    def test_bos_is_the_tokenizers(
        self, folder: Path, store: ModelStore, bos: object, expected: int | None
    ) -> None:
        """bos: what tokenizer_config.json names, an explicit null included, before config.json."""
        (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos}))
        assert import_model(folder, store=store).index.bos_token_id == expected


def test_other_content_replaces(folder: Path, tmp_path: Path, store: ModelStore) -> None:
    """A new model under an old name takes its place whole; nothing of the old is left."""
    old = import_model(folder, store=store)
    config = CONFIG | {"num_hidden_layers": 2}
    write_folder(tmp_path / "other", config, random_tensors(config, seed=1))
    new = import_model(tmp_path / "other", name="tiny", store=store)
    assert new.digest != old.digest
    assert sorted(p.name for p in store.root.iterdir()) == ["tiny"]
    assert not (new.path / "block-002.safetensors").exists()


def test_progress_counts_every_byte(folder: Path, store: ModelStore) -> None:
    """``write`` goes up to the total, which is the bytes of the tensors, and names the units in order."""
    told: list[ImportProgress] = []
    import_model(folder, store=store, progress=told.append)
    written = [now for now in told if now.stage == "write"]
    assert [now.done_bytes for now in written] == sorted(now.done_bytes for now in written)
    assert {now.total_bytes for now in written} == {written[-1].done_bytes}
    assert written[-1].total_bytes == sum(t.nbytes for t in load_file(folder / "model.safetensors").values())
    assert list(dict.fromkeys(now.unit for now in written)) == [
        "embed",
        "block-000",
        "block-001",
        "block-002",
        "head",
    ]
    assert told[-1].stage == "stored"
