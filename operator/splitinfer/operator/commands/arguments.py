"""What several commands read from their command line in the same way. Standard library only: ``--help`` is fast."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any, Literal

DEVICE = "cpu|cuda[:N]"


def device(text: str) -> str:
    """A device by its form; whether it is there, its engine says."""
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device; write cpu, cuda or cuda:N")
    return text


def cuts(text: str) -> tuple[int, ...] | Literal["equal"]:
    """Block numbers that grow, or ``equal``. How many blocks there are, the model says."""
    if text == "equal":
        return "equal"
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of block numbers; write 10,20, or equal"
        ) from None
    for before, after in zip((0, *numbers), numbers, strict=False):
        if after <= before:
            raise argparse.ArgumentTypeError(
                f"{after} after {before}: cuts must grow, each above the one before; write 10,20"
                if before
                else f"{after}: the first cut is at least 1, because block 0 is always in the first segment"
            )
    return numbers


def node_engine(text: str) -> tuple[str, str]:
    """``NODE=ENGINE``."""
    node, _, engine = text.partition("=")
    if not node or engine not in ("auto", "onnx", "torch"):
        raise argparse.ArgumentTypeError(f"{text!r} is not NODE=ENGINE with auto, onnx or torch")
    return node, engine


STALE_KINDS = ("state", "speeds", "links")


def prometheus(parser: Any, required: Any = None) -> None:
    """Add the flags of a Prometheus server; ``required`` is a group that has ``--prometheus`` as one of its choices."""
    (parser if required is None else required).add_argument(
        "--prometheus", metavar="URL", help="take what nodes and links can do from this server"
    )
    parser.add_argument(
        "--prometheus-config",
        type=Path,
        metavar="FILE",
        help="its http_config (YAML): credentials, TLS, proxy",
    )
    parser.add_argument(
        "--nodes-file", type=Path, metavar="INVENTORY", help="site, labels and trust of each node (YAML)"
    )
    parser.add_argument(
        "--stale-after",
        action="append",
        type=stale_after,
        default=[],
        metavar="KIND=SECONDS",
        help="age beyond which a reading is unknown: state=120, speeds=600, links=900; may be repeated",
    )


def stale_after(text: str) -> tuple[str, float]:
    """``KIND=SECONDS``."""
    kind, _, seconds = text.partition("=")
    try:
        bound = float(seconds)
    except ValueError:
        bound = 0.0
    if kind not in STALE_KINDS or not 0 < bound < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not state, speeds or links=SECONDS above 0")
    return kind, bound
