"""An entry that cannot begin: one line that names the option and the mend, exit code 2, and nothing left running."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from splitinfer.segment_runtime.store.importer import import_model
from splitinfer.segment_runtime.store.reader import ModelStore
from tests.support.models import save_random_model
from tests.support.tiny_text import byte_level_tokenizer

BUSY = r"cannot be bound \(Address already in use\); choose a free port, or 0"
FREE = r"\(port 0 takes a free one\)"
REACH = r"give the host and the port under which they reach --data"
EARLY = {
    "data: no address": (["--data", "nonsense"], rf"--data: 'nonsense' is not host:port {FREE}"),
    "data: no port": (
        ["--data", "127.0.0.1:70000"],
        rf"--data: '127\.0\.0\.1:70000' is not host:port {FREE}",
    ),
    "data: IPv6 without brackets": (
        ["--data", "::1:0"],
        r"--data: '::1:0': an IPv6 address stands in brackets, as in \[::1\]:0",
    ),
    "data: in use": (["--data", "{taken}"], rf"--data: {{taken}} {BUSY}"),
    "data: not this machine": (
        ["--data", "192.0.2.1:0"],
        r"--data: 192\.0\.2\.1:0 cannot be bound \(.+\); give an address of this machine",
    ),
    "advertise: missing for a wildcard": (
        ["--data", "0.0.0.0:7071"],
        r"--advertise: hosts cannot reach 0\.0\.0\.0:7071; say under which host:port they reach --data 0\.0\.0\.0:7071",
    ),
    "advertise: missing for an IPv6 wildcard": (
        ["--data", "[::]:7071"],
        r"--advertise: hosts cannot reach \[::\]:7071; say under which host:port they reach --data \[::\]:7071",
    ),
    "advertise: missing for no host": (
        ["--data", ":7071"],
        r"--advertise: hosts cannot reach :7071; say under which host:port they reach --data :7071",
    ),
    "advertise: empty": (["--advertise", ""], "--advertise: '' is not host:port"),
    "advertise: no port": (["--advertise", "node-a"], "--advertise: 'node-a' is not host:port"),
    "advertise: port 0": (["--advertise", "node-a:0"], rf"--advertise: hosts cannot reach node-a:0; {REACH}"),
    "advertise: a wildcard": (
        ["--advertise", "0.0.0.0:7071"],
        rf"--advertise: hosts cannot reach 0\.0\.0\.0:7071; {REACH}",
    ),
}
"""Refused before the model is looked for."""

LATE = {
    "listen: in use": (
        ["--listen", "{taken}"],
        "--listen: cannot listen on {taken}: .+; choose another host or port",
    ),
    "control: in use": (
        ["--control", "{taken}"],
        "--control: cannot listen on {taken}: .+; choose another host or port",
    ),
}
"""Refused when the gRPC server runs."""


def has_ipv6() -> bool:
    """Whether ::1 can be listened on."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a small model that can be served."""
    root = tmp_path_factory.mktemp("refusals")
    save_random_model("llama", root / "hf")
    byte_level_tokenizer().save(str(root / "hf" / "tokenizer.json"))
    import_model(root / "hf", name="tiny", store=ModelStore(root / "store"))
    return root / "store"


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def command(store: Path, model: str, *options: str) -> list[str]:
    """An entry on free ports, but for what ``options`` say."""
    return [
        sys.executable, "-m", "splitinfer.segment_runtime.entry", "--model", model, "--store", str(store),
        "--engine", "torch", "--threads", "1", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0",
        "--data", "127.0.0.1:0", *options,
    ]  # fmt: skip


def refused(store: Path, model: str, options: list[str], message: str) -> None:
    """Start an entry that must end by itself; its raw stderr is one line."""
    done = subprocess.run(
        command(store, model, *options),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert re.fullmatch(f"error: {message}\n", done.stderr), done.stderr


@pytest.mark.parametrize("name", EARLY)
def test_where_hosts_push_to_is_refused_by_name(name: str, taken: str, tmp_path: Path) -> None:
    """Before the model is opened, which takes seconds: here there is none. gRPC's core has no word in it either."""
    options, message = EARLY[name]
    refused(
        tmp_path, "missing", [option.format(taken=taken) for option in options], message.format(taken=taken)
    )


@pytest.mark.parametrize("name", LATE)
def test_a_refusal_after_the_grpc_server_began_stops_it(name: str, taken: str, store: Path) -> None:
    """The process ends, with its one line and not with the traceback of a server that nobody stopped."""
    options, message = LATE[name]
    refused(store, "tiny", [option.format(taken=taken) for option in options], message.format(taken=taken))


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_ipv6_addresses_in_brackets_are_listened_on(store: Path) -> None:
    """As the refusals ask for them; the line on stdout has them in brackets too."""
    options = [part for name in ("listen", "control", "data") for part in (f"--{name}", "[::1]:0")]
    with subprocess.Popen(
        command(store, "tiny", *options, "--exit-with-parent"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            assert re.fullmatch(r"\[::1\]:\d+", said["data"])
            assert httpx.get(f"http://{said['http']}/health").status_code == 200
            assert httpx.get(f"http://{said['control']}/control/status").status_code == 200
        finally:
            process.kill()
