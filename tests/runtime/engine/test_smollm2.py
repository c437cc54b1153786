"""The gate on the real model, SmolLM2-135M-Instruct: 30 blocks, every cut, bit for bit."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import Engine, LoadedHead, LoadedRange
from splitinfer.segment_runtime.entry.embed import Embedder
from tests.support.chains import Chain, reference_logits
from tests.support.models import Case

PROMPTS = (
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "The three largest rivers of Europe are",
    "def fibonacci(n):\n    ",
    "<|im_start|>user\nWrite a haiku about a lighthouse in winter.<|im_end|>\n<|im_start|>assistant\n",
    "1, 2, 3, 5, 8, 13,",
    "Once upon a time, in a village by the sea, there lived an old clockmaker who",
)


@pytest.fixture(scope="module")
def cpu() -> Engine:
    """One engine for the module: the blocks are loaded once and shared by all the ranges cut from them."""
    return create_engine("torch", "cpu", 1)


@pytest.fixture(scope="module")
def cut(cpu: Engine, smollm2: Case) -> Callable[[Sequence[int]], Chain]:
    """Chains at given cuts; what holds the weights stays loaded for the module."""
    whole: LoadedRange = cpu.load_range(smollm2.stored, 0, 30, "float32")
    head: LoadedHead = cpu.load_head(smollm2.stored, "float32")
    embedder = Embedder(smollm2.stored, "float32")
    loaded = cpu.resident_weight_bytes

    def load(cuts: Sequence[int]) -> Chain:
        edges = [0, *cuts, 30]
        ranges = [
            cpu.load_range(smollm2.stored, start, stop, "float32")
            for start, stop in itertools.pairwise(edges)
        ]
        assert cpu.resident_weight_bytes == loaded, "cutting again loads nothing again"
        assert whole.weight_bytes == sum(part.weight_bytes for part in ranges)
        return Chain(ranges, head, embedder)

    return load


def encode(model: Case, text: str) -> list[int]:
    """Token ids of a prompt."""
    ids: list[int] = Tokenizer.from_str(model.stored.read_file("tokenizer").decode()).encode(text).ids
    return ids


@pytest.fixture(scope="module")
def truth(smollm2: Case) -> tuple[list[Sequence[int]], list[torch.Tensor]]:
    """A prompt in two chunks and its greedy continuation, with the unsplit model's logits."""
    prompt = encode(smollm2, PROMPTS[0])
    with torch.inference_mode():
        out = smollm2.reference.generate(  # type: ignore[operator]  # transformers leaves it untyped
            torch.tensor([prompt]), max_new_tokens=5, do_sample=False
        )
    chunks: list[Sequence[int]] = [
        prompt[:8],
        prompt[8:],
        *([token] for token in out[0, len(prompt) :].tolist()),
    ]
    return chunks, reference_logits(smollm2.reference, chunks)


def check(chain: Chain, truth: tuple[list[Sequence[int]], list[torch.Tensor]]) -> None:
    """The chain gives the bits of the unsplit model."""
    chunks, expected = truth
    for step, (one, other) in enumerate(zip(expected, chain.logits(1, chunks), strict=True)):
        assert torch.equal(one, other), f"step {step}: off by {(one - other).abs().max().item():.3g}"


@pytest.mark.parametrize("at", range(1, 30))
def test_every_single_cut(
    cut: Callable[[Sequence[int]], Chain], truth: tuple[list[Sequence[int]], list[torch.Tensor]], at: int
) -> None:
    """All 29 cuts into two segments."""
    check(cut([at]), truth)


@pytest.mark.parametrize("segments", [2, 3, 4, 5, 6])
def test_random_cuts(
    cut: Callable[[Sequence[int]], Chain],
    truth: tuple[list[Sequence[int]], list[torch.Tensor]],
    segments: int,
) -> None:
    """Random cuts into 2 to 6 segments."""
    rng = random.Random(segments)
    for _ in range(2):
        check(cut(sorted(rng.sample(range(1, 30), segments - 1))), truth)


def test_the_u_shape(smollm2: Case, truth: tuple[list[Sequence[int]], list[torch.Tensor]]) -> None:
    """First and last blocks on one engine, the middle on another that never loads them."""
    trusted, other = create_engine("torch", "cpu", 1), create_engine("torch", "cpu", 1)
    stored = smollm2.stored
    ranges = [
        engine.load_range(stored, start, stop, "float32")
        for engine, start, stop in ((trusted, 0, 2), (other, 2, 29), (trusted, 29, 30))
    ]
    assert other.resident_weight_bytes == ranges[1].weight_bytes
    check(Chain(ranges, trusted.load_head(stored, "float32"), Embedder(stored, "float32")), truth)


def test_many_sessions_give_the_tokens_of_each_alone(
    cut: Callable[[Sequence[int]], Chain], smollm2: Case, record_property: Callable[[str, object], None]
) -> None:
    """Six prompts of different lengths in one batch: transformers' own greedy tokens for each.

    The logits are equal up to rounding only, because a matrix product of several rows sums in another order; the
    largest difference is reported.
    """
    prompts = [encode(smollm2, text) for text in PROMPTS]
    new = 12
    expected = []
    for prompt in prompts:
        with torch.inference_mode():
            out = smollm2.reference.generate(  # type: ignore[operator]  # transformers leaves it untyped
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),  # or it would mask <|im_end|>
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        expected.append((out.sequences[0, len(prompt) :].tolist(), torch.stack(out.logits)[:, 0]))
    chain = cut([10, 20])
    for session, prompt in enumerate(prompts):
        chain.open(session, len(prompt) + new)
    feed: list[list[int]] = prompts
    position, difference = [0] * len(prompts), 0.0
    for step in range(new):
        hidden = chain.step([(s, position[s], tokens) for s, tokens in enumerate(feed)])
        position = [at + len(tokens) for at, tokens in zip(position, feed, strict=True)]
        last = np.cumsum([len(tokens) for tokens in feed]) - 1
        logits = chain.head.logits(hidden[last])
        for session, (tokens, reference) in enumerate(expected):
            assert int(logits[session].argmax()) == tokens[step], (session, step)
            difference = max(difference, float(np.abs(logits[session] - reference[step].numpy()).max()))
        feed = [[tokens[step]] for tokens, _ in expected]
    for session in range(len(prompts)):
        chain.close(session)
    record_property("largest_logit_difference", difference)
    assert difference < 1e-3, "more than rounding"
