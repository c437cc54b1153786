"""``splitinfer status``: the plan that is served, its hosts, and what was observed."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from splitinfer.operator.local.compare import Comparison
    from splitinfer.operator.local.control import EntryStatus, HostStatus, RangeStatus
    from splitinfer.operator.local.runfile import RunFile


def register(subparsers: Any) -> None:
    """Add ``status``."""
    p = subparsers.add_parser(
        "status",
        help="what runs now",
        description="The plan that is served, its hosts, and what was observed.",
    )
    p.add_argument("--url", help="endpoint of the pipeline, when several run on this machine")
    p.add_argument("-o", "--output", choices=["table", "json"], default="table", help="form of the output")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask the entry and print; 1 when it does not answer though it should."""
    from rich.console import Console

    from splitinfer.operator.errors import CommandFailed
    from splitinfer.operator.local.control import ControlError
    from splitinfer.operator.local.machine_lines import ask, lines
    from splitinfer.operator.local.runfile import the_one

    pipeline = the_one(arguments.url)
    raw: dict[str, Any] = {"state": "starting"}
    status: EntryStatus | None = None
    if pipeline.control is not None:
        try:
            raw, status = asyncio.run(_ask(pipeline.control))
        except ControlError as error:
            if pipeline.serving:
                raise CommandFailed(f"{pipeline.endpoint}: the entry does not answer ({error})") from None
    if arguments.output == "json":
        facts: dict[str, Any] = {
            "endpoint": pipeline.endpoint,
            "model": pipeline.model,
            "serving": pipeline.serving,
            "processes": dict(pipeline.processes),
        }
        if status is not None and status.plan is not None:
            facts["compared"] = _comparison(pipeline, status).data
        facts["machine"] = asyncio.run(ask(pipeline.agent))
        json.dump({**raw, **facts}, sys.stdout, indent=2)
        print()
        return 0
    console = Console()
    if not pipeline.serving or status is None:
        show_starting(console, pipeline, status)
    if status is not None and (pipeline.serving or status.plan is not None):
        show(console, pipeline.endpoint or "unknown", status, _comparison(pipeline, status))
        for text in lines(asyncio.run(ask(pipeline.agent))):
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    return 0


def show_starting(console: Console, pipeline: RunFile, status: EntryStatus | None) -> None:
    """What a pipeline that does not serve yet, or whose entry is coming back, is busy with."""
    from splitinfer.operator.local.show import format_bytes

    where = f" at {pipeline.endpoint}/v1" if pipeline.endpoint else ""
    what = "its entry is starting again" if pipeline.serving else "a pipeline is starting"
    doing = ""
    if status is not None and status.progress.total_bytes:
        loaded, total = status.progress.loaded_bytes, status.progress.total_bytes
        doing = f", blocks loaded: {format_bytes(loaded)} of {format_bytes(total)} ({100 * loaded // total}%)"
    names = ", ".join(sorted(pipeline.processes)) or "none yet"
    console.print(
        f"{pipeline.model}{where}: {what}{doing}\nprocesses: {names}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if status is not None and status.last_error:
        console.print(f"last error: {status.last_error}", markup=False, highlight=False, soft_wrap=True)


def _comparison(pipeline: RunFile, status: EntryStatus) -> Comparison:
    """What is observed now beside what was to be expected of it."""
    from splitinfer.operator.errors import UserError
    from splitinfer.operator.local.compare import NO_BASIS, Comparison, traffic_of
    from splitinfer.operator.local.models import find_model
    from splitinfer.operator.planning.forecast import NoForecast, forecast

    plan, recent = status.plan, status.recent
    if plan is None:
        return Comparison(recent, None, None, 0, "no plan serves")
    traffic, expected, why = traffic_of(recent), None, None
    if pipeline.basis is None or pipeline.store is None:
        why = NO_BASIS
    else:
        try:
            model = find_model(f"store://{plan.model.name}", pipeline.store, "model")
            load = traffic or pipeline.basis.traffic
            expected = forecast(model, plan.dtype, plan.segments, pipeline.basis, load)
        except (NoForecast, UserError) as error:
            why = str(error)
    return Comparison(recent, traffic, expected, len(plan.segments), why)


async def _ask(control: str) -> tuple[dict[str, Any], EntryStatus]:
    from splitinfer.operator.local.control import ControlClient

    client = ControlClient(control.removeprefix("http://"))
    try:
        return await client.raw_status()
    finally:
        await client.aclose()


def show(console: Console, endpoint: str, status: EntryStatus, comparison: Comparison) -> None:
    """The status for a person."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from splitinfer.operator.local.show import format_bytes
    from splitinfer.operator.spec.blocks import format_blocks

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    line(f"endpoint: {endpoint}/v1")
    target = status.target_epoch
    onward = f", going to epoch {target}" if target not in (None, status.epoch) else ""
    line(f"state: {status.state}, epoch {status.epoch if status.epoch is not None else 'none yet'}{onward}")
    if status.last_error:
        line(f"last error: {status.last_error}")
    if status.plan is not None:
        plan = status.plan
        table = Table(title=f"{plan.model.name}, {plan.blocks} blocks, {plan.dtype}", box=SIMPLE_HEAD)
        columns = ("hop", "node", "blocks", "weights", "KV", "engine", "alive", "step ms", "predicted")
        for name in columns:
            table.add_column(name, justify="left" if name in ("node", "engine", "alive") else "right")
        for hop, segment in enumerate(plan.segments):
            host = status.hosts.get(segment.node)
            loaded = host.range_of(plan.epoch, hop) if host else None
            table.add_row(
                str(hop),
                segment.node,
                format_blocks(segment.start, segment.stop),
                format_bytes(loaded.weight_bytes) if loaded else "unknown",
                format_bytes(loaded.kv_bytes) if loaded else "unknown",
                _engine(host, loaded),
                "yes" if host and host.alive else "no",
                *comparison.cells(hop),
            )
        console.print(table)
        for text in identities(status):
            line(text)
    idle = sorted(set(status.hosts) - set(status.plan.nodes if status.plan else ()))
    if idle:
        line(f"nodes without blocks: {', '.join(idle)}")
    line(f"sessions: {status.sessions.running} running, {status.sessions.waiting} waiting")
    line(f"tokens: {status.observed.get('tokens_total') or 0:,.0f}")
    for name, label in (("ttft", "time to first token"), ("tpot", "time per output token")):
        median, p95 = (_ms(status.observed.get(f"{name}_{q}_seconds")) for q in ("p50", "p95"))
        line(f"{label}: median {median}, p95 {p95}")
    for text in comparison.lines:
        line(text)


def _engine(host: HostStatus | None, loaded: RangeStatus | None) -> str:
    """Which engine computes the range; `auto` is told by what it took."""
    if host is None or not host.engine:
        return "unknown"
    return f"{(loaded and loaded.identity.engine) or host.engine} on {host.device}"


def identities(status: EntryStatus) -> list[str]:
    """The identity class of the pipeline, or those that it spans: results are the same bits inside one only."""
    plan = status.plan
    if plan is None:
        return []
    nodes: dict[str, list[str]] = {}
    for hop, segment in enumerate(plan.segments):
        host = status.hosts.get(segment.node)
        loaded = host.range_of(plan.epoch, hop) if host else None
        if loaded is not None and loaded.identity.engine:
            members = nodes.setdefault(str(loaded.identity), [])
            if segment.node not in members:
                members.append(segment.node)
    if len(nodes) < 2:
        return [f"identity class: {name}" for name in nodes]
    return [
        f"identity: {len(nodes)} classes; a block that moves between them may change the last bits",
        *(f"  {', '.join(members)}: {name}" for name, members in nodes.items()),
    ]


def _ms(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1000:.1f} ms"
