"""Logs of a host and an entry: one JSON object per line, whoever wrote it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from splitinfer.segment_runtime.store.importer import import_model
from splitinfer.segment_runtime.store.reader import ModelStore
from tests.runtime.endpoint.conftest import start_entry
from tests.support.models import Case
from tests.support.pipelines import start_host
from tests.support.tiny_text import byte_level_tokenizer
from tests.unit.store.folders import CONFIG, write_folder


def records(text: str) -> list[dict[str, Any]]:
    """Every line as the object it is; a line that is none fails with the line."""
    found = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            pytest.fail(f"not JSON: {line}")
        assert isinstance(record, dict), line
        assert {"event", "level", "timestamp"} <= record.keys(), line
        found.append(record)
    return found


SPEAKERS = """
import logging, sys, threading, warnings
import structlog
from splitinfer.segment_runtime.process import configure_logging

configure_logging("info")
structlog.get_logger().info("ours", node="n", blocks=3)
structlog.get_logger().debug("too fine")
logging.getLogger("grpc._cython.cygrpc").warning("stdlib %s of %d\\nin two lines", "arguments", 2)
logging.getLogger("grpc").debug("too fine")

# A library that brings a handler and a format of its own, as transformers does when it is imported.
library = logging.getLogger("library")
library.addHandler(logging.StreamHandler())
library.propagate = False
library.getChild("part").error("its own handler")

def fail(prompt):
    raise ValueError("the cause")

try:
    fail("a secret")
except ValueError:
    structlog.get_logger("named").exception("ours failed")
    logging.getLogger("stdlib").exception("theirs failed")
warnings.warn("deprecated", stacklevel=1)
thread = threading.Thread(target=fail, args=("a secret",), name="loader")
thread.start()
thread.join()

class Unlucky:
    def __del__(self):
        fail("a secret")

Unlucky()
structlog.contextvars.bind_contextvars(request="r1")
structlog.get_logger().error("bound")
fail("a secret")
"""


@pytest.fixture(scope="module")
def spoken() -> tuple[str, list[dict[str, Any]]]:
    """Everything that can write to the log of a process, in one: the raw text and its records."""
    done = subprocess.run([sys.executable, "-c", SPEAKERS], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    return done.stderr, records(done.stderr)


def test_whoever_writes_a_line_it_is_one_object(spoken: tuple[str, list[dict[str, Any]]]) -> None:
    """Ours, the standard library's, a library's own handler, warnings, and what nobody caught, each with its level."""
    _, found = spoken
    assert [(record["level"], record["event"].splitlines()[0]) for record in found] == [
        ("info", "ours"),
        ("warning", "stdlib arguments of 2"),
        ("error", "its own handler"),
        ("error", "ours failed"),
        ("error", "theirs failed"),
        ("warning", found[5]["event"].splitlines()[0]),
        ("critical", "uncaught exception in thread loader"),
        ("critical", "exception ignored in Unlucky.__del__"),
        ("error", "bound"),
        ("critical", "uncaught exception"),
    ]
    assert "deprecated" in found[5]["event"]
    assert (found[0]["node"], found[0]["blocks"], found[8]["request"]) == ("n", 3, "r1")
    assert [found[i]["logger"] for i in (1, 2, 3, 4)] == [
        "grpc._cython.cygrpc",
        "library.part",
        "named",
        "stdlib",
    ]


def test_tracebacks_are_fields_without_values_of_variables(spoken: tuple[str, list[dict[str, Any]]]) -> None:
    """Source lines only: a local variable may hold what a user wrote."""
    text, found = spoken
    for index in (3, 4, 6, 7, 9):
        assert "ValueError: the cause" in found[index]["exception"]
    assert "a secret" not in text.replace('fail("a secret")', "").replace(r"fail(\"a secret\")", "")


def test_every_line_of_a_host_is_one_object(case: Case, root: Path, tmp_path: Path) -> None:
    """A real host at its most talkative; asyncio, which logs through the standard library, is heard among them."""
    host = start_host(root / "models", "loud", tmp_path, "--log-level", "debug")
    host.stop()
    found = records(host.log.read_text())
    assert {"listening", "stopped"} <= {record["event"] for record in found}
    assert "asyncio" in {record["logger"] for record in found}


def test_every_line_of_an_entry_is_one_object(tmp_path: Path) -> None:
    """A real entry, the same."""
    tokenizer = byte_level_tokenizer()
    write_folder(tmp_path / "tiny", CONFIG | {"vocab_size": tokenizer.get_vocab_size()})
    (tmp_path / "tiny" / "tokenizer.json").write_text(tokenizer.to_str())
    store = ModelStore(tmp_path / "store")
    import_model(tmp_path / "tiny", store=store)
    entry = start_entry(store.root, "tiny", tmp_path, "--log-level", "debug")
    assert entry.stdout is not None
    assert entry.stdin is not None
    said = entry.stdout.readline()
    assert b'"listening"' in said, (tmp_path / "entry.log").read_text()
    entry.stdin.close()
    assert entry.wait(30) == 0
    entry.stdout.close()
    found = records((tmp_path / "entry.log").read_text())
    assert {"listening", "stopped"} <= {record["event"] for record in found}
    assert "asyncio" in {record["logger"] for record in found}
