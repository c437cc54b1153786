"""The node agent: answers the link probes of others, measures its own node and links, and exports what it knows.

``python -m splitinfer.profiler.agent --node NAME --listen HOST:PORT --metrics HOST:PORT --targets FILE`` runs until its
stdin ends or SIGTERM comes. Without ``--metrics`` it only answers probes. With ``--once --model NAME`` it measures, prints
one JSON line (`splitinfer.profiler.report`) and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time
from importlib.metadata import version

import grpc
from prometheus_client import start_http_server

from splitinfer.profiler.board import Board, Ports, Settings, log
from splitinfer.profiler.exporter import AgentCollector, Published, registry_of
from splitinfer.profiler.links import MOST_BYTES, echo_handlers, measure
from splitinfer.profiler.live_window import LiveWindow
from splitinfer.profiler.loop import run
from splitinfer.profiler.machine import (
    available_memory,
    children_cpu_seconds,
    counters,
    machine_cpus,
    runnable_threads,
    usable_cpus,
)
from splitinfer.profiler.once import measure_once
from splitinfer.profiler.options import parser, probe_options
from splitinfer.profiler.prober import probe, probe_command
from splitinfer.profiler.serving import client, scrape
from splitinfer.profiler.speeds import ProbeResult
from splitinfer.profiler.state import AgentState
from splitinfer.profiler.targets import ProbeTarget, TargetsFile

STALE_PROBES = 2
"""Probe intervals for which the free memory of a GPU, which only a probe sees, is told on."""


def start_metrics(args: argparse.Namespace, published: Published) -> str:
    """Export the state; gives the address. Raises ValueError naming the option."""
    collector = AgentCollector(
        args.node,
        (version("splitinfer"), args.device),
        published,
        time.monotonic,
        device_memory_seconds=STALE_PROBES * args.probe_interval,
    )
    host, _, port = args.metrics.rpartition(":")
    try:
        server, _thread = start_http_server(int(port), addr=host.strip("[]"), registry=registry_of(collector))
    except OSError as error:
        raise ValueError(
            f"--metrics: {args.metrics} cannot be bound ({error.strerror}); choose a free port, or 0"
        ) from None
    return f"{host}:{server.server_port}"


async def measure_for_ever(args: argparse.Namespace, published: Published) -> None:
    """The rounds, with what they read and start."""

    async def run_probe(target: ProbeTarget) -> tuple[ProbeResult | str, float]:
        before = children_cpu_seconds()
        found = await probe(probe_command(probe_options(args, target)))
        return found, children_cpu_seconds() - before

    settings = Settings(
        node=args.node,
        interval=args.interval,
        probe_interval=args.probe_interval,
        probe_budget=args.probe_budget,
        serving_threshold=args.serving_threshold,
        link_budget=args.link_budget,
    )
    async with client() as session:
        ports = Ports(
            clock=time.monotonic,
            sleep=asyncio.sleep,
            counters=lambda: counters(time.monotonic()),
            runnable=runnable_threads,
            memory=available_memory,
            cpus=lambda: (usable_cpus(), machine_cpus()),
            targets=(lambda: None) if args.targets is None else TargetsFile(args.targets).read,
            scrape=lambda url: scrape(session, url),
            probe=run_probe,
            measure=lambda address, sent: measure(address, sent=sent),
            link_bytes=MOST_BYTES,
            live=LiveWindow().links,
        )
        await run(Board(settings, ports, published))


async def serve(args: argparse.Namespace) -> int:
    """Until the parent goes or SIGTERM comes; the exit code. Raises ValueError for an address that cannot be bound."""
    # By default two agents could share a port, and each would answer some of the other's probes.
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((echo_handlers(),))
    try:
        port = server.add_insecure_port(args.listen)
    except RuntimeError:
        port = 0
    if not port:
        raise ValueError(f"--listen: {args.listen} cannot be bound; choose a free port, or 0")
    up = {"event": "listening", "node": args.node, "probe": f"{args.listen.rpartition(':')[0]}:{port}"}
    rounds: set[asyncio.Task[None]] = set()
    if args.metrics is not None:
        published = Published(AgentState())
        up["metrics"] = start_metrics(args, published)
        rounds.add(asyncio.create_task(measure_for_ever(args, published)))
    await server.start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    print(json.dumps(up), flush=True)
    gone = asyncio.ensure_future(loop.run_in_executor(None, sys.stdin.read))
    told = asyncio.create_task(stop.wait())
    await asyncio.wait({gone, told, *rounds}, return_when=asyncio.FIRST_COMPLETED)
    for task in rounds:
        task.cancel()
    failed = [
        end for end in await asyncio.gather(*rounds, return_exceptions=True) if isinstance(end, Exception)
    ]
    for error in failed:
        log.critical("the rounds broke", exc_info=error)
    await server.stop(None)
    return 1 if failed else 0


def main() -> int:
    """Exit code 2 for bad input."""
    args = parser().parse_args()
    logging.basicConfig(format="%(name)s: %(levelname)s: %(message)s", level=logging.INFO)
    if args.once:
        print(asyncio.run(measure_once(args)).model_dump_json())
        return 0

    async def to_the_end() -> None:
        try:
            code = await serve(args)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # a thread may still wait for stdin

    asyncio.run(to_the_end())
    return 1  # never reached


if __name__ == "__main__":
    sys.exit(main())
