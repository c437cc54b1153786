"""A step of several sessions: the tokens of each alone, in any order, whatever else is in the batch."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from splitinfer.segment_runtime.engine.port import Engine, SessionRows
from tests.support.chains import Chain, reference_logits
from tests.support.models import CASES, VOCAB, Case

Cases = Callable[[str, str], Case]
STEPS = 10


@pytest.mark.parametrize("name", CASES)
def test_ragged_sessions(
    case: Cases, engine: Engine, name: str, record_property: Callable[[str, object], None]
) -> None:
    """Prefill chunks and single tokens of five sessions in one batch: transformers' greedy tokens for each.

    Sessions join one step apart, so that every batch mixes prefill, a second chunk and decode. Logits are equal
    up to rounding, because a matrix product of more rows may sum in another order; the largest difference is
    reported.
    """
    model = case(name, "float32")
    rng = random.Random(11)
    prompts = [rng.choices(range(3, VOCAB), k=length) for length in (3, 20, 9, 33, 14)]
    chain = Chain.load(engine, model.stored, [1, 3], "float32")
    fed: list[list[list[int]]] = [
        [prompt[:5], prompt[5:]] if len(prompt) > 5 else [prompt] for prompt in prompts
    ]
    done: list[list[torch.Tensor]] = [[] for _ in prompts]
    position = [0] * len(prompts)
    for session, prompt in enumerate(prompts):
        chain.open(session, len(prompt) + STEPS)
    for step in range(STEPS):
        running = [s for s in range(len(prompts)) if s <= step]
        rng.shuffle(running)
        chunks = [(s, position[s], fed[s][len(done[s])]) for s in running]
        hidden = chain.step(chunks)
        logits = chain.head.logits(hidden[np.cumsum([len(tokens) for _, _, tokens in chunks]) - 1])
        for (session, _, tokens), row in zip(chunks, logits, strict=True):
            position[session] += len(tokens)
            done[session].append(torch.from_numpy(row))
            if len(done[session]) == len(fed[session]):
                fed[session].append([int(row.argmax())])
    difference = 0.0
    for session in range(len(prompts)):
        expected = reference_logits(model.reference, fed[session][: len(done[session])])
        assert [int(row.argmax()) for row in done[session]] == [int(row.argmax()) for row in expected]
        found = max(float((a - b).abs().max()) for a, b in zip(expected, done[session], strict=True))
        difference = max(difference, found)
    record_property("largest_logit_difference", difference)
    assert difference < 1e-3, "more than rounding"


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_the_order_of_a_batch_does_not_matter(case: Cases, engine: Engine, name: str) -> None:
    """The same sessions in another order get the same rows: nothing of one leaks into another."""
    model = case(name, "float32").stored
    part = engine.load_range(model, 1, 4, "float32")
    rng = np.random.default_rng(3)
    rows = {s: rng.standard_normal((s + 1, model.index.hidden_size)).astype(np.float32) for s in range(4)}
    found = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        for session in order:
            part.open(session, 8)
        hidden = np.concatenate([rows[s] for s in order])
        out = part.step(hidden, [SessionRows(s, 0, s + 1) for s in order])
        edges = np.cumsum([0, *(s + 1 for s in order)])
        found.append({s: out[edges[i] : edges[i + 1]] for i, s in enumerate(order)})
        for session in order:
            part.close(session)
    for session in range(4):
        assert np.allclose(found[0][session], found[1][session], rtol=0, atol=2e-5)
    others = {s: rows[s] + 1 for s in (1, 2, 3)} | {0: rows[0]}
    for session in range(4):
        part.open(session, 8)
    hidden = np.concatenate([others[s] for s in range(4)])
    out = part.step(hidden, [SessionRows(s, 0, s + 1) for s in range(4)])
    assert np.array_equal(out[:1], found[0][0]), "what other sessions say changes nothing"
    assert not np.allclose(out[1:3], found[0][1], atol=1e-2), "their own rows do change"
