"""A segment host: starts empty, serves what an entry prepares on it.

``python -m splitinfer.segment_runtime.host --node NAME --listen HOST:PORT --store DIR``
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from splitinfer.segment_runtime.arguments import Parser, node_name, seconds
from splitinfer.segment_runtime.channel import SERVER_OPTIONS
from splitinfer.segment_runtime.compute import ComputeThread
from splitinfer.segment_runtime.cpu_options import add_thread_options, threads_of
from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import EngineError
from splitinfer.segment_runtime.host.metrics import HostMetrics
from splitinfer.segment_runtime.host.ranges import HostRanges
from splitinfer.segment_runtime.host.service import ControlService
from splitinfer.segment_runtime.host.streams import HopStreams
from splitinfer.segment_runtime.ports import bind
from splitinfer.segment_runtime.process import (
    announce,
    configure_logging,
    stop_on_signals,
    stop_with_parent,
)
from splitinfer.segment_runtime.proto import runtime_pb2, runtime_pb2_grpc
from splitinfer.segment_runtime.store.reader import ModelStore

log = structlog.get_logger()

SERVICES = ("splitinfer.v1.Activations", "splitinfer.v1.HostControl")


def parser() -> argparse.ArgumentParser:
    """The command line. Nothing about a cut is on it: that comes from the entry."""
    p = Parser(prog="splitinfer-host", description="Runs the blocks that an entry prepares on it.")
    p.add_argument("--node", required=True, type=node_name, help="name of this node, as plans name it")
    p.add_argument(
        "--listen", default="0.0.0.0:7070", help="host:port of the gRPC services; port 0 takes a free one"
    )
    p.add_argument("--metrics-port", type=int, default=0, help="port of /metrics; 0 takes a free one")
    p.add_argument("--store", type=Path, help="folder of the model store")
    p.add_argument("--engine", default="auto", help="auto, onnx or torch")
    p.add_argument("--device", default="cpu", help="cpu, or cuda[:N]")
    add_thread_options(p)
    p.add_argument("--memory-limit-bytes", type=int, default=0, help="weights and KV together; 0: no limit")
    p.add_argument(
        "--grace-seconds",
        type=seconds,
        default=20.0,
        help="how long SIGTERM waits for the entry to move away",
    )
    p.add_argument(
        "--exit-with-parent", action="store_true", help="stop when stdin, held open by the parent, ends"
    )
    p.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return p


async def serve(args: argparse.Namespace) -> int:
    """Run until SIGTERM, then drain."""
    # Ports first: they cost nothing, and an engine takes seconds to import.
    server = grpc.aio.server(options=SERVER_OPTIONS)
    host, bound = bind(server, args.listen, "--listen")
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)  # its CPU time, which the node's agent takes off what others use
    try:
        metrics, _thread = start_http_server(args.metrics_port, addr=host.strip("[]"), registry=registry)
    except OSError as error:
        raise ValueError(
            f"--metrics-port: {args.metrics_port} cannot be bound ({error.strerror}); choose a free port, or 0"
        ) from error
    engine = create_engine(args.engine, args.device, threads_of(args))
    compute = ComputeThread("compute")
    loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
    ranges = HostRanges(engine, ModelStore(args.store), args.node, args.memory_limit_bytes)
    streams = HopStreams(ranges, compute, HostMetrics(registry, ranges))
    runtime_pb2_grpc.add_ActivationsServicer_to_server(streams, server)
    runtime_pb2_grpc.add_HostControlServicer_to_server(
        ControlService(ranges, streams, compute, loader), server
    )
    checks = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
    assert {s.full_name for s in runtime_pb2.DESCRIPTOR.services_by_name.values()} == set(SERVICES)
    reflection.enable_server_reflection(names, server)
    stop, orphaned = asyncio.Event(), asyncio.Event()
    stop_on_signals(stop)
    if args.exit_with_parent:

        def on_gone() -> None:
            orphaned.set()
            stop.set()

        stop_with_parent(on_gone)
    await server.start()
    for service in ("", *SERVICES):
        await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
    announce(node=args.node, grpc=f"{host}:{bound}", metrics=f"{host}:{metrics.server_port}")
    log.info("listening", node=args.node, engine=engine.name, device=engine.device, threads=engine.threads)
    await stop.wait()
    await checks.enter_graceful_shutdown()
    await drain(streams, args.grace_seconds, orphaned)
    ranges.abandon()
    await streams.close()
    await server.stop(grace=0.5)
    metrics.shutdown()
    compute.close()
    loader.shutdown(wait=False, cancel_futures=True)
    log.info("stopped", node=args.node)
    return 0


async def drain(streams: HopStreams, grace_seconds: float, orphaned: asyncio.Event) -> None:
    """Say that this host leaves; serve on until the entry has moved away, the grace is over or the parent gone."""
    streams.announce_draining()
    log.info("draining", streams=streams.open_streams, grace_seconds=grace_seconds)
    over = [asyncio.create_task(streams.until_idle()), asyncio.create_task(orphaned.wait())]
    done, pending = await asyncio.wait(over, timeout=grace_seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    if not done:
        log.warning("grace is over", streams=streams.open_streams)


def main() -> int:
    """Exit code 2 for bad input."""
    args = parser().parse_args()
    configure_logging(args.log_level)
    try:
        return asyncio.run(serve(args))
    except (ValueError, EngineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
