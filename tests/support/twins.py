"""Requests with the tokens that an undisturbed run gives, chosen so that rounding cannot change them.

A replay after a change of plan feeds generated tokens in one chunk where they first came one by one, and batches
have other companions; torch then sums in another order, and the last bits of a logit may differ (docs/engines.md).
Equal tokens are promised wherever that does not matter. So a twin is only taken if it has a margin at every step:

- greedy: the best logit leads the second by more than `margin`;
- sampled: the same token is drawn when every logit moves by up to `margin`, in several random directions.

Rounding was measured to move logits by less than a hundredth of the margins that the tests use. A test that fails
all the same has found a token that was lost, doubled or fed at a wrong place; the margin is not to be raised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from splitinfer.segment_runtime.engine.port import Engine
from splitinfer.segment_runtime.entry.generate import GenerationRequest, SamplingParams
from splitinfer.segment_runtime.entry.sampler import sample
from splitinfer.segment_runtime.store.reader import StoredModel
from tests.support.chains import Chain

NUDGES = 6
"""Random directions in which the logits of a sampled step are moved."""


@dataclass(frozen=True)
class Twin:
    """A request and what it must give."""

    request: GenerationRequest
    tokens: tuple[int, ...]
    margin: float


class TwinMaker:
    """Runs requests through the unsplit model in this process."""

    def __init__(self, model: StoredModel, engine: Engine) -> None:
        self._chain = Chain.load(engine, model, [], "float32")
        self._next = 0

    def make(self, request: GenerationRequest, margin: float) -> Twin | None:
        """The twin of a request, or None if one of its steps is too close to call."""
        self._next += 1
        session, chunk = self._next, list(request.prompt)
        self._chain.open(session, len(request.prompt) + request.max_tokens)
        position, tokens, counts = 0, list[int](), Counter[int]()
        rng = np.random.default_rng(len(chunk))
        try:
            for index in range(request.max_tokens):
                hidden = self._chain.step([(session, position, chunk)])
                logits = self._chain.head.logits(hidden[-1:])[0]
                position += len(chunk)
                token = sample(logits, request.sampling, counts, index).token
                if not _clear(logits, token, request.sampling, counts, index, margin, rng):
                    return None
                tokens.append(token)
                counts[token] += 1
                chunk = [token]
        finally:
            self._chain.close(session)
        return Twin(request, tuple(tokens), margin)


def _clear(
    logits: NDArray[np.float32],
    token: int,
    sampling: SamplingParams,
    counts: Counter[int],
    index: int,
    margin: float,
    rng: np.random.Generator,
) -> bool:
    if sampling.temperature == 0:
        first, second = np.sort(logits)[-1:-3:-1]
        return bool(first - second > margin)
    for _ in range(NUDGES):
        nudge = rng.uniform(-margin, margin, logits.shape).astype(np.float32)
        if sample(logits + nudge, sampling, counts, index).token != token:
            return False
    return True


def make_twins(
    maker: TwinMaker,
    prompts: Sequence[Sequence[int]],
    *,
    count: int,
    output: tuple[int, int],
    margin: float,
    seed: int,
) -> list[Twin]:
    """``count`` twins over random prompts of ``prompts``; every third is sampled at temperature 0.8 with a seed."""
    rng = Random(seed)
    found: list[Twin] = []
    tries = 0
    while len(found) < count:
        tries += 1
        assert tries < 20 * count, (
            f"only {len(found)} of {count} prompts have a margin of {margin} at every step"
        )
        greedy = len(found) % 3 != 2
        sampling = (
            SamplingParams(temperature=0.0) if greedy else SamplingParams(0.8, seed=rng.getrandbits(32))
        )
        prompt = tuple(rng.choice(prompts))
        twin = maker.make(GenerationRequest(prompt, rng.randint(*output), sampling), margin)
        if twin is not None:
            found.append(twin)
    return found


def random_prompts(vocab: int, count: int, length: tuple[int, int], seed: int) -> list[list[int]]:
    """Random token ids, for models whose weights are random too."""
    rng = Random(seed)
    return [[rng.randrange(3, vocab) for _ in range(rng.randint(*length))] for _ in range(count)]
