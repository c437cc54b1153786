"""The entry: OpenAI API in front, hosts behind; coordinates the data plane.

``python -m splitinfer.segment_runtime.entry --model NAME --listen HOST:PORT --control HOST:PORT --data HOST:PORT``
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from dataclasses import replace
from pathlib import Path

import grpc
import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector

from splitinfer.segment_runtime.api.app import create_app
from splitinfer.segment_runtime.api.server import Endpoint, EndpointUnavailable, start
from splitinfer.segment_runtime.arguments import Parser, seconds, some_seconds
from splitinfer.segment_runtime.channel import SERVER_OPTIONS
from splitinfer.segment_runtime.cpu_options import add_thread_options, threads_of
from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import EngineError
from splitinfer.segment_runtime.entry.control import control_app
from splitinfer.segment_runtime.entry.coordinator import Coordinator
from splitinfer.segment_runtime.entry.forecasts import Forecasts
from splitinfer.segment_runtime.entry.metrics import PipelineMetrics
from splitinfer.segment_runtime.entry.pipeline import Pipeline
from splitinfer.segment_runtime.entry.returns import ReturnService
from splitinfer.segment_runtime.entry.sessions import Limits
from splitinfer.segment_runtime.entry.settings import Settings
from splitinfer.segment_runtime.ports import bind, is_wildcard
from splitinfer.segment_runtime.process import (
    announce,
    configure_logging,
    parse_address,
    stop_on_signals,
    stop_with_parent,
)
from splitinfer.segment_runtime.proto import runtime_pb2_grpc
from splitinfer.segment_runtime.store.errors import StoreError
from splitinfer.segment_runtime.store.reader import ModelStore
from splitinfer.segment_runtime.text.codec import TextCodec
from splitinfer.segment_runtime.text.errors import TextError

log = structlog.get_logger()

DEFAULTS = Limits(kv_budget_tokens=1)


def parser() -> argparse.ArgumentParser:
    """The command line. Plans come over the control API."""
    p = Parser(prog="splitinfer-entry", description="OpenAI endpoint of one split model.")
    p.add_argument("--model", required=True, help="name of the model in the store")
    p.add_argument("--store", type=Path, help="folder of the model store")
    p.add_argument("--listen", default="0.0.0.0:8000", help="host:port of the OpenAI API")
    p.add_argument(
        "--control", default="127.0.0.1:8001", help="host:port of the control API; keep it from users"
    )
    p.add_argument("--data", default="127.0.0.1:7071", help="host:port that the last hop pushes to")
    p.add_argument(
        "--advertise", help="host:port under which hosts reach --data; default: what --data is bound to"
    )
    p.add_argument("--engine", default="auto", help="engine of the head: auto, onnx or torch")
    p.add_argument("--device", default="cpu", help="cpu, or cuda[:N]")
    add_thread_options(p)
    p.add_argument("--micro-batches", type=int, default=0, help="micro-batches in flight; 0: one per segment")
    p.add_argument(
        "--max-sessions", type=int, default=DEFAULTS.max_sessions, help="sessions in one micro-batch"
    )
    p.add_argument(
        "--min-sessions", type=int, default=DEFAULTS.min_sessions, help="do not split below this many"
    )
    p.add_argument(
        "--prefill-chunk", type=int, default=DEFAULTS.prefill_chunk, help="tokens of a prefill chunk"
    )
    p.add_argument(
        "--mixed-prefill-chunk",
        type=int,
        default=DEFAULTS.mixed_prefill_chunk,
        help="prefill tokens in a step that decodes too",
    )
    p.add_argument(
        "--max-waiting", type=int, default=DEFAULTS.max_waiting, help="requests that may wait for room"
    )
    p.add_argument(
        "--step-seconds", type=some_seconds, default=60.0, help="a step without an answer breaks the pipeline"
    )
    p.add_argument(
        "--recovery-seconds", type=seconds, default=120.0, help="requests outlive a broken pipeline this long"
    )
    p.add_argument(
        "--grace-seconds", type=seconds, default=20.0, help="how long SIGTERM lets requests finish"
    )
    p.add_argument(
        "--exit-with-parent", action="store_true", help="stop when stdin, held open by the parent, ends"
    )
    p.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return p


def settings_of(args: argparse.Namespace) -> Settings:
    """Limits of the scheduler. Raises ValueError naming the option."""
    for option in ("max_sessions", "min_sessions", "prefill_chunk", "mixed_prefill_chunk"):
        if getattr(args, option) < 1:
            raise ValueError(f"--{option.replace('_', '-')}: must be at least 1")
    if args.max_waiting < 0 or args.micro_batches < 0:
        raise ValueError("--max-waiting and --micro-batches: must not be negative")
    limits = replace(
        DEFAULTS,
        max_sessions=args.max_sessions,
        min_sessions=args.min_sessions,
        prefill_chunk=args.prefill_chunk,
        mixed_prefill_chunk=args.mixed_prefill_chunk,
        max_waiting=args.max_waiting,
    )
    return Settings(limits, args.micro_batches, args.step_seconds)


def advertised(args: argparse.Namespace) -> str | None:
    """Where hosts reach --data; None: where it is bound. Raises ValueError naming the option."""
    host, _ = parse_address(args.data, "--data")
    if args.advertise is None:
        if is_wildcard(host):
            raise ValueError(
                f"--advertise: hosts cannot reach {args.data}; say under which host:port they reach --data {args.data}"
            )
        return None
    host, port = parse_address(args.advertise, "--advertise", to_bind=False)
    if is_wildcard(host) or port == 0:
        raise ValueError(
            f"--advertise: hosts cannot reach {args.advertise}; give the host and the port under which they reach --data"
        )
    return f"{host}:{port}"


async def _listen(app: web.Application, address: str, option: str) -> Endpoint:
    host, port = parse_address(address, option)
    try:
        return await start(app, host.strip("[]"), port, drain_seconds=1.0)
    except EndpointUnavailable as error:
        raise ValueError(f"{option}: {error}") from error


async def serve(args: argparse.Namespace) -> int:
    """Run until SIGTERM, then let requests finish within the grace."""
    settings = settings_of(args)
    told = advertised(args)
    async with contextlib.AsyncExitStack() as stack:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        # Also when what follows is refused: a server that is not stopped says so in a traceback of its own.
        stack.push_async_callback(server.stop, 0.5)
        # The port before the model: it costs nothing, and an engine takes seconds to import.
        data_host, data_port = bind(server, args.data, "--data")
        data = f"{data_host}:{data_port}"
        model = ModelStore(args.store).open(args.model)
        engine = create_engine(args.engine, args.device, threads_of(args))
        codec = TextCodec.from_model(model)
        codec.start_chat()
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # its CPU time, which the node's agent takes off what others use
        metrics = PipelineMetrics(registry)
        pipeline = Pipeline(
            model.name, model.index.hidden_size, model.index.max_context_tokens, settings, metrics
        )
        forecasts = Forecasts(registry, lambda: pipeline.plan)
        returns = ReturnService(pipeline)
        runtime_pb2_grpc.add_ActivationsServicer_to_server(returns, server)
        await server.start()
        coordinator = Coordinator(
            model, engine, pipeline, returns, told or data, metrics, args.recovery_seconds
        )
        app = create_app(
            pipeline,
            codec,
            registry=registry,
        )
        public = await _listen(app, args.listen, "--listen")
        private = await _listen(control_app(coordinator, pipeline, forecasts), args.control, "--control")
        stop, orphaned = asyncio.Event(), asyncio.Event()
        stop_on_signals(stop)
        if args.exit_with_parent:

            def on_gone() -> None:
                orphaned.set()
                stop.set()

            stop_with_parent(on_gone)
        tasks = [asyncio.create_task(pipeline.run()), asyncio.create_task(coordinator.run())]
        stopped = asyncio.create_task(stop.wait())
        http, control = (endpoint.url.removeprefix("http://") for endpoint in (public, private))
        announce(http=http, control=control, data=data)
        log.info("listening", http=http, control=control, data=data, model=model.name)
        # A task that ends on its own is a defect; the process then ends with its traceback, and is restarted.
        await asyncio.wait({stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set() and not orphaned.is_set():
            pipeline.closing = "the entry is shutting down"
            log.info("draining", sessions=pipeline.sessions()[0], grace_seconds=args.grace_seconds)
            await pipeline.drain(args.grace_seconds)
        for endpoint in (public, private):
            await endpoint.stop()
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await coordinator.close()
        for result in results:
            if isinstance(result, Exception):
                raise result
        log.info("stopped")
        return 0


def main() -> int:
    """Exit code 2 for bad input."""
    args = parser().parse_args()
    configure_logging(args.log_level)
    try:
        return asyncio.run(serve(args))
    except (ValueError, EngineError, StoreError, TextError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
