"""The entry's token table in few bits: the one that the head reads, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.entry.embed import Embedder
from splitinfer.segment_runtime.store.converted import converted, is_matrix
from splitinfer.segment_runtime.store.reader import StoredModel
from tests.support.models import random_case

TOKENS = (5, 0, 198, 5)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> StoredModel:
    """A model whose head is its token table."""
    return random_case("llama-tied-llama3rope-even", tmp_path_factory.mktemp("embedding")).stored


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_rows_are_those_of_the_converted_table(tied: StoredModel, dtype: str) -> None:
    """8 bits in both dtypes, the codes of the conversion that the head uses; not the float rows."""
    few = converted(tied, "embed", dtype, is_matrix).matrices["tokens"]
    assert few.bits == 8
    rows = Embedder(tied, dtype).embed(TOKENS, 0)
    assert rows.dtype == np.float32
    assert np.array_equal(rows, few.values()[list(TOKENS)])
    plain = Embedder(tied, "float32").embed(TOKENS, 0)
    assert not np.array_equal(rows, plain)
    assert (
        np.abs(rows - plain).max() <= np.abs(plain).max() / 127
    )  # half a step of the coarsest block, and air
    assert Embedder(tied, dtype).embed((), 0).shape == (0, tied.index.hidden_size)


def test_a_head_and_an_embedder_share_one_conversion(tied: StoredModel, tmp_path: Path) -> None:
    """Whoever comes second finds the table in the cache: neither makes the other's stale."""
    create_engine("onnx", "cpu", 1).load_head(tied, "int4")
    assert converted(tied, "embed", "int4", is_matrix).cached
    Embedder(tied, "int4")
    create_engine("onnx", "cpu", 1).load_head(tied, "int4")
    assert converted(tied, "embed", "int4", is_matrix).cached


def test_gemma_scales_the_rows_in_few_bits_too(tmp_path: Path) -> None:
    """The factor of the square root of the width comes after the rows, whatever they are stored in."""
    model = random_case("gemma2", tmp_path).stored
    few = converted(model, "embed", "int8", is_matrix).matrices["tokens"]
    factor = np.float32(np.sqrt(model.index.hidden_size))
    rows = Embedder(model, "int8").embed(TOKENS, 0)
    assert np.array_equal(rows, few.values()[list(TOKENS)] * factor)
