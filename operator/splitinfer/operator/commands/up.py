"""``splitinfer up``: the local substrate. Arguments here; what it does is in `splitinfer.operator.local`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitinfer.operator.commands.arguments import DEVICE, cuts, device, node_engine, prometheus
from splitinfer.operator.commands.capacity import from_server, refuse_without_server

if TYPE_CHECKING:
    from splitinfer.operator.local.agents import LocalAgents
    from splitinfer.operator.local.models import ModelFacts
    from splitinfer.operator.local.placing import Options
    from splitinfer.operator.local.request import Request
    from splitinfer.operator.spec.resource import SplitInference
    from splitinfer.optimizer.capacity import CapacitySnapshot

DEFAULT_MODEL = "smollm2"
DEFAULT_PORT = 8000


def register(subparsers: Any) -> None:
    """Add ``up``."""
    p = subparsers.add_parser(
        "up",
        help="serve a model split over processes of this machine",
        description="Serve a model as a chain of segments, each a process of this machine, until Ctrl-C.",
    )
    p.add_argument("-f", "--file", type=Path, metavar="MANIFEST", help="a SplitInference manifest")
    p.add_argument(
        "--model", metavar="NAME", help=f"model of the store, without a manifest (default {DEFAULT_MODEL})"
    )
    p.add_argument("--nodes", type=int, metavar="N", help="node processes (default 3)")
    p.add_argument(
        "--cuts",
        type=cuts,
        metavar="I,J|equal",
        help="cut before these blocks, such as 10,20; nothing is measured or solved then",
    )
    capacity = p.add_mutually_exclusive_group()
    capacity.add_argument(
        "--capacity",
        type=Path,
        metavar="SNAPSHOT",
        help="plan with this capacity snapshot (YAML) in place of a measurement; a process stands for each node of the plan",
    )
    prometheus(p, capacity)
    p.add_argument("--port", type=int, default=DEFAULT_PORT, help="port of the endpoint; 0 takes a free one")
    p.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16", "int8", "int4"], help="over the manifest's"
    )
    p.add_argument("--engine", choices=["auto", "onnx", "torch"], help="over the manifest's")
    p.add_argument(
        "--node-engine",
        action="append",
        type=node_engine,
        default=[],
        metavar="NODE=ENGINE",
        help="another engine for one node; may be repeated",
    )
    p.add_argument(
        "--device", default="cpu", type=device, metavar=DEVICE, help="device of the hosts and of the entry"
    )
    p.add_argument(
        "--threads",
        type=int,
        metavar="T",
        help="threads of each host and of the entry (default: the usable CPUs, divided by the nodes)",
    )
    p.add_argument("--store", type=Path, metavar="DIR", help="model store (default $SPLITINFER_HOME/models)")
    p.add_argument("--prompt", metavar="TEXT", help="ask this once the pipeline serves, and print the answer")
    p.add_argument("--max-tokens", type=int, default=128, help="longest answer to --prompt")
    p.add_argument("--once", action="store_true", help="leave after the answer to --prompt")
    p.add_argument("--check", action="store_true", help="check the arguments, start nothing, and leave")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check everything, then serve until asked to stop."""
    if arguments.check:
        check(arguments)
        return 0
    return asyncio.run(_serve(arguments))


async def _serve(arguments: argparse.Namespace) -> int:
    from splitinfer.operator.local.pipeline import Settings, serve

    settings = Settings(
        port=arguments.port, prompt=arguments.prompt, max_tokens=arguments.max_tokens, once=arguments.once
    )
    async with prepared(arguments) as (request, agents):
        return await serve(request, settings, agents=agents)


def check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused in no time: all but the solver's plan, and what needs the default model before it is there.

    Raises UserError.
    """
    from splitinfer.operator.local.models import is_stored
    from splitinfer.operator.local.request import check_options, check_request

    wanted, options = asked(arguments)
    check_options(wanted, options)
    source = wanted.spec.model.source
    if source != _store_source(DEFAULT_MODEL) or is_stored(source, options.store):
        with _by_flag(arguments):
            check_request(wanted, options)


@asynccontextmanager
async def prepared(arguments: argparse.Namespace) -> AsyncIterator[tuple[Request, LocalAgents | None]]:
    """What shall run, and the agents that measured for it where neither cuts nor capacity are given.

    Raises UserError, CommandFailed.
    """
    from splitinfer.operator.local.request import check_request, make_request

    wanted, options = asked(arguments)
    async with AsyncExitStack() as stack:
        with _by_flag(arguments):
            model = check_request(wanted, options)
        agents = None
        if options.cuts is None and options.capacity is None:
            if arguments.prometheus is not None:
                options = replace(options, capacity=await _known(arguments, wanted, options, model))
            else:
                options, agents = await _measured(wanted, options, model, stack)
                options = replace(options, spread=arguments.file is None)
        with _by_flag(arguments):
            request = make_request(wanted, options)
        yield request, agents


def asked(arguments: argparse.Namespace) -> tuple[SplitInference, Options]:
    """Manifest and command line, read and checked by themselves. Raises UserError."""
    from splitinfer.operator.errors import UserError
    from splitinfer.operator.local.models import home
    from splitinfer.operator.local.pipeline import check_port
    from splitinfer.operator.local.placing import Options
    from splitinfer.operator.planning.snapshot import load_snapshot
    from splitinfer.operator.spec.manifest import load_manifest
    from splitinfer.operator.spec.resource import resource
    from splitinfer.optimizer.budget import Budget
    from splitinfer.profiler.machine import available_memory

    if arguments.once and arguments.prompt is None:
        raise UserError("--once", "there is nothing to answer; add --prompt TEXT")
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise UserError("--prompt", "is empty; write what to ask")
    if arguments.prometheus is None:
        refuse_without_server(arguments, "nobody is asked without it")
    for flag, given in (("--nodes", arguments.nodes), ("--cuts", arguments.cuts)):
        if given is not None and (arguments.capacity, arguments.prometheus) != (None, None):
            whose = "--prometheus" if arguments.capacity is None else "--capacity"
            raise UserError(flag, f"{whose} leaves nodes and cuts to the solver; remove one of the two")
    if arguments.max_tokens < 1:
        raise UserError("--max-tokens", f"{arguments.max_tokens}: at least 1")
    check_port(arguments.port)
    folder = home(writing=True)  # of logs and the run file, wherever the store is
    options = Options(
        store=arguments.store or folder / "models",
        nodes=arguments.nodes,
        cuts=arguments.cuts,
        dtype=arguments.dtype,
        engine=arguments.engine,
        node_engines=dict(arguments.node_engine),
        device=arguments.device,
        threads=arguments.threads,
        memory_bytes=available_memory(),
        capacity=None if arguments.capacity is None else load_snapshot(arguments.capacity),
        budget=Budget(seconds=5.0, clock=time.monotonic),
    )
    if arguments.file is not None:
        if arguments.model is not None:
            raise UserError("--model", "the manifest names the model; remove one of the two")
        return load_manifest(arguments.file), options
    name = DEFAULT_MODEL if arguments.model is None else arguments.model
    spec: dict[str, Any] = {"model": {"source": _store_source(name)}}
    if arguments.nodes is not None or arguments.cuts is not None:
        # Without a manifest the command line alone says how many segments there are.
        spec["placement"] = {"maxSegments": 64}
    return resource("up", spec), options


async def _known(
    arguments: argparse.Namespace, wanted: SplitInference, options: Options, model: ModelFacts
) -> CapacitySnapshot:
    """What a Prometheus server says of nodes, for which processes of this machine then stand."""
    dtype = options.dtype or wanted.spec.model.dtype
    engine = options.engine or wanted.spec.model.engine
    known = await asyncio.to_thread(from_server, arguments, model.digest, dtype, engine)
    for note in known.notes:
        print(f"note: {note}", file=sys.stderr)
    return known.snapshot


async def _measured(
    wanted: SplitInference, options: Options, model: ModelFacts, stack: AsyncExitStack
) -> tuple[Options, LocalAgents]:
    """This machine, by its agent, which stays until the stack ends."""
    from splitinfer.operator.local.agents import Probed, agents
    from splitinfer.operator.local.placing import local_nodes
    from splitinfer.operator.planning.capacity_table import busy

    dtype = options.dtype or wanted.spec.model.dtype
    engine = options.engine or wanted.spec.model.engine
    nodes = local_nodes(wanted, options, model.blocks)
    print(f"measuring this machine with blocks of {model.name} in {dtype}", flush=True)
    probed = Probed(model, dtype, engine, options.device, options.threads, len(nodes))
    local = await stack.enter_async_context(agents(probed))
    found = await local.measured(nodes)
    if warning := busy(found):
        print(warning, file=sys.stderr)
    return replace(options, capacity=found, measured=True), local


@contextmanager
def _by_flag(arguments: argparse.Namespace) -> Iterator[None]:
    """Problems by the flag that a person wrote, where there is no manifest."""
    from splitinfer.operator.errors import UserError

    try:
        yield
    except UserError as error:
        if arguments.file is None:
            raise UserError.of([(_FLAG_OF.get(f, f), message) for f, message in error.problems]) from None
        raise


_FLAG_OF = {"spec.model.source": "--model", "spec.placement.maxSegments": "--nodes"}
"""Where a field's value came from when there is no manifest."""


def _store_source(name: str) -> str:
    from splitinfer.operator.errors import UserError
    from splitinfer.operator.spec.resource import STORE_NAME

    if not STORE_NAME.fullmatch(name):
        raise UserError(
            "--model", f"{name!r} is not a model name; `splitinfer models list` shows those there are"
        )
    return f"store://{name}"
