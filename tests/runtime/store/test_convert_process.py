"""The process that converts a stored model before hosts load it: what it says, refuses, and leaves behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from splitinfer.segment_runtime import convert as module
from splitinfer.segment_runtime.convert import convert
from splitinfer.segment_runtime.store.conversions import conversions
from splitinfer.segment_runtime.store.converted import FOLDER
from splitinfer.segment_runtime.store.errors import ModelNotFound
from splitinfer.segment_runtime.store.reader import ModelStore
from tests.support.models import random_case

NAME = "llama-even"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a model that has a graph and one that has none."""
    folder = tmp_path_factory.mktemp("convert")
    for name in (NAME, "gpt2"):
        random_case(name, folder)
    return folder / "models"


@pytest.fixture
def store(root: Path) -> ModelStore:
    """That store, without conversions."""
    shutil.rmtree(root / FOLDER, ignore_errors=True)
    return ModelStore(root)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets `main` run in this process: the tests' own logging stays, and SIGTERM's handler comes back."""
    monkeypatch.setattr(module, "configure_logging", lambda _: None)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def said(output: str) -> list[dict[str, Any]]:
    """Its lines, without those of the log, which a process of its own writes to stderr."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_as_a_process_it_converts_once_and_then_finds_it_there(store: ModelStore) -> None:
    """Progress up to the whole source, how much was exact; the second time one line; it ends though its pipe is open."""
    command = [sys.executable, "-P", "-m", module.__name__, "--store", str(store.root)]
    command += ["--model", NAME, "--dtype", "int4", "--exit-with-parent"]
    told = []
    for _ in range(2):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.wait(60) == 0
            assert process.stdout is not None
            told.append(said(process.stdout.read()))
    *progress, last = told[0]
    whole = sum(unit.bytes for unit in store.open(NAME).index.units.values())
    assert {line["event"] for line in progress} == {"converting"}
    assert [progress[at]["done_bytes"] for at in (0, -1)] == [0, whole] == [0, progress[0]["total_bytes"]]
    assert last == {"event": "converted", "exact": 0, "total": 5 * 7 + 2}
    assert told[1] == [{"event": "there"}]
    assert conversions(store.open(NAME)) == ("int4",)


def test_a_model_without_a_graph_is_not_converted_for_nothing(store: ModelStore) -> None:
    """No engine has it in few bits: the field, the model and the mend are named, and nothing is written."""
    with pytest.raises(ValueError, match=r"dtype: int4: gpt2: .*no recipe for 'gpt2'.*use a float dtype"):
        convert(store, "gpt2", "int4")
    assert not (store.root / FOLDER).exists()


def test_wrong_input_is_refused_with_two(
    store: ModelStore, capsys: pytest.CaptureFixture[str], in_process: None
) -> None:
    """A model that is not there, by the store's own words; a dtype that is no conversion."""
    with pytest.raises(ModelNotFound):
        convert(store, "absent", "int8")
    assert module.main(["--store", str(store.root), "--model", "absent", "--dtype", "int8"]) == 2
    assert "error: absent: not in the store" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        module.main(["--model", NAME, "--dtype", "float16"])
    assert "--dtype" in capsys.readouterr().err


def test_a_store_that_takes_no_files_is_said(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is no error: hosts serve from such a store, each with a conversion of its own."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    convert(store, NAME, "int8")
    last = said(capsys.readouterr().out)[-1]
    assert last["event"] == "not kept"
    assert "Read-only file system" in last["reason"]


def test_stopped_in_the_middle_of_a_file_it_leaves_no_half_of_it(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, in_process: None
) -> None:
    """SIGTERM while it writes: 130, and only whole units in the store."""
    write = Path.write_bytes

    def interrupted(path: Path, data: bytes) -> int:
        written = write(path, data)
        if "block-001" in path.name:
            signal.raise_signal(signal.SIGTERM)
        return written

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    assert module.main(["--store", str(store.root), "--model", NAME, "--dtype", "int4"]) == 130
    model = store.open(NAME)
    left = {path.name for path in (store.root / FOLDER / model.digest / "int4").iterdir()}
    assert left == {f"{unit}.{end}" for unit in ("embed", "block-000") for end in ("json", "safetensors")}
