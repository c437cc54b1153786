"""The onnx engine's promise on the real model, in every dtype: the same bits whatever the cut, the chunks, the company."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from splitinfer.segment_runtime.engine.port import Engine, LoadedRange
from splitinfer.segment_runtime.store.reader import StoredModel
from tests.support.chains import Chain
from tests.support.exact import Rows, Story, play, play_together
from tests.support.models import smollm2_stored

DTYPES = ("float32", "int8", "int4")
CUTS: tuple[list[int], ...] = ([], [1], [15], [29], [1, 29], [8, 15], [2, 9, 14, 20, 27], list(range(1, 30)))


def story(seed: int, prompt: int, generated: int, chunks: tuple[int, ...] = ()) -> Story:
    """Random tokens of the real vocabulary."""
    rng = random.Random(seed)
    return Story(
        rng.choices(range(300, 40000), k=prompt), rng.choices(range(300, 40000), k=generated), chunks
    )


def same(left: Rows, right: Rows) -> bool:
    """Equal to the last bit."""
    return left.shape == right.shape and np.array_equal(left.view(np.uint32), right.view(np.uint32))


@pytest.fixture(scope="module", params=DTYPES)
def loaded(request: pytest.FixtureRequest, onnx: Engine) -> Iterator[tuple[StoredModel, str]]:
    """The model in one dtype; its blocks stay loaded while its tests run, and ranges cut from them share them."""
    model, dtype = smollm2_stored(), str(request.param)
    whole: LoadedRange = onnx.load_range(model, 0, model.index.blocks, dtype)
    yield model, dtype
    whole.drop()


def test_cuts_and_chunks(onnx: Engine, loaded: tuple[StoredModel, str]) -> None:
    """One segment to thirty, with prompts in one piece, in odd ones and row by row: hidden states and logits."""
    model, dtype = loaded
    uncut = Chain.load(onnx, model, [], dtype)
    expected = play(uncut, story(1, 33, 4))
    logits = uncut.head.logits(expected)
    assert float(np.std(expected)) > 0.1
    for at, cuts in enumerate(CUTS):
        chain = Chain.load(onnx, model, cuts, dtype)
        chunks = ((), (7, 1, 16), (1,) * 32)[at % 3]
        found = play(chain, story(1, 33, 4, chunks))
        assert same(found, expected), (cuts, chunks)
        assert same(chain.head.logits(found), logits), cuts


def test_company(onnx: Engine, loaded: tuple[StoredModel, str]) -> None:
    """Sixteen sessions of mixed lengths that come and go, in one batch, against each alone."""
    model, dtype = loaded
    chain = Chain.load(onnx, model, [11], dtype)
    rng = random.Random(5)
    stories = {
        s: (rng.randrange(6), story(s, rng.choice((1, 2, 5, 17, 40)), rng.randint(2, 6)))
        for s in range(1, 17)
    }
    together = play_together(chain, stories)
    for session, (_, told) in stories.items():
        assert same(together[session], play(chain, told, session)), session


def test_moved_kv(onnx: Engine, loaded: tuple[StoredModel, str]) -> None:
    """KV exported in the prompt and in the decode goes on elsewhere with the bits it would have had."""
    model, dtype = loaded
    here, there = (Chain.load(onnx, model, [10, 20], dtype) for _ in range(2))
    told = story(9, 21, 4, (13,))
    expected = play(here, told)
    pieces = told.pieces()
    for moved in (1, 3):
        here.open(1, told.tokens)
        there.open(5, told.tokens)
        for position, fed, single in pieces[:moved]:
            here.step([(1, position, fed)], {1} if single else ())
        rows = []
        for source, target in zip(here.ranges, there.ranges, strict=True):
            target.import_kv(5, source.export_kv(1, 0, source.length(1)))
        here.close(1)
        for position, fed, single in pieces[moved:]:
            rows.append(np.asarray(there.step([(5, position, fed)], {5} if single else ()), np.float32))
        there.close(5)
        assert same(np.concatenate(rows), expected[pieces[moved][0] :]), moved
