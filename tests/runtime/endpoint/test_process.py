"""The entry as a process: how it ends on SIGTERM, and what it says where it cannot begin."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer, decoders

from splitinfer.segment_runtime.store.importer import import_model
from splitinfer.segment_runtime.store.reader import ModelStore
from tests.runtime.endpoint.conftest import Endpoint, start_entry
from tests.support.models import save_random_model, smollm2_stored
from tests.support.pipelines import HostProcess, cut, start_host
from tests.support.tiny_text import byte_level_tokenizer
from tests.support.waiting import until

Entry = subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """One host of one thread."""
    started = start_host(smollm2_stored().path.parent, "node-0", tmp_path_factory.mktemp("process"))
    yield started
    started.stop()


@contextlib.contextmanager
def empty(host: HostProcess, logs: Path, *options: str) -> Iterator[tuple[Entry, Endpoint]]:
    """An entry process without a plan, and a host that may serve one."""
    model = smollm2_stored()
    process = start_entry(model.path.parent, model.name, logs, *options)
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        yield (
            process,
            Endpoint(f"http://{said['http']}", f"http://{said['control']}", {"node-0": host}, model),
        )
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def serving(
    host: HostProcess, logs: Path, *options: str, concurrency: int = 8
) -> Iterator[tuple[Entry, Endpoint]]:
    """An entry process that serves all blocks over one host."""
    with empty(host, logs, *options) as (process, endpoint):
        endpoint.change(cut(endpoint.model, [], ["node-0"]), concurrency)
        yield process, endpoint


class Client(threading.Thread):
    """Reads one stream of tokens to its end."""

    def __init__(self, endpoint: Endpoint, tokens: int) -> None:
        super().__init__(daemon=True)
        self.body = {"model": endpoint.model.name, "prompt": "Once upon a time", "max_tokens": tokens}
        self.url = f"{endpoint.url}/v1/completions"
        self.events: list[str] = []
        self.start()

    def run(self) -> None:
        """Every data line of the stream."""
        body = {**self.body, "stream": True, "temperature": 0, "stream_options": {"include_usage": True}}
        with (
            contextlib.suppress(httpx.TransportError),  # the test has ended the entry
            httpx.stream("POST", self.url, json=body, timeout=60) as reply,
        ):
            self.events.extend(line[6:] for line in reply.iter_lines() if line.startswith("data: "))


def test_sigterm_lets_a_stream_finish_and_takes_no_new_one(host: HostProcess, tmp_path: Path) -> None:
    """A stream that runs gets all its tokens, a request that comes is a 503 that says why, and the exit code is 0."""
    with serving(host, tmp_path) as (process, endpoint):
        running = Client(endpoint, 60)
        until(lambda: len(running.events) > 2, seconds=30, what="the stream to run")
        process.send_signal(signal.SIGTERM)
        until(
            lambda: httpx.get(f"{endpoint.url}/ready").status_code == 503,
            seconds=5,
            what="the entry to drain",
        )
        refused = httpx.post(f"{endpoint.url}/v1/completions", json={**running.body, "max_tokens": 1})
        assert refused.status_code == 503
        assert "shutting down" in refused.json()["error"]["message"]
        assert running.is_alive(), "the stream ended before it could be seen to outlive the signal"
        assert process.wait(40) == 0
        running.join(5)
        assert running.events[-1] == "[DONE]"
        usage = json.loads(running.events[-2])["usage"]
        assert usage["completion_tokens"] == 60
        assert '"error"' not in "".join(running.events)


def test_what_outlives_the_grace_ends_with_an_error_that_says_so(host: HostProcess, tmp_path: Path) -> None:
    """A stream longer than --grace-seconds is told that the entry shut down; the process does not wait for it."""
    with serving(host, tmp_path, "--grace-seconds", "1") as (process, endpoint):
        running = Client(endpoint, 400)
        until(lambda: len(running.events) > 2, seconds=30, what="the stream to run")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        running.join(5)
        (error,) = (json.loads(event)["error"] for event in running.events if '"error"' in event)
        assert "shut down before the request was finished" in error["message"]


def test_the_hosts_push_to_where_advertise_says(host: HostProcess, tmp_path: Path) -> None:
    """Nobody listens there: the plan fails, and the reason names that address and not the one of --data."""
    with empty(host, tmp_path, "--advertise", "127.0.0.1:1") as (_, endpoint):
        endpoint.put(cut(endpoint.model, [], ["node-0"]))
        until(lambda: endpoint.status()["last_error"] is not None, seconds=60, what="the plan to fail")
        assert "hop 1 at 127.0.0.1:1: " in endpoint.status()["last_error"]


def test_no_more_requests_wait_than_max_waiting_says(host: HostProcess, tmp_path: Path) -> None:
    """One runs and fills the budget, one waits, and the third is a 429 that counts both."""
    with serving(host, tmp_path, "--max-waiting", "1", concurrency=1) as (_, endpoint):
        running = Client(endpoint, 500)
        until(lambda: bool(running.events), seconds=30, what="the stream to run")
        waiting = Client(endpoint, 500)
        until(
            lambda: endpoint.status()["sessions"] == {"running": 1, "waiting": 1},
            seconds=30,
            what="a queue",
        )
        refused = httpx.post(f"{endpoint.url}/v1/completions", json=running.body)
        assert refused.status_code == 429
        assert "1 sessions run and 1 wait" in refused.json()["error"]["message"]
        assert running.is_alive(), "it ended before the queue could be seen full"
        assert waiting.events == []


def test_a_tokenizer_that_cannot_be_used_is_an_error_and_exit_code_2(tmp_path: Path) -> None:
    """One line that names the tokenizer and the reason, no traceback, nothing left listening."""
    store = tmp_path / "store"
    save_random_model("llama", tmp_path / "hf")
    tokenizer = Tokenizer.from_str(byte_level_tokenizer().to_str())
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(tmp_path / "hf" / "tokenizer.json"))
    import_model(tmp_path / "hf", name="odd", store=ModelStore(store))
    process = start_entry(store, "odd", tmp_path)
    assert process.wait(60) == 2
    said = (tmp_path / "entry.log").read_text()
    assert "tokenizer" in said
    assert "decoder" in said
    assert "Traceback" not in said
