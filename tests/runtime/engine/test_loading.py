"""Loading and dropping: bytes exact, blocks shared, only what is needed read, and all of it given back."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import (
    Engine,
    EngineError,
    SessionError,
    SessionRows,
)
from splitinfer.segment_runtime.store.index import block_unit
from splitinfer.segment_runtime.store.reader import StoredModel
from tests.support.chains import Chain, reference_logits
from tests.support.edited import Edited
from tests.support.models import CASES, Case, smollm2_stored

Cases = Callable[[str, str], Case]
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}


def elements(model: StoredModel, start: int, stop: int) -> int:
    """Numbers in the weights of a range, by the index."""
    units = [model.index.units[block_unit(i)] for i in range(start, stop)]
    return sum(int(np.prod(t.shape)) for unit in units for t in unit.tensors.values())


@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_weight_bytes_are_exact_and_shared_blocks_count_once(
    case: Cases, engine: Engine, name: str, dtype: str
) -> None:
    """Ranges that overlap hold their common blocks once; dropping frees what nobody else holds, at once."""
    model, size = case(name, "float32").stored, SIZES[dtype]
    gc.disable()
    try:
        first = engine.load_range(model, 0, 3, dtype)
        second = engine.load_range(model, 2, 5, dtype)
        assert first.weight_bytes == elements(model, 0, 3) * size
        assert second.weight_bytes == elements(model, 2, 5) * size
        assert engine.resident_weight_bytes == elements(model, 0, 5) * size
        first.drop()
        assert engine.resident_weight_bytes == elements(model, 2, 5) * size
        assert first.weight_bytes == 0
        second.drop()
        assert engine.resident_weight_bytes == 0
    finally:
        gc.enable()


def test_a_block_in_two_dtypes_is_two_blocks(case: Cases, engine: Engine) -> None:
    """Sharing never changes what a range computes in."""
    model = case("llama", "float32").stored
    wide, narrow = engine.load_range(model, 0, 1, "float32"), engine.load_range(model, 0, 1, "bfloat16")
    assert engine.resident_weight_bytes == wide.weight_bytes + narrow.weight_bytes
    assert wide.weight_bytes == 2 * narrow.weight_bytes


@pytest.mark.parametrize("name", ["llama", "llama-tied-llama3rope"])
def test_head_bytes(case: Cases, engine: Engine, name: str) -> None:
    """A head takes its norm and one vocabulary matrix, tied or not; two heads of a model take it once."""
    model = case(name, "float32").stored
    assert model.index.tied_embeddings == ("tied" in name)
    heads = [engine.load_head(model, "float32") for _ in range(2)]
    expected = 4 * model.index.hidden_size * (model.index.vocab_size + 1)
    assert [head.weight_bytes for head in heads] == [expected, expected]
    assert engine.resident_weight_bytes == expected
    heads.clear()
    assert engine.resident_weight_bytes == 0


def test_progress_counts_up_to_the_weights(case: Cases, engine: Engine) -> None:
    """A progress bar that starts above nothing, grows, and ends full."""
    seen: list[int] = []
    part = engine.load_range(case("qwen3", "float32").stored, 1, 5, "float16", seen.append)
    assert len(seen) == 4
    assert seen == sorted(set(seen))
    assert seen[-1] == part.weight_bytes


def test_only_the_units_of_the_range_are_read(case: Cases, engine: Engine) -> None:
    """Blocks [1, 3) ask the store for two units; the head for its own, and tokens only when tied."""
    read: list[str] = []

    def spy(model: StoredModel) -> StoredModel:
        def read_unit(name: str) -> dict[str, Any]:
            read.append(name)
            return model.read_unit(name)

        return cast("StoredModel", Edited(model, read_unit=read_unit))

    engine.load_range(spy(case("llama", "float32").stored), 1, 3, "float32")
    assert read == ["block-001", "block-002"]
    read.clear()
    engine.load_head(spy(case("llama", "float32").stored), "float32")
    assert read == ["head"]
    read.clear()
    engine.load_head(spy(case("llama-tied-llama3rope", "float32").stored), "float32")
    assert read == ["head", "embed"]


def test_a_dropped_range_refuses_and_its_neighbour_serves_on(case: Cases, engine: Engine) -> None:
    """Dropping closes every session; a range that shares the blocks keeps its own and its bits."""
    model = case("llama", "float32").stored
    gone, stays = (engine.load_range(model, 1, 3, "float32") for _ in range(2))
    hidden = np.random.default_rng(0).standard_normal((2, 48)).astype(np.float32)
    for part in (gone, stays):
        part.open(1, 4)
    expected = gone.step(hidden, [SessionRows(1, 0, 2)])
    gone.drop()
    assert gone.kv_bytes == 0
    with pytest.raises(SessionError, match=r"blocks \[1, 3\) were dropped"):
        gone.step(hidden, [SessionRows(1, 2, 2)])
    with pytest.raises(SessionError, match="were dropped"):
        gone.open(2, 4)
    with pytest.raises(SessionError, match="session 1: is not open"):
        gone.length(1)
    assert np.array_equal(stays.step(hidden, [SessionRows(1, 0, 2)]), expected)


def test_loading_beside_steps_changes_no_bit(case: Cases, engine: Engine) -> None:
    """Ranges load and drop in another thread while a session decodes: its logits stay transformers'."""
    model = case("gemma2", "float32")
    chunks = [[7, 8, 9, 10, 11, 12], *([token] for token in range(20, 50))]
    chain = Chain.load(engine, model.stored, [2], "float32")
    stop, loads, errors = threading.Event(), 0, []

    def churn() -> None:
        nonlocal loads
        try:
            while not stop.is_set():
                part = engine.load_range(model.stored, 1, 5, "bfloat16")
                engine.load_range(model.stored, 0, 3, "float32").drop()
                part.drop()
                loads += 1
        except EngineError as error:
            errors.append(error)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        found = chain.logits(1, chunks)
    finally:
        stop.set()
        thread.join()
    assert not errors
    assert loads > 0
    assert all(
        torch.equal(a, b) for a, b in zip(reference_logits(model.reference, chunks), found, strict=True)
    )


def test_hidden_states_of_a_message_need_no_alignment(case: Cases, engine: Engine) -> None:
    """A read-only array at an odd address, as it comes out of a frame, gives the same bits as a fresh one."""
    part = engine.load_range(case("llama", "float32").stored, 0, 5, "float32")
    hidden = np.random.default_rng(0).standard_normal((5, 48)).astype(np.float32)
    odd = np.frombuffer(b"x" + hidden.tobytes(), np.uint8)[1:].view(np.float32).reshape(hidden.shape)
    assert odd.ctypes.data % 4 == 1
    assert not odd.flags.writeable
    part.open(1, 5)
    part.open(2, 5)
    fresh = part.step(hidden, [SessionRows(1, 0, 5)])
    assert np.array_equal(part.step(odd, [SessionRows(2, 0, 5)]), fresh)


def resident() -> int:
    """Anonymous resident bytes of this process."""
    status = Path("/proc/self/status").read_text("ascii")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))


def test_a_dropped_range_of_the_real_model_gives_its_memory_back(
    record_property: Callable[[str, object], None],
) -> None:
    """Loading takes the weights and little more; dropping returns them to the system, not to an allocator."""
    engine, model = create_engine("torch", "cpu", 1), smollm2_stored()
    engine.load_range(model, 0, 1, "float32").drop()
    before = resident()
    part = engine.load_range(model, 0, 30, "float32")
    assert part.weight_bytes > 400 << 20
    assert abs(resident() - before - part.weight_bytes) < 32 << 20
    weights = part.weight_bytes
    part.drop()
    left = resident() - before
    record_property("dropped_mib", weights / (1 << 20))
    record_property("left_resident_mib", left / (1 << 20))
    assert left < 16 << 20
