"""The gate: however a model is cut, its logits are those of transformers' unsplit model, bit for bit.

One session, the same chunks. The reference is `AutoModelForCausalLM` with its own cache, never our code.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import Engine
from splitinfer.segment_runtime.engine.torch_recipes import RECIPES
from splitinfer.segment_runtime.entry.embed import Embedder
from splitinfer.segment_runtime.store.architectures import ARCHITECTURES
from tests.support.chains import Chain, reference_logits
from tests.support.models import CASES, VOCAB, Case

Cases = Callable[[str, str], Case]
DTYPES = ("float32", "bfloat16", "float16")


def prompt(seed: int, length: int) -> list[int]:
    """Random tokens."""
    return random.Random(seed).choices(range(3, VOCAB), k=length)


def chunked(tokens: Sequence[int]) -> list[Sequence[int]]:
    """A prefill in ragged chunks, one of a single token, longer than the sliding windows; then decode."""
    return [tokens[:13], tokens[13:14], tokens[14:22], tokens[22:31], *([token] for token in tokens[31:])]


def assert_same_bits(expected: list[torch.Tensor], actual: list[torch.Tensor]) -> None:
    """Every step's logits, to the last bit; the message says where and how far off."""
    for step, (one, other) in enumerate(zip(expected, actual, strict=True)):
        assert torch.equal(one, other), f"step {step}: off by {(one - other).abs().max().item():.3g}"


def test_every_architecture_on_the_allow_list_is_gated() -> None:
    """A model type that the store accepts has a recipe here and a case in this gate."""
    gated = {name.partition("-")[0] for name in CASES}
    assert set(ARCHITECTURES) == set(RECIPES)
    assert {"gemma3" if name == "gemma3_text" else name for name in ARCHITECTURES} == gated


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_every_single_cut(case: Cases, engine: Engine, name: str, dtype: str) -> None:
    """Each single cut of each architecture in each dtype, in chunked prefill and decode."""
    model = case(name, dtype)
    chunks = chunked(prompt(1, 40))
    expected = reference_logits(model.reference, chunks)
    assert min(float(logits.std()) for logits in expected) > 0.1, "a flat reference would hide errors"
    for cut in range(1, model.stored.index.blocks):
        assert_same_bits(expected, Chain.load(engine, model.stored, [cut], dtype).logits(7, chunks))


@pytest.mark.parametrize("name", CASES)
def test_random_cuts(case: Cases, engine: Engine, name: str) -> None:
    """Any number of cuts, down to one block per range, with random chunks."""
    model = case(name, "float32")
    rng = random.Random(sum(name.encode()))
    for cuts in ([], [1, 2, 3, 4], *(sorted(rng.sample(range(1, 5), k)) for k in (2, 3))):
        tokens, chunks = prompt(rng.randrange(1000), 60), []
        while tokens:
            size = rng.choice((1, 1, 2, 5, 11))
            chunks.append(tokens[:size])
            tokens = tokens[size:]
        expected = reference_logits(model.reference, chunks)
        assert_same_bits(expected, Chain.load(engine, model.stored, cuts, "float32").logits(3, chunks))


@pytest.mark.parametrize("name", CASES)
def test_the_u_shape(case: Cases, device: str, name: str) -> None:
    """The first and the last blocks on one engine and the middle on another."""
    model = case(name, "float32")
    trusted, other = create_engine("torch", device, 1), create_engine("torch", device, 1)
    ranges = [
        engine.load_range(model.stored, start, stop, "float32")
        for engine, start, stop in ((trusted, 0, 1), (other, 1, 4), (trusted, 4, 5))
    ]
    chain = Chain(ranges, trusted.load_head(model.stored, "float32"), Embedder(model.stored, "float32"))
    chunks = chunked(prompt(2, 40))
    assert_same_bits(reference_logits(model.reference, chunks), chain.logits(1, chunks))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_the_entry_embeds_as_transformers_does(case: Cases, device: str, name: str, dtype: str) -> None:
    """The numpy embedding has the bits of what transformers feeds its first block, at any position."""
    model = case(name, dtype)
    tokens, seen = prompt(4, 20), []
    base = model.reference.base_model
    blocks = next(layers for layers in base.modules() if isinstance(layers, torch.nn.ModuleList))
    hook = blocks[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.inference_mode():
        base(input_ids=torch.tensor([tokens], device=device))
    hook.remove()
    embedder = Embedder(model.stored, dtype)
    actual = np.concatenate([embedder.embed(tokens[:7], 0), embedder.embed(tokens[7:], 7)])
    assert str(actual.dtype) == dtype
    assert np.array_equal(seen[0][0].float().cpu().numpy(), actual.astype(np.float32))


@pytest.mark.parametrize("name", CASES)
def test_attention_is_the_one_transformers_chooses(case: Cases, name: str) -> None:
    """A recipe names the attention that transformers runs by default; another would give other bits."""
    model = case(name, "float32")
    expected = model.reference.config._attn_implementation
    assert expected == RECIPES[model.stored.index.model_type].attention


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral-sliding", "opt"])
def test_generate(case: Cases, engine: Engine, name: str) -> None:
    """Greedy tokens and every step's logits are those of transformers' own `generate`."""
    model = case(name, "float32")
    tokens = prompt(5, 17)
    with torch.inference_mode():
        out = model.reference.generate(  # type: ignore[operator]  # transformers leaves it untyped
            torch.tensor([tokens], device=model.reference.device),
            max_new_tokens=20,
            min_new_tokens=20,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    new = out.sequences[0, len(tokens) :].tolist()
    chain = Chain.load(engine, model.stored, [2], "float32")
    actual = chain.logits(1, [tokens, *([token] for token in new[:-1])])
    assert_same_bits([logits[0].cpu() for logits in out.logits], actual)
