"""What several commands read from their command line in the same way. Standard library only: ``--help`` is fast."""

from __future__ import annotations

import argparse
import re
from typing import Literal

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
