"""``splitinfer models``: what is printed where, and the exit codes."""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import re
import sys
import threading
from pathlib import Path

import pytest

from splitinfer.segment_runtime.store import commands
from tests.unit.store.folders import CONFIG, random_tensors, write_folder


def run(*words: str) -> int:
    """As the command line calls it."""
    parser = argparse.ArgumentParser()
    commands.register(parser.add_subparsers())
    args = parser.parse_args(["models", *words])
    return int(args.run(args))


def test_import_and_list(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The answer on stdout, the progress in plain lines on stderr, then the model in the list."""
    store = str(tmp_path / "store")
    assert run("import", str(folder), "--name", "mine", "--store", store) == 0
    told = capsys.readouterr()
    assert re.match(r"mine: stored in \d+\.\d s: llama, 3 blocks, 2", told.out)
    assert "mine: write 100% of " in told.err
    assert run("import", str(folder), "--name", "mine", "--store", store) == 0
    again = capsys.readouterr()
    assert re.search(
        r"is stored already, with the same content \(compared in \d+\.\d s, nothing written\)", again.out
    )
    assert "write" not in again.err
    assert run("list", "--store", store) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "TYPE", "BLOCKS", "DTYPE", "CONVERTED", "CONTEXT", "SIZE", "SOURCE"]
    assert lines[1].split()[:5] == ["mine", "llama", "3", "float32", "-"]
    assert lines[1].endswith(str(folder))


def test_a_store_that_is_not_there_is_no_empty_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that was mistyped is an error; one without models says how to get the first."""
    assert run("list", "--store", str(tmp_path / "mistyped")) == 2
    assert capsys.readouterr().err.startswith(f"error: --store: {tmp_path / 'mistyped'} is no folder")
    (tmp_path / "empty").mkdir()
    assert run("list", "--store", str(tmp_path / "empty")) == 0
    assert "splitinfer models import smollm2" in capsys.readouterr().out


def test_import_converts_ahead_and_says_what_was_exact(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--dtype`` once or twice, on a first import and on one of the same content; ``list`` names what is there."""
    store = str(tmp_path / "store")
    assert run("import", str(folder), "--name", "mine", "--store", store, "--dtype", "int4") == 0
    told = capsys.readouterr()
    assert re.search(
        r"mine: converted to int4: 0 of \d+ matrices repacked without quantising a second time", told.out
    )
    assert "mine to int4: convert 100% of " in told.err
    both = ("--dtype", "int8", "--dtype", "int4", "--dtype", "int8")
    assert run("import", str(folder), "--name", "mine", "--store", store, *both) == 0
    told = capsys.readouterr()
    assert told.out.count("converted to int8") == told.out.count("converted to int4") == 1
    assert run("list", "--store", store) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[4] == "int8,int4"


def test_import_removes_conversions_of_what_it_replaced(folder: Path, tmp_path: Path) -> None:
    """The same name with other weights: the old conversion belongs to nobody."""
    store = tmp_path / "store"
    assert run("import", str(folder), "--name", "mine", "--store", str(store), "--dtype", "int4") == 0
    (old,) = (store / ".converted").iterdir()
    other = tmp_path / "other"
    write_folder(other, CONFIG, random_tensors(CONFIG, seed=8))
    assert run("import", str(other), "--name", "mine", "--store", str(store), "--dtype", "int4") == 0
    (new,) = (store / ".converted").iterdir()
    assert new != old


def test_default_store(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``--store``, under $SPLITINFER_HOME."""
    monkeypatch.setenv("SPLITINFER_HOME", str(tmp_path / "home"))
    assert run("import", str(folder)) == 0
    assert (tmp_path / "home" / "models" / "tiny" / "index.json").is_file()


@pytest.mark.parametrize(
    "words", [("import", "/nowhere"), ("import", "s3://x"), ("import", ".", "--name", "a/b")]
)
def test_user_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    """``error: ...`` on stderr, nothing on stdout, exit code 2."""
    assert run(*words, "--store", str(tmp_path / "store")) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")


def test_list_names_a_damaged_model(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One damaged model does not hide the others."""
    store = tmp_path / "store"
    assert run("import", str(folder), "--name", "good", "--store", str(store)) == 0
    assert run("import", str(folder), "--name", "bad", "--store", str(store)) == 0
    (store / "bad" / "index.json").write_text("{}")
    assert run("list", "--store", str(store)) == 2
    told = capsys.readouterr()
    assert "good" in told.out
    assert "bad/index.json" in told.err


def test_interrupt(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C: 130, as shells have it."""

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "_lines", lambda: interrupt)
    assert run("import", str(folder), "--store", str(tmp_path / "store")) == 130
    assert list((tmp_path / "store").iterdir()) == []


def test_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a bar is drawn: control sequences, the model's name, no plain lines."""
    config = CONFIG | {"num_hidden_layers": 40}
    write_folder(tmp_path / "deep", config, random_tensors(config))
    primary, secondary = pty.openpty()
    drawn = bytearray()

    def drain() -> None:
        with contextlib.suppress(OSError):  # a terminal whose other end is closed
            while chunk := os.read(primary, 4096):
                drawn.extend(chunk)

    reader = threading.Thread(target=drain)
    reader.start()
    with os.fdopen(secondary, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        assert run("import", str(tmp_path / "deep"), "--store", str(tmp_path / "store")) == 0
    reader.join(30)
    os.close(primary)
    assert b"\x1b[" in drawn
    assert b"deep: write" in drawn


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (538_090_408, "513.2 MiB"), (5 << 40, "5.0 TiB")],
)
def test_size(count: int, text: str) -> None:
    """Binary units, one decimal."""
    assert text == commands.size(count)
