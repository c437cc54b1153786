"""Measuring once: everything, one after the other, so that no measurement disturbs another."""

from __future__ import annotations

import argparse
import asyncio
import time

from splitinfer.profiler.links import LinkProbeError, measure
from splitinfer.profiler.machine import (
    available_memory,
    counters,
    machine_cpus,
    runnable_threads,
    usable_cpus,
)
from splitinfer.profiler.options import probe_options
from splitinfer.profiler.prober import probe, probe_command
from splitinfer.profiler.report import AgentReport, LinkReport, link_report
from splitinfer.profiler.speeds import ProbeResult
from splitinfer.profiler.targets import ProbeTarget
from splitinfer.profiler.window import Load, Window, load_of

WINDOW_SECONDS = 0.5
"""Over which the CPUs are watched, before anything of ours runs."""
SAMPLES = 25
"""Of the runnable threads in it."""


async def measure_once(args: argparse.Namespace) -> AgentReport:
    """What the agent's options ask for."""
    load = await _load()
    free = available_memory()
    links = {node: await _link(address) for node, address in args.peer}
    found: ProbeResult | str = "no --model was named"
    if args.model is not None:
        target = ProbeTarget.model_construct(model=args.model, dtype=args.dtype, engine=args.engine)
        found = await probe(probe_command(probe_options(args, target)))  # which refuses what it does not know
    return AgentReport(
        node=args.node,
        probe=found,
        links=links,
        free_memory_bytes=free,
        utilisation=None if load is None else load.busy_ratio,
        runnable_threads=None if load is None else load.runnable,
        machine_cpus=machine_cpus(),
        usable_cpus=usable_cpus(),
    )


async def _load() -> Load | None:
    """Of all others: whoever measures once serves nothing yet."""
    window = Window(counters(time.monotonic()))
    for _ in range(SAMPLES):
        await asyncio.sleep(WINDOW_SECONDS / SAMPLES)
        window = window.sampled(runnable_threads())
    return load_of(window.held(counters(time.monotonic())), machine_cpus(), 0.0)


async def _link(address: str) -> LinkReport | str:
    try:
        return link_report(await measure(address))
    except LinkProbeError as error:
        return str(error)
