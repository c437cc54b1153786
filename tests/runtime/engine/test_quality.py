"""What few bits cost on the real model: perplexity on the fixed text, against transformers' own in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.quality import Quality, measure, nats, text_tokens
from splitinfer.segment_runtime.engine.factory import create_engine
from tests.support.models import smollm2_reference, smollm2_stored


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    """The fixed text."""
    return text_tokens(smollm2_stored())


@pytest.fixture(scope="module")
def float32(tokens: list[int]) -> Quality:
    """By the onnx engine."""
    return measure(create_engine("onnx", "cpu", 1), smollm2_stored(), "float32", tokens, 1)


def test_float32_has_the_perplexity_of_transformers(float32: Quality, tokens: list[int]) -> None:
    """The same to four digits, over several hundred tokens in chunks: neither the measure nor the engine is off."""
    torch.set_num_threads(1)
    reference: Any = smollm2_reference()
    with torch.inference_mode():
        logits = reference(torch.tensor([tokens[:-1]])).logits[0].numpy()
    expected = float(np.exp(nats(logits, tokens[1:]).mean()))
    assert len(tokens) > 500
    assert float32.perplexity == pytest.approx(expected, rel=1e-4)
    assert np.mean(float32.best == logits.argmax(axis=1)) > 0.999


@pytest.mark.parametrize(("dtype", "ratio", "agreement"), [("int8", 1.005, 0.95), ("int4", 1.01, 0.93)])
def test_few_bits_cost_next_to_nothing_of_what_they_were_given(
    float32: Quality,
    tokens: list[int],
    record_property: Callable[[str, object], None],
    dtype: str,
    ratio: float,
    agreement: float,
) -> None:
    """Perplexity and greedy agreement; the default model comes in Q4_1, so that int4 has its very codes.

    The bounds leave room over what was measured (1.000 and 0.971, 1.000 and 0.960), because kernels round rows by the
    CPU. Rounding offsets to whole codes, which 4 bits would have without offsets of their own, gives 1.23 and 0.67.
    """
    found = measure(create_engine("onnx", "cpu", 1), smollm2_stored(), dtype, tokens, 1)
    same = float(np.mean(found.best == float32.best))
    record_property("perplexity_ratio", f"{found.perplexity / float32.perplexity:.4f}")
    record_property("greedy_agreement", same)
    assert found.weight_bytes < 0.3 * float32.weight_bytes
    assert found.perplexity <= ratio * float32.perplexity
    assert same >= agreement
