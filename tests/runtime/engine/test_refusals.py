"""What an engine refuses: weights, configs, ranges and arrays that are wrong, each by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch

from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import Engine, EngineError, LoadError, UnsupportedModel
from splitinfer.segment_runtime.entry.embed import Embedder
from splitinfer.segment_runtime.store.reader import StoredModel
from tests.support.edited import Edited, with_unit
from tests.support.models import Case

Cases = Callable[[str, str], Case]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(case: Cases, engine: Engine, bad: float) -> None:
    """One NaN or infinity in a block: the model, the block and the tensor are named, and nothing stays loaded."""

    def poison(tensors: dict[str, Any]) -> None:
        tensors["mlp.up_proj.weight"][3, 5] = bad

    model = with_unit(case("llama", "float32").stored, "block-002", poison)
    with pytest.raises(LoadError, match=r"llama: block-002: tensor 'mlp.up_proj.weight' .*not finite"):
        engine.load_range(model, 0, 5, "float32")
    assert engine.resident_weight_bytes == 0


@pytest.mark.parametrize(("unit", "tensor"), [("head", "norm.weight"), ("embed", "tokens")])
def test_a_head_that_is_not_finite_is_named(case: Cases, engine: Engine, unit: str, tensor: str) -> None:
    """The head's own tensors and the tied token table are held to the same."""

    def poison(tensors: dict[str, Any]) -> None:
        tensors[tensor].reshape(-1)[-1] = np.nan

    model = with_unit(case("llama-tied-llama3rope", "float32").stored, unit, poison)
    with pytest.raises(LoadError, match=rf"{unit}: tensor '{tensor}' .*not finite"):
        engine.load_head(model, "float32")


def test_weights_that_overflow_the_dtype_are_named(case: Cases, engine: Engine) -> None:
    """A weight that float16 cannot hold would be infinite there: refused, where float32 loads."""

    def enlarge(tensors: dict[str, Any]) -> None:
        tensors["mlp.up_proj.weight"][0, 0] = 1e6

    model = with_unit(case("llama", "float32").stored, "block-000", enlarge)
    with pytest.raises(LoadError, match=r"'mlp.up_proj.weight' has values that are not finite in float16"):
        engine.load_range(model, 0, 1, "float16")
    engine.load_range(model, 0, 1, "float32")


def test_weights_that_do_not_match_the_config_are_named(case: Cases, engine: Engine) -> None:
    """A wrong shape, a missing tensor and one too many: each named with what was expected."""
    model = case("llama", "float32").stored
    edits: list[tuple[Callable[[dict[str, Any]], object], str]] = [
        (
            lambda t: t.update({"self_attn.k_proj.weight": t["self_attn.k_proj.weight"][:-1]}),
            r"'self_attn.k_proj.weight' has shape \(23, 48\), config.json asks for \(24, 48\)",
        ),
        (lambda t: t.pop("mlp.down_proj.weight"), "'mlp.down_proj.weight' is missing"),
        (lambda t: t.update({"extra": t["mlp.down_proj.weight"]}), "'extra' has no place"),
    ]
    for edit, message in edits:
        with pytest.raises(LoadError, match=message):
            engine.load_range(with_unit(model, "block-001", edit), 0, 2, "float32")


def test_a_config_that_does_not_fit_the_index_is_refused(case: Cases, engine: Engine) -> None:
    """KV is accounted by the index and computed by the config: they must agree."""
    model = case("llama", "float32").stored
    edited = cast("StoredModel", Edited(model, config=model.config | {"num_key_value_heads": 4}))
    with pytest.raises(LoadError, match="kv_heads is 2 in the index and 4 in config"):
        engine.load_range(edited, 0, 1, "float32")


def test_what_has_no_recipe_is_refused_by_name(case: Cases, engine: Engine) -> None:
    """Another architecture, dtype or device: the message names it and what there is."""
    model = case("llama", "float32").stored
    other = cast("StoredModel", Edited(model, index=model.index.model_copy(update={"model_type": "mamba"})))
    with pytest.raises(UnsupportedModel, match=r"no recipe for 'mamba'; it has gemma2, .*qwen3"):
        engine.load_range(other, 0, 1, "float32")
    for load in (
        lambda: engine.load_range(model, 0, 1, "int4"),
        lambda: engine.load_head(model, "int4"),
    ):
        with pytest.raises(UnsupportedModel, match="no 'int4'; it has float32, bfloat16, float16"):
            load()
    with pytest.raises(UnsupportedModel, match="'tpu:0'"):
        create_engine("torch", "tpu:0", 1)
    with pytest.raises(UnsupportedModel, match="'mps': the torch engine runs on cpu and cuda"):
        create_engine("torch", "mps", 1)
    with pytest.raises(UnsupportedModel, match="threads: 0"):
        create_engine("torch", "cpu", 0)


def test_variants_that_a_recipe_is_wrong_for_are_refused_by_field(case: Cases, engine: Engine) -> None:
    """A config that changes what a block computes in a way that the gate does not cover."""
    for name, field in (("gpt2", "add_cross_attention"), ("gemma3", "use_bidirectional_attention")):
        model = case(name, "float32").stored
        edited = cast("StoredModel", Edited(model, config=model.config | {field: True}))
        with pytest.raises(UnsupportedModel, match=field):
            engine.load_range(edited, 0, 1, "float32")


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (3, 2), (-1, 2), (0, 6), (5, 6)])
def test_a_range_that_is_not_in_the_model_is_refused(
    case: Cases, engine: Engine, start: int, stop: int
) -> None:
    """Empty, reversed or outside: the message says which blocks there are."""
    with pytest.raises(LoadError, match="it has blocks 0 to 4"):
        engine.load_range(case("llama", "float32").stored, start, stop, "float32")


def test_cuda_that_is_not_there_is_said_so() -> None:
    """Without a CUDA device the error says so and what to do; with one the last device's neighbour is refused."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    message = "there are" if count else "torch sees no CUDA device here; use --device cpu"
    with pytest.raises(UnsupportedModel, match=message):
        create_engine("torch", f"cuda:{count}", 1)


def test_a_head_refuses_what_it_cannot_multiply(case: Cases, engine: Engine) -> None:
    """Wrong width, rank or dtype: an EngineError that says what was asked."""
    head = engine.load_head(case("llama", "float32").stored, "float32")
    for hidden in (np.zeros((1, 47), np.float32), np.zeros(48, np.float32), np.zeros((0, 48), np.float32)):
        with pytest.raises(EngineError, match="hidden: shape"):
            head.logits(hidden)
    with pytest.raises(EngineError, match="hidden: dtype float16"):
        head.logits(np.zeros((1, 48), np.float16))


def test_embedding_refuses_what_is_not_in_its_tables(case: Cases) -> None:
    """A token out of the vocabulary, a position past a learned table, a dtype that is none: a ValueError."""
    llama, opt = (Embedder(case(name, "float32").stored, "float32") for name in ("llama", "opt"))
    for token in (-1, 199):
        with pytest.raises(ValueError, match=f"token {token}: the vocabulary has ids 0 to 198"):
            llama.embed([5, token], 0)
    assert opt.embed([1, 2], 126).shape == (2, 48)
    with pytest.raises(ValueError, match=r"positions \[127, 129\): the model has learned 128"):
        opt.embed([1, 2], 127)
    with pytest.raises(ValueError, match="position"):
        opt.embed([1], -1)
    with pytest.raises(ValueError, match="'int3' is not one of"):
        Embedder(case("llama", "float32").stored, "int3")
