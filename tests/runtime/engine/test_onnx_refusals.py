"""What the onnx engine refuses, and what `auto` does about it: by name, with the reason, and nothing computed in doubt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import structlog
from onnx import TensorProto, helper

from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.onnx_graph import Written
from splitinfer.segment_runtime.engine.onnx_runtime import load
from splitinfer.segment_runtime.engine.port import Engine, LoadError, UnsupportedModel
from splitinfer.segment_runtime.store.errors import DamagedModel
from splitinfer.segment_runtime.store.reader import StoredModel
from tests.support.edited import Edited, with_unit
from tests.support.models import Case

Cases = Callable[[str, str], Case]


@pytest.fixture
def fresh() -> Engine:
    """An engine of its own, so that no block is loaded already."""
    return create_engine("onnx", "cpu", 1)


@pytest.mark.parametrize(("name", "word"), [("gpt2", "gpt2"), ("opt", "opt"), ("gpt_neox", "gpt_neox")])
def test_an_architecture_without_a_graph_is_refused_by_name(
    case: Cases, fresh: Engine, name: str, word: str
) -> None:
    """The architecture is named, and nothing is loaded."""
    with pytest.raises(UnsupportedModel, match=word):
        fresh.load_range(case(name, "float32").stored, 0, 1, "float32")
    assert fresh.resident_weight_bytes == 0


def test_auto_takes_torch_there_and_says_so(case: Cases) -> None:
    """The range names the engine that computes it, and the log the reason; what onnx has stays with onnx."""
    auto = create_engine("auto", "cpu", 1)
    with structlog.testing.capture_logs() as said:
        other = auto.load_range(case("gpt2", "float32").stored, 0, 2, "float32")
        own = auto.load_range(case("llama-even", "float32").stored, 0, 2, "float32")
    assert (other.identity.engine, own.identity.engine) == ("torch", "onnx")
    (line,) = said
    assert (line["event"], line["engine"], line["log_level"]) == ("another engine", "torch", "warning")
    assert "gpt2" in line["reason"]
    assert other.weight_bytes + own.weight_bytes == auto.resident_weight_bytes > 0


def test_auto_takes_torch_for_a_dtype_without_a_graph(case: Cases) -> None:
    """bfloat16 is torch's, on a CPU too."""
    loaded = create_engine("auto", "cpu", 1).load_range(
        case("llama-even", "float32").stored, 0, 1, "bfloat16"
    )
    assert loaded.identity.engine == "torch"


@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_never_computed_with(
    case: Cases, fresh: Engine, dtype: str, bad: float
) -> None:
    """In every dtype the unit and the tensor are named: a scale of NaN would spoil a whole block of outputs."""

    def poison(tensors: dict[str, Any]) -> None:
        tensors["mlp.up_proj.weight"][3, 5] = bad

    model = with_unit(case("llama-even", "float32").stored, "block-002", poison)
    # Another digest, so that no conversion of the sound model is in the cache for it.
    model = cast("StoredModel", Edited(model, digest=f"poisoned-{dtype}-{bad}"))
    with pytest.raises(
        (LoadError, DamagedModel), match=r"block-002: tensor 'mlp\.up_proj\.weight' has .*not finite"
    ):
        fresh.load_range(model, 2, 3, dtype)
    assert fresh.resident_weight_bytes == 0


@pytest.mark.parametrize(("field", "value"), [("num_hidden_layers", 4), ("vocab_size", 200)])
def test_a_config_that_is_not_that_of_the_index_is_refused(
    case: Cases, fresh: Engine, field: str, value: int
) -> None:
    """The graph would be written from one and the weights read by the other."""
    stored = case("llama-even", "float32").stored
    model = cast("StoredModel", Edited(stored, config=stored.config | {field: value}))
    with pytest.raises(LoadError, match=rf"in the index and {value} in config\.json"):
        fresh.load_range(model, 0, 1, "float32")


def test_a_block_of_another_shape_than_the_config_asks_for_is_refused(case: Cases, fresh: Engine) -> None:
    """By tensor, with both shapes, before a graph is made."""

    def halve(tensors: dict[str, Any]) -> None:
        tensors["mlp.up_proj.weight"] = tensors["mlp.up_proj.weight"][:48]

    model = with_unit(case("llama-even", "float32").stored, "block-001", halve)
    with pytest.raises(LoadError, match=r"block-001: tensor 'mlp\.up_proj\.weight' has shape \(48, 64\)"):
        fresh.load_range(model, 1, 2, "float32")


def test_an_operator_that_this_runtime_lacks_is_an_error_that_names_the_unit() -> None:
    """What an older ONNX Runtime, or one built without a kernel, says: which unit, which operator, which version."""
    floats = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])
    node = helper.make_node("AttentionOfNextYear", ["x"], ["y"], domain="com.microsoft")
    graph = helper.make_graph([node], "block", [floats], [result])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    written = Written(helper.make_model(graph, opset_imports=opsets, ir_version=10), {})
    with pytest.raises(
        LoadError, match=r"tiny: block-007: ONNX Runtime [\d.]+ refuses its graph: .*AttentionOfNextYear"
    ):
        load(written, 1, "tiny: block-007")
