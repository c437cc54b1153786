"""The node agent: answers the link probes of others, and measures its own node.

``python -m splitinfer.profiler.agent --node NAME --listen HOST:PORT`` answers until its stdin ends or SIGTERM comes.
With ``--once --model NAME`` it measures, prints one JSON line (`splitinfer.profiler.report`) and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import grpc

from splitinfer.profiler.links import LinkProbeError, echo_handlers, measure
from splitinfer.profiler.machine import available_memory, cpu_time, utilisation
from splitinfer.profiler.report import AgentReport, LinkReport, link_report
from splitinfer.profiler.speeds import ProbeError, ProbeResult, parse_probe

PROBE_MODULE = "splitinfer.segment_runtime.probe"
PROBE_SECONDS = 60.0
"""A model that is not in the page cache takes a while to be read."""
WINDOW_SECONDS = 0.5
"""Over which the CPUs are watched, before anything of ours runs."""
LOWEST_PRIORITY = 19


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="splitinfer-agent", description="Measure this node and answer link probes."
    )
    p.add_argument("--node", required=True, help="name of this node")
    p.add_argument("--listen", default="127.0.0.1:0", help="host:port that answers link probes")
    p.add_argument("--once", action="store_true", help="measure, print one JSON line and leave")
    p.add_argument(
        "--peer", action="append", default=[], type=_peer, metavar="NODE=HOST:PORT", help="probe this link"
    )
    p.add_argument("--model", help="model of the store whose blocks are timed")
    p.add_argument("--store", help="folder of the model store")
    p.add_argument("--dtype", default="float32")
    p.add_argument("--engine", default="auto")
    p.add_argument("--device", default="cpu")
    p.add_argument("--threads", type=int, help="default: the CPUs this process may use")
    p.add_argument(
        "--cpu-share", type=int, metavar="N", help="one N-th of them, because N processes share them"
    )
    return p


def _peer(text: str) -> tuple[str, str]:
    node, _, address = text.partition("=")
    if not node or ":" not in address:
        raise argparse.ArgumentTypeError(f"{text!r} is not NODE=HOST:PORT")
    return node, address


def probe_command(args: argparse.Namespace) -> Sequence[str]:
    """The probe of one block: a process of its own, because the profiler knows no engine."""
    options = {"--model": args.model, "--store": args.store, "--dtype": args.dtype, "--engine": args.engine,
               "--device": args.device, "--threads": args.threads, "--cpu-share": args.cpu_share}  # fmt: skip
    given = [part for name, value in options.items() if value is not None for part in (name, str(value))]
    return (sys.executable, "-P", "-m", PROBE_MODULE, *given)


async def probe(command: Sequence[str]) -> ProbeResult | str:
    """Run it at the lowest priority; what it found, or why there is nothing."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        # Looking for plugins of pydantic, which none of ours is, takes 3 % of a probe.
        env=os.environ | {"PYDANTIC_DISABLE_PLUGINS": "__all__"},
    )  # fmt: skip
    with suppress(ProcessLookupError, PermissionError):
        os.setpriority(os.PRIO_PROCESS, process.pid, LOWEST_PRIORITY)
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            out, said = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return f"the probe took more than {PROBE_SECONDS:g} s"
    if process.returncode != 0:
        lines = said.decode(errors="replace").strip().splitlines()
        return (lines[-1] if lines else f"the probe ended with {process.returncode}").removeprefix("error: ")
    try:
        return parse_probe(out.decode(errors="replace"))
    except ProbeError as error:
        return str(error)


async def _link(address: str) -> LinkReport | str:
    try:
        return link_report(await measure(address))
    except LinkProbeError as error:
        return str(error)


async def measure_once(args: argparse.Namespace) -> AgentReport:
    """Everything, one after the other, so that no measurement disturbs another."""
    before = cpu_time()
    await asyncio.sleep(WINDOW_SECONDS)
    busy = utilisation(before, cpu_time())
    free = available_memory()
    links = {node: await _link(address) for node, address in args.peer}
    found = "no --model was named" if args.model is None else await probe(probe_command(args))
    return AgentReport(node=args.node, probe=found, links=links, free_memory_bytes=free, utilisation=busy)


async def serve(args: argparse.Namespace) -> int:
    """Answer link probes until the parent goes or SIGTERM comes."""
    # By default two agents could share a port, and each would answer some of the other's probes.
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((echo_handlers(),))
    try:
        port = server.add_insecure_port(args.listen)
    except RuntimeError:
        port = 0
    if not port:
        print(f"error: --listen: {args.listen} cannot be bound; choose a free port, or 0", file=sys.stderr)
        return 2
    await server.start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    print(json.dumps({"node": args.node, "probe": f"{args.listen.rpartition(':')[0]}:{port}"}), flush=True)
    gone = loop.run_in_executor(None, sys.stdin.read)
    await asyncio.wait(
        {asyncio.ensure_future(gone), asyncio.create_task(stop.wait())}, return_when="FIRST_COMPLETED"
    )
    await server.stop(None)
    return 0


def main() -> int:
    """Exit code 2 for bad input."""
    args = parser().parse_args()
    if args.once:
        print(asyncio.run(measure_once(args)).model_dump_json())
        return 0
    code = asyncio.run(serve(args))
    sys.stdout.flush()
    os._exit(code)  # a thread may still wait for stdin


if __name__ == "__main__":
    sys.exit(main())
