"""What the command lines of the runtime's processes share: the form of an error, and values that are more than a type."""

from __future__ import annotations

import argparse
import math
from typing import NoReturn

MAX_NAME = 253
"""Characters of a node's name, as Kubernetes has it; plans take no longer one."""


class Parser(argparse.ArgumentParser):
    """argparse with this project's form of errors: ``error: FIELD: what; mend``, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print and leave."""
        self.exit(2, f"error: {message.removeprefix('argument ')}; see `{self.prog} --help`\n")


def seconds(text: str) -> float:
    """A time to wait: a number of seconds that is not negative, and ends."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds; write one such as 20 or 0.5")
    return value


def some_seconds(text: str) -> float:
    """As `seconds`, and more than none."""
    value = seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 would be over before it began; write more")
    return value


def node_name(text: str) -> str:
    """A name that a plan can have for a node."""
    if not 0 < len(text) <= MAX_NAME:
        raise argparse.ArgumentTypeError(
            f"a node's name has 1 to {MAX_NAME} characters; give the one that plans use"
        )
    return text
