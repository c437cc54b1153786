"""Loading and dropping: bytes exact, blocks shared, and every wrong weight named."""

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
    Array,
    Engine,
    EngineError,
    LoadError,
    SessionError,
    SessionRows,
    UnsupportedModel,
)
from splitinfer.segment_runtime.entry.embed import Embedder
from splitinfer.segment_runtime.store.index import block_unit
from splitinfer.segment_runtime.store.reader import StoredModel
from tests.support.chains import Chain, reference_logits
from tests.support.models import CASES, Case, smollm2_stored

Cases = Callable[[str, str], Case]
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Edited:
    """A stored model whose units or config are not what the index promised."""

    def __init__(self, model: StoredModel, **changes: object) -> None:
        self._model = model
        self._changes = changes

    def __getattr__(self, name: str) -> object:
        return self._changes[name] if name in self._changes else getattr(self._model, name)


def with_unit(model: StoredModel, unit: str, edit: Callable[[dict[str, Any]], None]) -> StoredModel:
    """``model``, but ``unit`` reads as ``edit`` leaves it."""

    def read_unit(name: str) -> dict[str, Array]:
        tensors = {key: array.copy() for key, array in model.read_unit(name).items()}
        if name == unit:
            edit(tensors)
        return tensors

    return cast("StoredModel", Edited(model, read_unit=read_unit))


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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(case: Cases, engine: Engine, bad: float) -> None:
    """One NaN or infinity in a block: the model, the block and the tensor are named, and nothing stays loaded."""

    def poison(tensors: dict[str, Any]) -> None:
        tensors["mlp.up_proj.weight"][3, 5] = bad

    model = with_unit(case("llama", "float32").stored, "block-002", poison)
    with pytest.raises(LoadError, match=r"llama: block-002: tensor 'mlp.up_proj.weight' .*not finite"):
        engine.load_range(model, 0, 5, "float32")
    assert engine.resident_weight_bytes == 0


@pytest.mark.parametrize(("unit", "tensor"), [("head", "norm.weight"), ("embed", "tokens")])
def test_a_head_that_is_not_finite_is_named(case: Cases, engine: Engine, unit: str, tensor: str) -> None:
    """The head's own tensors and the tied token table are held to the same."""

    def poison(tensors: dict[str, Any]) -> None:
        tensors[tensor].reshape(-1)[-1] = np.nan

    model = with_unit(case("llama-tied-llama3rope", "float32").stored, unit, poison)
    with pytest.raises(LoadError, match=rf"{unit}: tensor '{tensor}' .*not finite"):
        engine.load_head(model, "float32")


def test_weights_that_overflow_the_dtype_are_named(case: Cases, engine: Engine) -> None:
    """A weight that float16 cannot hold would be infinite there: refused, where float32 loads."""

    def enlarge(tensors: dict[str, Any]) -> None:
        tensors["mlp.up_proj.weight"][0, 0] = 1e6

    model = with_unit(case("llama", "float32").stored, "block-000", enlarge)
    with pytest.raises(LoadError, match=r"'mlp.up_proj.weight' has values that are not finite in float16"):
        engine.load_range(model, 0, 1, "float16")
    engine.load_range(model, 0, 1, "float32")


def test_weights_that_do_not_match_the_config_are_named(case: Cases, engine: Engine) -> None:
    """A wrong shape, a missing tensor and one too many: each named with what was expected."""
    model = case("llama", "float32").stored
    edits: list[tuple[Callable[[dict[str, Any]], object], str]] = [
        (
            lambda t: t.update({"self_attn.k_proj.weight": t["self_attn.k_proj.weight"][:-1]}),
            r"'self_attn.k_proj.weight' has shape \(23, 48\), config.json asks for \(24, 48\)",
        ),
        (lambda t: t.pop("mlp.down_proj.weight"), "'mlp.down_proj.weight' is missing"),
        (lambda t: t.update({"extra": t["mlp.down_proj.weight"]}), "'extra' has no place"),
    ]
    for edit, message in edits:
        with pytest.raises(LoadError, match=message):
            engine.load_range(with_unit(model, "block-001", lambda t, e=edit: e(t)), 0, 2, "float32")  # type: ignore[misc]


def test_a_config_that_does_not_fit_the_index_is_refused(case: Cases, engine: Engine) -> None:
    """KV is accounted by the index and computed by the config: they must agree."""
    model = case("llama", "float32").stored
    edited = cast("StoredModel", Edited(model, config=model.config | {"num_key_value_heads": 4}))
    with pytest.raises(LoadError, match="kv_heads is 2 in the index and 4 in config"):
        engine.load_range(edited, 0, 1, "float32")


def test_what_has_no_recipe_is_refused_by_name(case: Cases, engine: Engine) -> None:
    """Another architecture, dtype or device: the message names it and what there is."""
    model = case("llama", "float32").stored
    other = cast("StoredModel", Edited(model, index=model.index.model_copy(update={"model_type": "mamba"})))
    with pytest.raises(UnsupportedModel, match=r"no recipe for 'mamba'; it has gemma2, .*qwen3"):
        engine.load_range(other, 0, 1, "float32")
    for load in (
        lambda: engine.load_range(model, 0, 1, "int4"),
        lambda: engine.load_head(model, "int4"),
    ):
        with pytest.raises(UnsupportedModel, match="no 'int4'; it has float32, bfloat16, float16"):
            load()
    with pytest.raises(UnsupportedModel, match="'tpu:0'"):
        create_engine("torch", "tpu:0", 1)
    with pytest.raises(UnsupportedModel, match="'mps': the torch engine runs on cpu and cuda"):
        create_engine("torch", "mps", 1)
    with pytest.raises(UnsupportedModel, match="threads: 0"):
        create_engine("torch", "cpu", 0)


def test_variants_that_a_recipe_is_wrong_for_are_refused_by_field(case: Cases, engine: Engine) -> None:
    """A config that changes what a block computes in a way that the gate does not cover."""
    for name, field in (("gpt2", "add_cross_attention"), ("gemma3", "use_bidirectional_attention")):
        model = case(name, "float32").stored
        edited = cast("StoredModel", Edited(model, config=model.config | {field: True}))
        with pytest.raises(UnsupportedModel, match=field):
            engine.load_range(edited, 0, 1, "float32")


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (3, 2), (-1, 2), (0, 6), (5, 6)])
def test_a_range_that_is_not_in_the_model_is_refused(
    case: Cases, engine: Engine, start: int, stop: int
) -> None:
    """Empty, reversed or outside: the message says which blocks there are."""
    with pytest.raises(LoadError, match="it has blocks 0 to 4"):
        engine.load_range(case("llama", "float32").stored, start, stop, "float32")


def test_cuda_that_is_not_there_is_said_so() -> None:
    """Without a CUDA device the error says so and what to do; with one the last device's neighbour is refused."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    message = "there are" if count else "torch sees no CUDA device here; use --device cpu"
    with pytest.raises(UnsupportedModel, match=message):
        create_engine("torch", f"cuda:{count}", 1)


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


def test_a_head_refuses_what_it_cannot_multiply(case: Cases, engine: Engine) -> None:
    """Wrong width, rank or dtype: an EngineError that says what was asked."""
    head = engine.load_head(case("llama", "float32").stored, "float32")
    for hidden in (np.zeros((1, 47), np.float32), np.zeros(48, np.float32), np.zeros((0, 48), np.float32)):
        with pytest.raises(EngineError, match="hidden: shape"):
            head.logits(hidden)
    with pytest.raises(EngineError, match="hidden: dtype float16"):
        head.logits(np.zeros((1, 48), np.float16))


def test_embedding_refuses_what_is_not_in_its_tables(case: Cases) -> None:
    """A token out of the vocabulary, a position past a learned table, a dtype that is none: a ValueError."""
    llama, opt = (Embedder(case(name, "float32").stored, "float32") for name in ("llama", "opt"))
    for token in (-1, 199):
        with pytest.raises(ValueError, match=f"token {token}: the vocabulary has ids 0 to 198"):
            llama.embed([5, token], 0)
    assert opt.embed([1, 2], 126).shape == (2, 48)
    with pytest.raises(ValueError, match=r"positions \[127, 129\): the model has learned 128"):
        opt.embed([1, 2], 127)
    with pytest.raises(ValueError, match="position"):
        opt.embed([1], -1)
    with pytest.raises(ValueError, match="'int4' is not one of"):
        Embedder(case("llama", "float32").stored, "int4")


def resident() -> int:
    """Anonymous resident bytes of this process."""
    status = Path("/proc/self/status").read_text("ascii")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))


def test_a_dropped_range_of_the_real_model_gives_its_memory_back() -> None:
    """Loading takes the weights and little more; dropping returns them to the system, not to an allocator."""
    engine, model = create_engine("torch", "cpu", 1), smollm2_stored()
    engine.load_range(model, 0, 1, "float32").drop()
    before = resident()
    part = engine.load_range(model, 0, 30, "float32")
    assert part.weight_bytes > 400 << 20
    assert abs(resident() - before - part.weight_bytes) < 32 << 20
    part.drop()
    assert resident() - before < 16 << 20
