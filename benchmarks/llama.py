"""llama.cpp under measurement: `llama-batched-bench`, alone or over `ggml-rpc-server` processes."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.llama_build import Llama
from benchmarks.processes import delayed, free_port

START_SECONDS = 30.0
CONTEXT_ROOM = 8
"""Tokens of each sequence beyond prompt and answer."""


class RivalFailed(Exception):
    """A program of llama.cpp ended or said nothing that can be read; carries what it said."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second, of all sequences together."""

    prompt: float
    decode: float


def parse(output: str) -> dict[int, Speed]:
    """By batch size, from ``llama-batched-bench --output-format jsonl``. Raises RivalFailed when there is none."""
    found = {}
    for line in output.splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            found[int(row["pl"])] = Speed(float(row["speed_pp"]), float(row["speed_tg"]))
    if not found:
        raise RivalFailed(f"llama-batched-bench said nothing to read: {output[-2000:]}")
    return found


def measure(
    llama: Llama,
    kind: str,
    threads: int,
    *,
    batches: Sequence[int],
    prompt_tokens: int,
    new_tokens: int,
    servers: Sequence[str] = (),
) -> dict[int, Speed]:
    """One run in a fresh process: a prompt per sequence, then ``new_tokens`` steps over all of them.

    Args:
        llama: the build.
        kind: of the weights, as `Llama.weights` names them.
        threads: of the process, for prompts and steps.
        batches: how many sequences, one measurement each.
        prompt_tokens: of each sequence.
        new_tokens: of each sequence.
        servers: ``host:port`` of RPC servers, which then hold all layers, split evenly.

    Raises:
        RivalFailed: it ended with an error, or gave no measurement.
    """
    context = max(batches) * (prompt_tokens + new_tokens + CONTEXT_ROOM)
    command = [llama.program("llama-batched-bench"), "--model", str(llama.weights(kind))]
    command += ["--threads", str(threads), "--threads-batch", str(threads), "--ctx-size", str(context)]
    command += ["-npp", str(prompt_tokens), "-ntg", str(new_tokens), "-npl", ",".join(map(str, batches))]
    command += ["--output-format", "jsonl", "--fit", "off"]  # its own search for sizes is not measured
    if servers:
        even = ",".join("1" for _ in servers)
        command += ["--rpc", ",".join(servers), "--gpu-layers", "99", "--tensor-split", even]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RivalFailed(f"{' '.join(command)} failed ({done.returncode}): {done.stderr[-2000:]}")
    return parse(done.stdout + done.stderr)


@contextlib.contextmanager
def servers(llama: Llama, count: int, threads: int, delay_ms: float = 0.0) -> Iterator[list[str]]:
    """Addresses of ``count`` RPC servers on this machine, each ``delay_ms`` away; ended on the way out.

    Raises:
        RivalFailed: one does not listen within `START_SECONDS`.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        logs = Path(folder)
        addresses = [_server(llama, threads, logs / f"server-{i}.log", stack) for i in range(count)]
        if delay_ms:
            addresses = stack.enter_context(delayed(addresses, delay_ms, logs))
        yield addresses


def _server(llama: Llama, threads: int, log: Path, stack: contextlib.ExitStack) -> str:
    port = free_port()
    command = [llama.program("ggml-rpc-server"), "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen([*command, "--threads", str(threads)], stdout=output, stderr=output)

    def end() -> None:
        server.terminate()
        server.wait(30)

    stack.callback(end)
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return f"127.0.0.1:{port}"
        time.sleep(0.05)
    raise RivalFailed(f"ggml-rpc-server does not listen on port {port}: {log.read_text()[-2000:]}")
