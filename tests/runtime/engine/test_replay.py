"""How far a replay moves the logits: tokens fed again in other chunks, beside another session."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import Array
from splitinfer.segment_runtime.store.reader import StoredModel
from tests.chaos.soak import MARGINS, model_and_prompts
from tests.support.chains import Chain

PROMPTS = 10
BEFORE, AFTER = 12, 12
"""Tokens that a session had when its plan changed, and those that follow."""
PROMPT_CHUNK = 5
BYSTANDER = (5, 6, 7, 8)


def undisturbed(chain: Chain, prompt: Sequence[int]) -> tuple[list[int], list[Array]]:
    """Greedy tokens, and the logits that each came from: the prompt in one chunk, then every token alone."""
    chain.open(1, len(prompt) + BEFORE + AFTER)
    tokens: list[int] = []
    rows: list[Array] = []
    chunk, position = list(prompt), 0
    for _ in range(BEFORE + AFTER):
        rows.append(chain.head.logits(chain.step([(1, position, chunk)])[-1:])[0])
        position += len(chunk)
        tokens.append(int(rows[-1].argmax()))
        chunk = [tokens[-1]]
    chain.close(1)
    return tokens, rows


def replayed(chain: Chain, prompt: Sequence[int], tokens: Sequence[int]) -> list[Array]:
    """The logits from the change on: the prompt and what came before it in chunks, each step beside a bystander."""
    chunks = [list(prompt[at : at + PROMPT_CHUNK]) for at in range(0, len(prompt), PROMPT_CHUNK)]
    chunks += [list(tokens[:BEFORE]), *([token] for token in tokens[BEFORE:-1])]
    chain.open(1, len(prompt) + len(tokens))
    chain.open(2, len(BYSTANDER) + len(chunks))
    rows: list[Array] = []
    position, other = 0, list(BYSTANDER)
    other_position = 0
    for chunk in chunks:
        hidden = chain.step([(1, position, chunk), (2, other_position, other)])
        rows.append(chain.head.logits(hidden[len(chunk) - 1 : len(chunk)])[0])
        position += len(chunk)
        other_position += len(other)
        other = [9]
    for session in (1, 2):
        chain.close(session)
    return rows[-AFTER:]


@pytest.mark.parametrize("name", sorted(MARGINS))
def test_a_replay_moves_logits_by_far_less_than_the_margin(
    name: str, tmp_path_factory: pytest.TempPathFactory, record_property: Callable[[str, object], None]
) -> None:
    """What lets the tests of changed plans ask for the very same tokens; the largest difference is reported."""
    torch.set_num_threads(1)
    model: StoredModel
    model, _, prompts = model_and_prompts(name, tmp_path_factory.mktemp(name))
    chain = Chain.load(create_engine("torch", "cpu", 1), model, [2], "float32")
    difference = largest = 0.0
    for prompt in prompts[:PROMPTS]:
        tokens, rows = undisturbed(chain, prompt)
        for one, other in zip(rows[BEFORE:], replayed(chain, prompt, tokens), strict=True):
            difference = max(difference, float(np.abs(np.subtract(one, other)).max()))
            largest = max(largest, float(np.abs(one).max()))
    record_property("largest_logit_difference", difference)
    record_property("largest_logit", largest)
    # Over a hundred times less where it was measured; another processor sums in another order.
    assert 0 < difference < MARGINS[name] / 20, "a difference of none would mean that nothing was replayed"
