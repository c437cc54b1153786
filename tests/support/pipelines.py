"""Real host processes, and an entry's pipeline inside the test, so that a test can look at both ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from prometheus_client import CollectorRegistry

from splitinfer.optimizer.plan import ModelRef, Plan, Segment, cuts_at
from splitinfer.segment_runtime.channel import SERVER_OPTIONS
from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import Engine
from splitinfer.segment_runtime.entry.coordinator import Coordinator
from splitinfer.segment_runtime.entry.forecasts import Forecasts
from splitinfer.segment_runtime.entry.generate import GenerationRequest, SamplingParams, TokenEvent
from splitinfer.segment_runtime.entry.metrics import PipelineMetrics
from splitinfer.segment_runtime.entry.pipeline import Pipeline
from splitinfer.segment_runtime.entry.returns import ReturnService
from splitinfer.segment_runtime.entry.sessions import Limits
from splitinfer.segment_runtime.entry.settings import Settings
from splitinfer.segment_runtime.proto import runtime_pb2_grpc
from splitinfer.segment_runtime.store.reader import StoredModel

START_SECONDS = 60


@dataclass
class HostProcess:
    """One real host process. `address` is where it listens."""

    node: str
    process: subprocess.Popen[bytes]
    address: str
    metrics: str
    log: Path

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it as its parent's end would, and wait."""
        if self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)


def start_host(store: Path, node: str, logs: Path, *options: str, threads: int = 1) -> HostProcess:
    """Start a host and wait for its line on stdout."""
    log = logs / f"{node}-{os.urandom(3).hex()}.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "splitinfer.segment_runtime.host", "--node", node, "--listen", "127.0.0.1:0",
                "--store", str(store), "--threads", str(threads), "--engine", "torch", "--exit-with-parent",
                *options,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
        )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"host {node} ended: {log.read_text()}"
    said = json.loads(line)
    return HostProcess(node, process, said["grpc"], said["metrics"], log)


def plan_for(
    model: StoredModel,
    segments: Sequence[Segment],
    *,
    epoch: int = 1,
    dtype: str = "float32",
    context: int = 64,
    concurrency: int = 8,
) -> Plan:
    """A plan over explicit segments."""
    return Plan.model_validate(
        {
            "epoch": epoch,
            "model": ModelRef(name=model.name, digest=model.digest),
            "dtype": dtype,
            "blocks": model.index.blocks,
            "segments": tuple(segments),
            "max_context_tokens": context,
            "kv_budget_tokens": context * concurrency,
        }
    )


def cut(model: StoredModel, cuts: Sequence[int], nodes: Sequence[str]) -> tuple[Segment, ...]:
    """Segments of a model between cuts."""
    return cuts_at(model.index.blocks, cuts, nodes)


@dataclass
class Entry:
    """An entry without HTTP: pipeline, coordinator and return service on the test's loop."""

    pipeline: Pipeline
    coordinator: Coordinator
    metrics: PipelineMetrics
    registry: CollectorRegistry
    model: StoredModel
    forecasts: Forecasts
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def serve(self, plan: Plan, hosts: Mapping[str, str]) -> None:
        """Post a plan and wait until it, or one that took its place, serves."""
        self.coordinator.accept(plan, hosts)
        await self.until_serving(plan.epoch)

    async def until_serving(self, epoch: int) -> None:
        """Wait until ``epoch`` or a newer one serves. Fails at once on an error that nothing would mend."""
        async with asyncio.timeout(60):
            while not (self.pipeline.ready() and self.pipeline.epoch >= epoch):
                for task in self.tasks:
                    if task.done():
                        task.result()
                if self.coordinator.state == "failed":
                    raise AssertionError(self.coordinator.last_error)
                await asyncio.sleep(0.01)

    async def generate(
        self, prompt: Sequence[int], max_tokens: int, sampling: SamplingParams | None = None
    ) -> list[TokenEvent]:
        """All tokens of one request."""
        request = GenerationRequest(tuple(prompt), max_tokens, sampling or SamplingParams(temperature=0.0))
        return [event async for event in self.pipeline.submit(request)]


@contextlib.asynccontextmanager
async def running_entry(
    model: StoredModel, *, engine: Engine | None = None, limits: Limits | None = None, **settings: float
) -> AsyncIterator[Entry]:
    """An entry on this loop; everything is stopped on the way out, and a task that failed fails the test."""
    registry = CollectorRegistry()
    metrics = PipelineMetrics(registry)
    pipeline = Pipeline(
        model.name,
        model.index.hidden_size,
        model.index.max_context_tokens,
        Settings(limits or Limits(kv_budget_tokens=1), **settings),  # type: ignore[arg-type]  # numbers by name
        metrics,
    )
    returns = ReturnService(pipeline)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    runtime_pb2_grpc.add_ActivationsServicer_to_server(returns, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    engine = engine or create_engine("torch", "cpu", 1)
    coordinator = Coordinator(model, engine, pipeline, returns, f"127.0.0.1:{port}", metrics)
    entry = Entry(pipeline, coordinator, metrics, registry, model, Forecasts(registry, lambda: pipeline.plan))
    entry.tasks = [asyncio.create_task(pipeline.run()), asyncio.create_task(coordinator.run())]
    try:
        yield entry
    finally:
        for task in entry.tasks:
            task.cancel()
        results = await asyncio.gather(*entry.tasks, return_exceptions=True)
        pipeline.halt()
        await coordinator.close()
        await server.stop(grace=0)
        for result in results:
            if isinstance(result, Exception):
                raise result
