"""Real host and entry processes under measurement, and the reference beside them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from splitinfer.optimizer.plan import ModelRef, Plan, Segment, equal_cuts
from splitinfer.segment_runtime.store.reader import StoredModel

PEAK_SECONDS = 0.5
"""How often the memory of a process is looked at; to look costs it about a millisecond of its page tables."""


class Worker:
    """A child that says one JSON line when it is up, and lives as long as its stdin."""

    def __init__(self, module: str, *options: str, log: Path) -> None:
        """Start ``python -m module options`` and wait for its line."""
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        self.peak_bytes = 0
        self.said = self._read(log)

    def _read(self, log: Path) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{log.stem} ended: {log.read_text()[-2000:]}")
        return dict(json.loads(line))

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request line, one answer line (the reference only)."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def private_bytes(self) -> int:
        """Memory that is this process's alone: what ending it would give back."""
        return int(psutil.Process(self.process.pid).memory_full_info().uss)

    def watch_peak(self) -> None:
        """Note the largest private memory from now on, until the process ends."""

        def watch() -> None:
            while self.process.poll() is None:
                with contextlib.suppress(psutil.Error):
                    self.peak_bytes = max(self.peak_bytes, self.private_bytes())
                time.sleep(PEAK_SECONDS)

        threading.Thread(target=watch, daemon=True).start()

    def stop(self) -> None:
        """End it by its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


@dataclass(frozen=True, slots=True)
class Chain:
    """A pipeline that serves."""

    http: str
    control: str
    hosts: tuple[Worker, ...]
    entry: Worker
    model: StoredModel
    context: int
    concurrency: int
    addresses: dict[str, str]
    dtype: str

    def serve(self, epoch: int, segments: Sequence[Segment]) -> Plan:
        """Serve a plan, and wait until it does."""
        plan = Plan(
            epoch=epoch,
            model=ModelRef(name=self.model.name, digest=self.model.digest),
            dtype=self.dtype,  # type: ignore[arg-type]  # checked by pydantic
            blocks=self.model.index.blocks,
            segments=tuple(segments),
            max_context_tokens=self.context,
            kv_budget_tokens=self.context * self.concurrency,
        )
        body = {"plan": plan.model_dump(mode="json"), "hosts": self.addresses}
        httpx.put(f"http://{self.control}/control/plan", json=body).raise_for_status()
        while (state := self.status())["state"] != "serving" or state["epoch"] != epoch:
            if state["state"] == "failed":
                raise RuntimeError(state["last_error"])
        return plan

    def complete(self, prompt: Sequence[int], new_tokens: int) -> tuple[int, float, float]:
        """Stream one greedy completion: (tokens, seconds to the first, seconds in all)."""
        ((result,), _) = asyncio.run(self._complete_all([prompt], new_tokens))
        return result

    def complete_many(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[int, float]:
        """Stream completions side by side: (tokens in all, seconds)."""
        results, seconds = asyncio.run(self._complete_all(prompts, new_tokens))
        return sum(tokens for tokens, _, _ in results), seconds

    async def _complete_all(
        self, prompts: Sequence[Sequence[int]], new_tokens: int
    ) -> tuple[list[tuple[int, float, float]], float]:
        clock = asyncio.get_running_loop().time
        # One session, made before the clock starts: a client that sets itself up is no part of what is measured, and
        # what it computes meanwhile would be taken from the pipeline, which shares its CPUs.
        async with aiohttp.ClientSession(
            f"http://{self.http}", connector=aiohttp.TCPConnector(limit=0)
        ) as client:
            began = clock()
            results = await asyncio.gather(
                *(self._complete(client, prompt, new_tokens) for prompt in prompts)
            )
            return list(results), clock() - began

    async def _complete(
        self, client: aiohttp.ClientSession, prompt: Sequence[int], new_tokens: int
    ) -> tuple[int, float, float]:
        body = {
            "model": self.model.name,
            "prompt": list(prompt),
            "max_tokens": new_tokens,
            "temperature": 0,
            "ignore_eos": True,  # as many tokens as the reference, whatever they are
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        clock = asyncio.get_running_loop().time
        first, tokens = 0.0, 0
        began = clock()
        async with client.post("/v1/completions", json=body) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                first = first or clock() - began
                if b'"completion_tokens"' in line:
                    tokens = json.loads(line[6:])["usage"]["completion_tokens"]
        return tokens, first, clock() - began

    def metrics(self) -> dict[tuple[str, str, str], float]:
        """Sums and counts of the entry's histograms: (name, part, hop) -> value."""
        text = httpx.get(f"http://{self.http}/metrics").text
        return {
            (sample.name, sample.labels.get("part", ""), sample.labels.get("hop", "")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.endswith(("_sum", "_count"))
        }

    def status(self) -> dict[str, Any]:
        """The entry's status."""
        return dict(httpx.get(f"http://{self.control}/control/status").json())


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now, for a process that must be told before it starts."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def delayed(targets: Sequence[str], milliseconds: float, logs: Path) -> Iterator[list[str]]:
    """Addresses that lead to ``targets``, every byte that much later, in one process (`benchmarks.delay`)."""
    links = [option for target in targets for option in ("--link", f"0={target}")]
    proxy = Worker("benchmarks.delay", "--milliseconds", str(milliseconds), *links, log=logs / "delay.log")
    try:
        yield list(proxy.said["links"])
    finally:
        proxy.stop()


@contextlib.contextmanager
def chain(
    model: StoredModel,
    nodes: int,
    threads: int,
    *entry_options: str,
    concurrency: int = 16,
    context: int = 1024,
    engine: str = "torch",
    dtype: str = "float32",
    delay_ms: float = 0.0,
) -> Iterator[Chain]:
    """``nodes`` hosts with equal cuts and an entry; stopped on the way out.

    With ``delay_ms``, everything between two of them (not the client) is that much later, each way.
    """
    store = str(model.path.parent)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        logs = Path(folder)

        def worker(module: str, name: str, *options: str) -> Worker:
            started = Worker(module, *options, log=logs / f"{name}.log")
            stack.callback(started.stop)
            return started

        common = ("--store", store, "--engine", engine, "--threads", str(threads), "--exit-with-parent")
        hosts = {
            f"node-{i}": worker(
                "splitinfer.segment_runtime.host",
                f"node-{i}",
                "--node",
                f"node-{i}",
                "--listen",
                "127.0.0.1:0",
                *common,
            )
            for i in range(nodes)
        }
        addresses = {node: host.said["grpc"] for node, host in hosts.items()}
        data = "127.0.0.1:0"
        if delay_ms:
            data = f"127.0.0.1:{free_port()}"
            *to_hosts, to_entry = stack.enter_context(delayed([*addresses.values(), data], delay_ms, logs))
            addresses = dict(zip(addresses, to_hosts, strict=True))
            entry_options = (*entry_options, "--advertise", to_entry)
        entry = worker(
            "splitinfer.segment_runtime.entry", "entry", "--model", model.name, "--listen", "127.0.0.1:0",
            "--control", "127.0.0.1:0", "--data", data, *common, *entry_options,
        )  # fmt: skip
        served = Chain(
            entry.said["http"],
            entry.said["control"],
            tuple(hosts.values()),
            entry,
            model,
            context,
            concurrency,
            addresses,
            dtype,
        )
        served.serve(1, equal_cuts(model.index.blocks, list(hosts)))
        yield served
