"""The agent's command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from splitinfer.profiler.targets import ProbeTarget

INTERVAL_SECONDS = 10.0
PROBE_INTERVAL_SECONDS = 60.0
PROBE_BUDGET_CPU_SECONDS = 60.0
SERVING_THRESHOLD = 0.05
LINK_BUDGET_BYTES = 400e6
"""Per hour, which is 0.9 Mbit/s: a fast link each 24 seconds, a slow one more often, and more at once when an agent is new."""


def parser() -> argparse.ArgumentParser:
    """All options."""
    p = argparse.ArgumentParser(
        prog="splitinfer-agent", description="Measure this node and answer link probes."
    )
    p.add_argument("--node", required=True, help="name of this node")
    p.add_argument("--listen", default="127.0.0.1:0", help="host:port that answers link probes")
    p.add_argument(
        "--metrics",
        type=_to_bind,
        metavar="HOST:PORT",
        help="measure for ever, and export what is known here",
    )
    p.add_argument(
        "--targets",
        type=Path,
        metavar="FILE",
        help="JSON: peers, serving processes and probes; read when it changes",
    )
    _add_rounds(p.add_argument_group("rounds"))
    once = p.add_argument_group("measuring once")
    once.add_argument("--once", action="store_true", help="measure, print one JSON line and leave")
    once.add_argument(
        "--peer", action="append", default=[], type=_peer, metavar="NODE=HOST:PORT", help="probe this link"
    )
    once.add_argument("--model", help="model of the store whose blocks are timed")
    once.add_argument("--dtype", default="float32")
    once.add_argument("--engine", default="auto")
    hosts = p.add_argument_group("how hosts run, where a target does not say")
    hosts.add_argument("--store", help="folder of the model store")
    hosts.add_argument("--device", default="cpu")
    hosts.add_argument("--threads", type=int, help="default: the CPUs this process may use")
    hosts.add_argument(
        "--cpu-share", type=int, metavar="N", help="one N-th of them, because N processes share them"
    )
    return p


def _add_rounds(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--interval",
        type=_number(0.1),
        default=INTERVAL_SECONDS,
        metavar="S",
        help="between readings of the node",
    )
    group.add_argument(
        "--probe-interval", type=_number(0.1), default=PROBE_INTERVAL_SECONDS, metavar="S",
        help="between two probes of a model",
    )  # fmt: skip
    group.add_argument(
        "--probe-budget", type=_number(0), default=PROBE_BUDGET_CPU_SECONDS, metavar="S",
        help="CPU seconds that probes may take per hour",
    )  # fmt: skip
    group.add_argument(
        "--serving-threshold", type=_number(0), default=SERVING_THRESHOLD, metavar="SHARE",
        help="share of the time that hosts spend in steps above which no probe begins",
    )  # fmt: skip
    group.add_argument(
        "--link-budget", type=_number(0), default=LINK_BUDGET_BYTES, metavar="BYTES",
        help="that link probes may send per hour",
    )  # fmt: skip


def probe_options(args: argparse.Namespace, target: ProbeTarget) -> Mapping[str, object]:
    """The options of a target's probe; None: not given. A target's threads leave the agent's own aside."""
    own = target.threads is not None or target.cpu_share is not None
    return {
        "--model": target.model,
        "--store": args.store,
        "--dtype": target.dtype,
        "--engine": target.engine,
        "--device": target.device or args.device,
        "--threads": target.threads if own else args.threads,
        "--cpu-share": target.cpu_share if own else args.cpu_share,
    }


def _peer(text: str) -> tuple[str, str]:
    node, _, address = text.partition("=")
    if not node or ":" not in address:
        raise argparse.ArgumentTypeError(f"{text!r} is not NODE=HOST:PORT")
    return node, address


def _to_bind(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not host or not colon or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT (port 0 takes a free one)")
    return text


def _number(least: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least:g}")
        return value

    return parse
