"""The onnx engine against transformers' own models: the same greedy tokens, logits equal up to rounding."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from splitinfer.segment_runtime.engine.onnx_recipes import FAMILIES, recipe_of, unsupported
from splitinfer.segment_runtime.engine.port import Engine, UnsupportedModel
from splitinfer.segment_runtime.engine.torch_attention import windows_of
from splitinfer.segment_runtime.store.architectures import ARCHITECTURES
from tests.support.chains import Chain, reference_logits
from tests.support.models import CASES, ONNX_CASES, VOCAB, Case

Cases = Callable[[str, str], Case]
Record = Callable[[str, object], None]


def test_every_family_has_a_case() -> None:
    """A recipe without a case in this gate is not allowed, and the families that the project promises are there."""
    promised = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"}
    assert set(FAMILIES) == promised
    gated = {name.partition("-")[0] for name in ONNX_CASES}
    assert gated == {"gemma3" if name == "gemma3_text" else name for name in promised}
    assert set(FAMILIES) < set(ARCHITECTURES)


@pytest.mark.parametrize("name", ONNX_CASES)
def test_logits_are_those_of_transformers(
    case: Cases, onnx: Engine, name: str, record_property: Record
) -> None:
    """Every step of a chunked prompt longer than the windows and of a decode: largest difference 1e-4 of up to 6."""
    model = case(name, "float32")
    tokens = random.Random(1).choices(range(3, VOCAB), k=40)
    chunks = [tokens[:13], tokens[13:14], tokens[14:22], tokens[22:31], *([t] for t in tokens[31:])]
    expected = reference_logits(model.reference, chunks)
    assert min(float(logits.std()) for logits in expected) > 0.1, "a flat reference would hide errors"
    chain = Chain.load(onnx, model.stored, [2], "float32")
    chain.open(1, len(tokens))
    position, largest = 0, 0.0
    for at, chunk in enumerate(chunks):
        hidden = chain.step([(1, position, chunk)], {1} if at >= 4 else ())
        position += len(chunk)
        largest = max(largest, float(np.abs(chain.head.logits(hidden[-1:])[0] - expected[at].numpy()).max()))
    record_property("largest_logit_difference", largest)
    print(f"{name}: largest logit difference {largest:.3g}")
    assert largest < 1e-4
    chain.close(1)


@pytest.mark.parametrize("name", ["llama-even", "mistral-sliding", "gemma2", "gemma3", "phi3-even", "qwen3"])
def test_greedy_tokens_are_those_of_generate(case: Cases, onnx: Engine, name: str) -> None:
    """Twenty tokens, each the one that transformers' own `generate` takes."""
    model = case(name, "float32")
    prompt = random.Random(5).choices(range(3, VOCAB), k=17)
    with torch.inference_mode():
        out = model.reference.generate(  # type: ignore[operator]  # transformers leaves it untyped
            torch.tensor([prompt]), max_new_tokens=20, min_new_tokens=20, do_sample=False
        )
    expected = out[0, len(prompt) :].tolist()
    chain = Chain.load(onnx, model.stored, [1, 3], "float32")
    chain.open(1, len(prompt) + 20)
    hidden = chain.step([(1, 0, prompt)])
    found: list[int] = []
    while len(found) < 20:
        found.append(int(chain.head.logits(hidden[-1:])[0].argmax()))
        hidden = chain.step([(1, len(prompt) + len(found) - 1, found[-1:])], {1})
    chain.close(1)
    assert found == expected


@pytest.mark.parametrize("name", ONNX_CASES)
def test_windows_are_those_of_transformers(case: Cases, name: str) -> None:
    """Per layer, also where the config leaves the kinds of its layers out, as older checkpoints do."""
    model = case(name, "float32")
    expected = tuple(windows_of(model.reference.config))
    config = model.stored.config
    assert recipe_of(config).windows == expected
    if "mixed" not in name and "gemma" not in name:  # the cases mix layers as no default does
        assert recipe_of({k: v for k, v in config.items() if k != "layer_types"}).windows == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt2", "no recipe for 'gpt2'; it has gemma2"),
        ("gpt_neox", "no recipe for 'gpt_neox'"),
        ("opt", "no recipe for 'opt'"),
        ("llama", "heads of 12 values"),
    ],
)
def test_what_has_no_graph_is_refused_by_name(case: Cases, onnx: Engine, name: str, words: str) -> None:
    """The architecture or the field is named."""
    stored = case(name, "float32").stored
    for load in (lambda: onnx.load_range(stored, 0, 1, "float32"), lambda: onnx.load_head(stored, "float32")):
        with pytest.raises(UnsupportedModel, match=words):
            load()
    assert words.split("'", maxsplit=1)[0] in (unsupported(stored.config) or "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type='yarn'"),
        ({"rope_scaling": {"type": "longrope"}, "rope_parameters": None}, "rope_type='longrope'"),
        ({"partial_rotary_factor": 0.5, "model_type": "phi3"}, "partial_rotary_factor=0.5"),
        ({"layer_types": ["chunked_attention"] * 5}, "layer_types"),
    ],
)
def test_options_that_a_graph_is_wrong_for_are_refused_by_field(
    case: Cases, change: dict[str, object], words: str
) -> None:
    """A config that changes what a block computes in a way that no graph here has."""
    config = case("llama-even", "float32").stored.config
    assert unsupported(config) is None
    assert words in (unsupported(config | change) or "supported")


def test_the_torch_cases_are_still_all_there() -> None:
    """The onnx cases are variants of the torch engine's, so that both engines are held against the same models."""
    assert {name.removesuffix("-even") for name in ONNX_CASES} - {"llama-linear-bias"} <= set(CASES)
