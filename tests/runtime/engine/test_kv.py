"""KV: exact accounting, bytes that can be moved, and errors that change nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from splitinfer.segment_runtime.engine.port import (
    Array,
    Engine,
    KvBlob,
    LoadedRange,
    SessionError,
    SessionRows,
)
from tests.support.chains import Chain
from tests.support.leaks import NOTHING, leak, traced
from tests.support.models import CASES, Case

Cases = Callable[[str, str], Case]


def rows(part: LoadedRange, count: int, seed: int = 0, dtype: str = "float32") -> Array:
    """Random hidden states for the small models."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return np.random.default_rng(seed).standard_normal((count, 48)).astype(kind)


class KvMachine(RuleBasedStateMachine):
    """A range beside the plainest model of it: sessions with a capacity and a length."""

    def __init__(self, part: LoadedRange, twin: LoadedRange) -> None:
        super().__init__()
        self.part = part
        self.twin = twin
        self.model: dict[int, tuple[int, int]] = {}
        self.blobs: list[KvBlob] = []

    ids = st.integers(0, 4)

    @rule(session=ids, capacity=st.integers(0, 12))
    def open(self, session: int, capacity: int) -> None:
        """Opening reserves; a second time, or for nothing, is an error."""
        if session in self.model or capacity == 0:
            with pytest.raises(SessionError):
                self.part.open(session, capacity)
        else:
            self.part.open(session, capacity)
            self.model[session] = (capacity, 0)

    @rule(session=ids)
    def close(self, session: int) -> None:
        """Closing frees; what is not open is an error."""
        if session in self.model:
            self.part.close(session)
            del self.model[session]
        else:
            with pytest.raises(SessionError):
                self.part.close(session)

    @rule(entries=st.lists(st.tuples(ids, st.integers(-1, 1), st.integers(0, 5)), max_size=4))
    def step(self, entries: list[tuple[int, int, int]]) -> None:
        """A good batch appends to each of its sessions; a bad one is refused and changes nothing."""
        batch = [SessionRows(s, self.model.get(s, (0, 0))[1] + max(0, skew), n) for s, skew, n in entries]
        good = bool(batch) and len({entry.session for entry in batch}) == len(batch)
        for entry in batch:
            capacity, length = self.model.get(entry.session, (-1, -1))
            good = good and entry.position == length and 0 < entry.count <= capacity - length
        hidden = rows(self.part, sum(entry.count for entry in batch))
        if good:
            assert self.part.step(hidden, batch).shape == hidden.shape
            for entry in batch:
                self.model[entry.session] = (self.model[entry.session][0], entry.position + entry.count)
        else:
            with pytest.raises(SessionError):
                self.part.step(hidden, batch)

    @precondition(lambda self: any(length for _, length in self.model.values()))
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        """Exported KV appends to a session that is as long as where it begins, and exports as the same bytes."""
        session = data.draw(st.sampled_from([s for s, (_, length) in self.model.items() if length]))
        length = self.model[session][1]
        begin = data.draw(st.integers(0, length))
        end = data.draw(st.integers(begin, length))
        blob = self.part.export_kv(session, begin, end)
        assert len(blob.data) == (end - begin) * self.part.kv_bytes_per_token
        self.twin.open(0, 12)
        self.twin.import_kv(0, self.part.export_kv(session, 0, begin))
        self.twin.import_kv(0, blob)
        assert self.twin.length(0) == end
        assert self.twin.export_kv(0, begin, end) == blob
        self.twin.close(0)

    @rule(session=ids, begin=st.integers(-1, 13), end=st.integers(-1, 13))
    def export_out_of_range(self, session: int, begin: int, end: int) -> None:
        """Only tokens that are there can be exported."""
        length = self.model.get(session, (0, -1))[1]
        if not 0 <= begin <= end <= length:
            with pytest.raises(SessionError):
                self.part.export_kv(session, begin, end)

    @invariant()
    def accounts(self) -> None:
        """Reserved bytes and lengths are exact, always; the twin holds nothing."""
        expected = sum(capacity for capacity, _ in self.model.values()) * self.part.kv_bytes_per_token
        assert self.part.kv_bytes == expected
        assert {s: self.part.length(s) for s in self.model} == {s: n for s, (_, n) in self.model.items()}
        assert self.twin.kv_bytes == 0

    def teardown(self) -> None:
        """Leave the range empty for the next run."""
        for session in self.model:
            self.part.close(session)
        assert self.part.kv_bytes == 0


@pytest.mark.parametrize("name", ["qwen3", "mistral-sliding"])
def test_any_sequence_of_calls_accounts_exactly(case: Cases, each_engine: Engine, name: str) -> None:
    """Random opens, steps, moves and closes, good and bad, against a plain model."""
    part, twin = (each_engine.load_range(case(name, "float32").stored, 1, 3, "float32") for _ in range(2))
    machine: Any = lambda: KvMachine(part, twin)  # noqa: E731 - typed as a class, though a factory will do
    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, stateful_step_count=25, deadline=None)
    )


@pytest.mark.parametrize("name", CASES)
def test_bytes_per_token_are_those_of_the_config(case: Cases, engine: Engine, name: str) -> None:
    """Keys and values of every kv head of every block, in the dtype."""
    stored = case(name, "float32").stored
    for dtype, size in (("float32", 4), ("bfloat16", 2), ("float16", 2)):
        part = engine.load_range(stored, 0, 3, dtype)
        assert part.kv_bytes_per_token == 3 * stored.index.kv_bytes_per_token(size)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral-sliding", "gpt2"])
def test_moved_kv_continues_with_the_same_bits(case: Cases, engine: Engine, name: str, dtype: str) -> None:
    """A session goes on in another range of the same blocks, moved in two parts, as if it had stayed."""
    stored = case(name, dtype).stored
    here, there = (engine.load_range(stored, 1, 4, dtype) for _ in range(2))
    here.open(1, 30)
    here.step(rows(here, 11, 1, dtype), [SessionRows(1, 0, 11)])
    there.open(9, 40)
    there.import_kv(9, here.export_kv(1, 0, 11))
    here.step(rows(here, 2, 2, dtype), [SessionRows(1, 11, 2)])
    there.import_kv(9, here.export_kv(1, 11, 13))
    stayed = here.step(rows(here, 1, 3, dtype), [SessionRows(1, 13, 1)])
    moved = there.step(rows(here, 1, 3, dtype), [SessionRows(9, 13, 1)])
    assert np.array_equal(stayed.astype(np.float32), moved.astype(np.float32))
    assert here.export_kv(1, 0, 14) == there.export_kv(9, 0, 14)


def test_exported_bytes_are_laid_out_as_the_port_says(case: Cases, each_engine: Engine) -> None:
    """Per block keys then values, each row-major ``[kv_heads, tokens, head_dim]``: one block's bytes are a slice."""
    engine, stored = each_engine, case("qwen3", "float32").stored
    both, second = engine.load_range(stored, 0, 2, "float32"), engine.load_range(stored, 1, 2, "float32")
    first = engine.load_range(stored, 0, 1, "float32")
    hidden = rows(both, 6)
    for part in (both, first, second):
        part.open(1, 6)
    both.step(hidden, [SessionRows(1, 0, 6)])
    second.step(first.step(hidden, [SessionRows(1, 0, 6)]), [SessionRows(1, 0, 6)])
    blob = both.export_kv(1, 2, 5)
    assert blob.data == first.export_kv(1, 2, 5).data + second.export_kv(1, 2, 5).data
    index = stored.index
    shape = (2, 2, index.kv_heads, 3, index.head_dim)
    whole = np.frombuffer(both.export_kv(1, 0, 6).data, np.float32).reshape((*shape[:3], 6, shape[4]))
    assert np.array_equal(np.frombuffer(blob.data, np.float32).reshape(shape), whole[:, :, :, 2:5])


def test_bad_input_is_refused_before_anything_changes(case: Cases, each_engine: Engine) -> None:
    """Every wrong argument is a SessionError that says what, and the next good step has the same bits."""
    part = each_engine.load_range(case("qwen3", "float32").stored, 0, 5, "float32")
    for session in (1, 2):
        part.open(session, 8)
        part.step(rows(part, 3, session), [SessionRows(session, 0, 3)])
    before = [part.export_kv(session, 0, 3) for session in (1, 2)]
    two = [SessionRows(1, 3, 1), SessionRows(2, 3, 1)]
    wrong: list[tuple[Array, list[SessionRows], str]] = [
        (rows(part, 2), [SessionRows(1, 3, 1), SessionRows(7, 0, 1)], "session 7: is not open"),
        (rows(part, 2), [SessionRows(1, 3, 1), SessionRows(2, 2, 1)], "session 2: position 2"),
        (rows(part, 2), [SessionRows(1, 3, 1), SessionRows(1, 4, 1)], "session 1: is in the batch twice"),
        (
            rows(part, 7),
            [SessionRows(1, 3, 1), SessionRows(2, 3, 6)],
            "session 2: 6 tokens at 3 pass its capacity of 8",
        ),
        (rows(part, 0), [SessionRows(1, 3, 0)], "session 1: count 0"),
        (rows(part, 3), two, "hidden: shape"),
        (rows(part, 2)[:, :-1], two, "hidden: shape"),
        (rows(part, 2).astype(np.float16), two, "hidden: dtype float16"),
        (rows(part, 0), [], "batch: is empty"),
    ]
    for hidden, batch, message in wrong:
        with pytest.raises(SessionError, match=message):
            part.step(hidden, batch)
    blob = before[0]
    for bad, message in (
        (blob, "position 0"),
        (replace(blob, begin=3, end=6, data=blob.data[:-1]), "bytes of KV"),
        (replace(blob, begin=3, end=6, dtype="float16"), "KV is float16"),
        (replace(blob, begin=3, end=9, data=blob.data * 2), "capacity"),
        (replace(blob, begin=3, end=2, data=b""), "KV of tokens"),
    ):
        with pytest.raises(SessionError, match=message):
            part.import_kv(1, bad)
    assert [part.export_kv(session, 0, 3) for session in (1, 2)] == before
    assert [part.length(session) for session in (1, 2)] == [3, 3]
    after = part.step(rows(part, 2, 5), two)
    twin = each_engine.load_range(case("qwen3", "float32").stored, 0, 5, "float32")
    for session in (1, 2):
        twin.open(session, 8)
        twin.step(rows(part, 3, session), [SessionRows(session, 0, 3)])
    assert np.array_equal(after, twin.step(rows(part, 2, 5), two))


def resident() -> int:
    """Anonymous resident bytes of this process."""
    status = Path("/proc/self/status").read_text("ascii")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))


def test_reserved_kv_is_resident_only_where_it_is_written(case: Cases, each_engine: Engine) -> None:
    """A gigabyte of promised context costs nothing until tokens come, and is gone when the session closes."""
    part = each_engine.load_range(case("qwen3", "float32").stored, 0, 5, "float32")
    before = resident()
    capacity = (1 << 30) // part.kv_bytes_per_token
    part.open(1, capacity)
    part.step(rows(part, 4), [SessionRows(1, 0, 4)])
    assert part.kv_bytes == capacity * part.kv_bytes_per_token
    assert resident() - before < 64 << 20, "huge pages may take a few megabytes"
    part.close(1)
    assert resident() - before < 8 << 20


def test_sessions_that_come_and_go_leave_nothing(case: Cases, each_engine: Engine) -> None:
    """Resident memory is flat over hundreds of sessions of several megabytes each, and Python keeps nothing of one."""
    stored = case("qwen3", "float32").stored
    chain = Chain.load(each_engine, stored, [2], "float32")
    residents, sizes = [], []
    with traced() as held:
        for session in range(300):
            chain.open(session, 2000)
            chain.step([(session, 0, [5] * 100)])
            chain.close(session)
            if session >= 100 and session % 40 == 0:
                sizes.append(held())
                residents.append(resident())
    # In every round, as for the bytes that Python holds: the process has a history, and the system may give it a few
    # megabytes at any one moment. Sixteen kilobytes of a session's megabytes is what must not stay.
    assert leak(residents, 40) < 16 << 10, residents
    assert leak(sizes, 40) < NOTHING, sizes
