"""The promise of the onnx engine: the same bits for every cut, batch, chunking, company and slot, in every dtype."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from splitinfer.segment_runtime.engine.port import Engine, SessionRows
from tests.support.chains import Chain
from tests.support.exact import Rows, Story, play, play_together
from tests.support.models import ONNX_CASES, VOCAB, Case

Cases = Callable[[str, str], Case]
DTYPES = ("float32", "int8", "int4")


def tokens(seed: int, count: int) -> list[int]:
    """Random tokens."""
    return random.Random(seed).choices(range(3, VOCAB), k=count)


def story(seed: int, prompt: int, generated: int, chunks: Sequence[int] = ()) -> Story:
    """A random story."""
    return Story(tokens(seed, prompt), tokens(seed + 1000, generated), chunks)


def same(left: Rows, right: Rows) -> bool:
    """Equal to the last bit."""
    return left.shape == right.shape and np.array_equal(left.view(np.uint32), right.view(np.uint32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ONNX_CASES)
def test_every_cut_gives_the_bits_of_no_cut(case: Cases, onnx: Engine, name: str, dtype: str) -> None:
    """All single cuts, random cuts, one block per range, and logits behind them."""
    stored = case(name, "float32").stored
    told = story(1, 17, 5, (6, 1, 9))
    whole = Chain.load(onnx, stored, [], dtype)
    expected = play(whole, told)
    logits = whole.head.logits(expected)
    assert float(np.std(expected)) > 0.1
    for cuts in ([1], [2], [3], [4], [1, 2, 3, 4], [1, 4], [2, 3]):
        chain = Chain.load(onnx, stored, cuts, dtype)
        found = play(chain, told)
        assert same(found, expected), cuts
        assert same(chain.head.logits(found), logits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["llama-even", "mistral-sliding", "gemma3"])
def test_every_chunking_of_a_prompt_gives_the_same_bits(
    case: Cases, onnx: Engine, name: str, dtype: str
) -> None:
    """Chunks of 1 to 48, mixed ones, one of a single row at the end, and a prompt longer than runs at once."""
    stored = case(name, "float32").stored
    chain = Chain.load(onnx, stored, [2], dtype)
    for length in (1, 2, 61):
        expected = play(chain, story(2, length, 3))
        for chunks in ([1] * 60, [2] * 30, [3] * 20, [7] * 8, [48], [60], [16, 1, 31, 1, 1], [59, 1]):
            assert same(play(chain, story(2, length, 3, chunks)), expected), (length, chunks)
    long = story(3, 300, 2)
    assert same(play(chain, story(3, 300, 2, (1, 127, 129))), play(chain, long))


@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_of_mixed_lengths_give_each_session_its_bits(
    case: Cases, onnx: Engine, dtype: str, record_property: Callable[[str, object], None]
) -> None:
    """Decode batches of 1 to 16 (and 40) sessions with 1 to 60 tokens each."""
    stored = case("llama-even", "float32").stored
    chain = Chain.load(onnx, stored, [1, 3], dtype)
    rng = random.Random(4)
    stories = {s: story(s, rng.choice((1, 2, 3, 17, 40, 60)), 4) for s in range(1, 41)}
    alone = {s: play(chain, told, s) for s, told in stories.items()}
    for size in (*range(1, 17), 40):
        together = play_together(chain, {s: (0, stories[s]) for s in range(1, size + 1)})
        for session, rows in together.items():
            assert same(rows, alone[session]), (size, session)
    record_property("batches", 17)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(4))
def test_a_session_does_not_depend_on_company_joining_leaving_or_slot(
    case: Cases, onnx: Engine, dtype: str, seed: int
) -> None:
    """Metamorphic: random sessions that come and go, with chunks of their own, in batches of decode and prefill."""
    rng = random.Random(seed)
    stored = case(rng.choice(["llama-even", "mistral-sliding", "gemma2"]), "float32").stored
    chain = Chain.load(onnx, stored, sorted(rng.sample(range(1, 5), 2)), dtype)
    stories = {
        s: (
            rng.randrange(20),
            story(s, rng.randint(1, 30), rng.randint(1, 15), rng.choices(range(1, 9), k=4)),
        )
        for s in rng.sample(range(1, 1000), 14)
    }
    alone = {s: play(chain, Story(told.prompt, told.generated), s) for s, (_, told) in stories.items()}
    for session, rows in play_together(chain, stories).items():
        assert same(rows, alone[session]), session
    assert all(part.kv_bytes == 0 for part in chain.ranges)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_subset_of_the_sessions_may_step_in_any_order(case: Cases, onnx: Engine, dtype: str) -> None:
    """Micro-batches: groups that are drawn anew each step move slots about, and nobody's bits."""
    stored = case("qwen3", "float32").stored
    chain = Chain.load(onnx, stored, [2], dtype)
    rng = random.Random(7)
    stories = {s: story(s, 4 + s, 12) for s in range(1, 12)}
    alone = {s: play(chain, told, s) for s, told in stories.items()}
    left = {s: told.pieces() for s, told in stories.items()}
    rows: dict[int, list[Rows]] = {s: [] for s in stories}
    for session, told in stories.items():
        chain.open(session, told.tokens)
    while any(left.values()):
        ready = [s for s in left if left[s]]
        group = rng.sample(ready, rng.randint(1, min(5, len(ready))))
        pieces = [(s, *left[s].pop(0)) for s in group]
        out = chain.step([(s, at, t) for s, at, t, _ in pieces], {s for s, _, _, single in pieces if single})
        at = 0
        for session, _, fed, _ in pieces:
            rows[session].append(np.asarray(out[at : at + len(fed)], np.float32))
            at += len(fed)
    for session in stories:
        assert same(np.concatenate(rows[session]), alone[session]), session
        chain.close(session)


@pytest.mark.parametrize("dtype", DTYPES)
def test_moved_kv_goes_on_with_the_same_bits_at_any_position(case: Cases, onnx: Engine, dtype: str) -> None:
    """Export and import at every position, in the prompt and in the decode, into a busy range of another engine."""
    stored = case("llama-even", "float32").stored
    told = story(9, 11, 6, (5, 1, 5))
    here, there = (Chain.load(onnx, stored, [2], dtype) for _ in range(2))
    expected = play(here, told)
    company = story(10, 9, 30)
    there.open(77, company.tokens)
    there.step([(77, 0, company.prompt)])
    pieces = told.pieces()
    for moved in range(1, len(pieces)):
        here.open(1, told.tokens)
        there.open(5, told.tokens + 3)
        for position, fed, single in pieces[:moved]:
            here.step([(1, position, fed)], {1} if single else ())
        for source, target in zip(here.ranges, there.ranges, strict=True):
            length = source.length(1)
            target.import_kv(5, source.export_kv(1, 0, length // 2))
            target.import_kv(5, source.export_kv(1, length // 2, length))
        for position, fed, single in pieces[moved:]:
            rows = np.asarray(there.step([(5, position, fed)], {5} if single else ()), np.float32)
            assert same(rows, expected[position : position + len(fed)]), (moved, position)
        for source, target in zip(here.ranges, there.ranges, strict=True):
            length = source.length(1)
            assert target.export_kv(5, 0, length) == source.export_kv(1, 0, length)
        here.close(1)
        there.close(5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_replay_in_chunks_and_single_tokens_repeats_the_bits(case: Cases, onnx: Engine, dtype: str) -> None:
    """What the scheduler does after a change of plan: other chunks, other company, the same KV to the last bit."""
    stored = case("mistral-sliding", "float32").stored
    told, other = story(11, 21, 9, (4, 4)), story(12, 5, 20)
    chain = Chain.load(onnx, stored, [2], dtype)
    first = list(chain.ranges)
    chain.open(1, told.tokens)
    for position, fed, single in told.pieces():
        chain.step([(1, position, fed)], {1} if single else ())
    kept = [part.export_kv(1, 0, told.tokens) for part in first]
    again = Chain.load(onnx, stored, [1, 3], dtype)
    played = play_together(again, {2: (0, Story(told.prompt, told.generated, (13,))), 3: (1, other)})
    assert same(played[2], play(chain, told, 9))
    chain.close(1)
    chain.open(1, told.tokens)
    for position, fed, single in Story(told.prompt, told.generated, (1, 19)).pieces():
        chain.step([(1, position, fed)], {1} if single else ())
    assert [part.export_kv(1, 0, told.tokens) for part in first] == kept
    chain.close(1)


def test_a_generated_token_inside_a_chunk_is_not_promised(case: Cases, onnx: Engine) -> None:
    """Why `decode` is on the wire: the attention kernel for one row sums otherwise. If this fails, the flag can go."""
    stored = case("llama-even", "float32").stored
    chain = Chain.load(onnx, stored, [], "float32")
    differs = False
    for seed in range(8):
        alone = play(chain, story(seed, 30, 4))
        told = story(seed, 30, 4)
        inside = play(chain, Story([*told.prompt, *told.generated], []))
        assert np.allclose(alone, inside, atol=1e-3)
        differs = differs or not same(alone, inside)
    assert differs


def test_a_decode_row_must_be_one(case: Cases, onnx: Engine) -> None:
    """A step that says decode for more rows is refused before anything changes."""
    from splitinfer.segment_runtime.engine.port import SessionError

    part = onnx.load_range(case("qwen3", "float32").stored, 0, 2, "float32")
    part.open(1, 8)
    with pytest.raises(SessionError, match="a decode step has 1 row, not 2"):
        part.step(np.zeros((2, 48), np.float32), [SessionRows(1, 0, 2, True)])
    assert part.length(1) == 0
    part.close(1)
