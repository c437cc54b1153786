"""Measuring this machine with the profiler's own agent, as a snapshot of the nodes that local processes stand for."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from splitinfer.operator.errors import CommandFailed
from splitinfer.operator.local.models import ModelFacts
from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.optimizer.plan import DTypeName
from splitinfer.profiler.capacity import NodeMeasurement, snapshot
from splitinfer.profiler.contention import share
from splitinfer.profiler.report import AgentReport, LinkReport, ReportError, parse_report
from splitinfer.profiler.speeds import ProbeError, Speeds, speeds_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

AGENT = (sys.executable, "-P", "-m", "splitinfer.profiler.agent")
TRUSTED = {"splitinfer.dev/trust": "trusted"}
"""The label by which manifests select trusted nodes, as the examples write it."""
FAR = "far"
"""Name of the process that stands for the other end of every link: on one machine they are all alike."""


async def measure(
    model: ModelFacts, dtype: DTypeName, engine: str, device: str, threads: int | None, nodes: int
) -> AgentReport:
    """What the agent says of this machine, with a link between two of its processes.

    Without ``threads``, with those that `up` gives to each of so many ``nodes``.

    Raises:
        CommandFailed: an agent ended, with its own words.
    """
    options = ["--node", "near", "--once", "--model", model.name, "--store", str(model.root)]
    options += ["--dtype", dtype, "--engine", engine, "--device", device]
    options += ["--cpu-share", str(nodes)] if threads is None else ["--threads", str(threads)]
    async with _far_end() as address:
        line = await _said((*AGENT, *options, "--peer", f"{FAR}={address}"))
    try:
        return parse_report(line)
    except ReportError as error:
        raise CommandFailed(f"this machine could not be measured: {error}") from None


@asynccontextmanager
async def _far_end() -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        *AGENT,
        *("--node", FAR, "--listen", "127.0.0.1:0"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        if not line:
            raise CommandFailed("the agent that answers link probes ended before it began")
        yield str(json.loads(line)["probe"])
    finally:
        process.stdin.close()
        await process.wait()


async def _said(command: Sequence[str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await process.communicate()
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    if process.returncode != 0:
        raise CommandFailed(f"the agent ended with {process.returncode}")
    return out.decode()


def local_snapshot(
    report: AgentReport, dtype: DTypeName, nodes: Sequence[str], now_seconds: float
) -> CapacitySnapshot:
    """The snapshot of ``nodes`` that all are processes of the machine that was measured.

    They are measured one at a time, each with its share of the CPUs; the memory is divided. All are trusted:
    whoever owns the machine sees every one of them.
    """
    speeds: Speeds | str
    try:
        speeds = report.probe if isinstance(report.probe, str) else speeds_of(report.probe)
    except ProbeError as error:
        speeds = str(error)
    left = None
    if report.machine_cpus is not None and report.runnable_threads is not None:
        # Without a probe it is one thread that is asked about: nothing is planned on it.
        threads = 1 if isinstance(report.probe, str) else report.probe.threads
        left = share(report.machine_cpus, report.runnable_threads, threads)
    free = None if report.free_memory_bytes is None else report.free_memory_bytes // len(nodes)
    link = report.links.get(FAR, "the link was not probed")
    times = link.times if isinstance(link, LinkReport) else link
    measured = [
        NodeMeasurement(
            name=node,
            speeds={dtype: speeds},
            free_memory_bytes=free,
            left=left,
            source="splitinfer profile",
            labels=TRUSTED,
            trusted=True,
        )
        for node in nodes
    ]
    pairs = {(a, b): times for a in nodes for b in nodes if a != b}
    return snapshot(tuple(measured), pairs, dtype, now_seconds)
