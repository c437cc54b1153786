"""llama.cpp is built when it must be, refused with what to do, and its output read."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import llama_build
from benchmarks.llama import RivalFailed, Speed, parse
from benchmarks.llama_build import FLAGS, PROGRAMS, CannotBuild, build, compiler, key, pinned

ROOT = Path(__file__).parents[3]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a compiler that is there as far as anybody looks."""
    monkeypatch.setenv("SPLITINFER_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "true")
    return tmp_path / "llama-cpp"


def fake_make(version: str, cxx: str, work: Path, note: object) -> Path:
    """A build without compiling."""
    (work / "done" / "bin").mkdir(parents=True)
    return work / "done"


def test_the_version_is_the_lock_s() -> None:
    """What the benchmark builds cannot drift from what is pinned."""
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    assert f"llama-cpp-python=={pinned(lock)}" in lock.splitlines()


def test_a_lock_without_the_pin_is_refused() -> None:
    """And the message says how to mend it."""
    with pytest.raises(CannotBuild, match="make lock"):
        pinned("numpy==2.0\nnot-llama-cpp-python==1.0\n")


def test_another_flag_version_or_program_is_another_build() -> None:
    """A build is never taken for one that was made otherwise."""
    keys = {
        key("1.0"),
        key("1.1"),
        key("1.0", (*FLAGS, "-DGGML_BLAS=ON")),
        key("1.0", FLAGS, PROGRAMS[:1]),
    }
    assert len(keys) == 4


def test_a_missing_build_is_made_once_and_older_ones_go(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One build is in the cache, the pinned one, and a second call makes nothing."""
    monkeypatch.setattr(llama_build, "_make", fake_make)
    (home / "0.0.1-000000000000" / "bin").mkdir(parents=True)
    notes: list[str] = []
    made = build(notes.append)
    assert [path.name for path in home.iterdir()] == [made.folder.name] == [key(made.version)]
    assert any("building llama.cpp" in note for note in notes)
    notes.clear()
    assert build(notes.append) == made
    assert notes == []


def test_a_build_that_fails_leaves_nothing_that_looks_finished(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run tries again."""

    def fails(*_: object) -> Path:
        raise CannotBuild("ninja failed")

    monkeypatch.setattr(llama_build, "_make", fails)
    with pytest.raises(CannotBuild, match="ninja failed"):
        build(lambda _: None)
    assert list(home.iterdir()) == []


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By name, with what to install."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotBuild, match=r"no C\+\+ compiler .* apt-get install g\+\+"):
        compiler()


def test_a_named_compiler_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not silently replaced by another."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CannotBuild, match="CXX: no-such-compiler"):
        compiler()


def test_speeds_are_read_by_batch_size() -> None:
    """Among lines that are no measurements."""
    output = 'loading\n{"pl": 1, "speed_pp": 300.5, "speed_tg": 40.0}\n{"pl": 4, "speed_pp": 310, "speed_tg": 90}\n'
    assert parse(output) == {1: Speed(300.5, 40.0), 4: Speed(310.0, 90.0)}


def test_no_measurement_is_an_error() -> None:
    """A context that was too small makes llama-batched-bench skip a measurement and end well."""
    with pytest.raises(RivalFailed, match="nothing to read: main: n_kv_max"):
        parse("main: n_kv_max = 64\n")
