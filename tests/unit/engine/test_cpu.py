"""How many threads an engine gets, and what it says of the CPU it computes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from splitinfer.segment_runtime.engine import checks, cpu
from splitinfer.segment_runtime.engine.port import UnsupportedModel
from splitinfer.segment_runtime.engine.threads import MAX_THREADS


def test_without_a_number_an_engine_gets_the_cpus_that_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of the machine: the number is asked for when the engine is made, and what is said wins over it."""
    monkeypatch.setattr(checks, "usable_cpus", lambda: 3)
    assert checks.thread_count(None) == 3
    assert checks.thread_count(5) == 5
    monkeypatch.setattr(checks, "usable_cpus", lambda: 1)
    assert checks.thread_count(None) == 1


@pytest.mark.parametrize("threads", [0, -1, MAX_THREADS + 1])
def test_less_than_a_thread_or_more_than_any_machine_has_is_refused_by_name(threads: int) -> None:
    """0 is no word for "as many as there are"."""
    with pytest.raises(UnsupportedModel, match=f"^threads: {threads}: it must be from 1 to {MAX_THREADS}$"):
        checks.thread_count(threads)


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A /proc/cpuinfo of the test's own."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(cpu, "Path", lambda _: file)
    monkeypatch.setattr("platform.machine", lambda: "m")
    cpu._cpu_flags.cache_clear()
    yield file
    cpu._cpu_flags.cache_clear()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx512f avx2 sse\n\nflags : amx_int8\n", "m+avx2+avx512f"),
        ("Features : fp asimd asimddp\n", "m+asimd+asimddp"),
        ("flags : avx2048 xavx2\n", "m"),
        ("model name : avx2\n", "m"),
        (None, "m"),
    ],
)
def test_the_instruction_set_is_the_vectors_that_kernels_differ_by(
    proc: Path, text: str | None, expected: str
) -> None:
    """Of the first CPU, whole words, in one order whatever the kernel's: two nodes alike say the same."""
    if text is not None:
        proc.write_text(text, "ascii")
    assert cpu.instruction_set() == expected
