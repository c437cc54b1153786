"""The ``splitinfer`` command: finds the subcommands and turns what they raise into exit codes.

Subcommands are found by name, through the entry points of the group ``splitinfer.commands``, because the
operator must not import the runtime. Each is ``register(subparsers) -> None``: it adds a parser whose
defaults hold ``run``, a function from the parsed arguments to an exit code. What a command needs beyond the
standard library it imports inside ``run``, so that ``--help`` is fast and one missing extra breaks one
command only.

Exit codes: 0 it worked, 1 it did not, 2 the input is wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any, NoReturn

from splitinfer.operator.errors import CommandError

GROUP = "splitinfer.commands"
EXTRAS = {"splitinfer.operator": "cli", "splitinfer.segment_runtime": "runtime"}
"""Package of a command -> the extra that has what its modules import."""
MEND = "in the clone of splitinfer, run `.venv/bin/pip install -c requirements.lock -e '.[{}]'`"
"""No index of packages has splitinfer: it is installed from its clone."""

Subparsers = Any
"""What ``add_subparsers`` gives; argparse keeps the type private."""


class Parser(argparse.ArgumentParser):
    """argparse with this project's form of errors: ``error: FIELD: what; mend``, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print and leave."""
        what = message.removeprefix("argument ")
        self.exit(2, f"error: {what}; see `{self.prog} --help`\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = build_parser(entry_points(group=GROUP)).parse_args(argv)
    return run(arguments.run, arguments)


def build_parser(commands: Iterable[EntryPoint]) -> Parser:
    """The parser with every subcommand; one that cannot be imported is there and says so when called."""
    parser = Parser(prog="splitinfer")
    parser.description = "One foundation model as a chain of segments across edge nodes."
    parser.add_argument("--version", action="version", version=f"splitinfer {version('splitinfer')}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for entry in sorted(commands, key=lambda command: command.name):
        try:
            register: Callable[[Subparsers], None] = entry.load()
        except ImportError as error:
            _stand_in(subparsers, entry, error)
        else:
            register(subparsers)
    return parser


def run(command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Call a command; what it raises on purpose becomes lines on stderr and an exit code."""
    try:
        return command(arguments)
    except CommandError as error:
        for line in error.lines:
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "splitinfer":
            raise  # a fault of ours, not a missing extra
        print(f"error: {_missing(command.__module__, error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader left (`splitinfer status | head`); what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _stand_in(subparsers: Subparsers, entry: EntryPoint, error: ImportError) -> None:
    """A subcommand that takes any arguments and says what is missing."""

    def explain(_arguments: argparse.Namespace) -> int:
        print(f"error: {entry.name}: {_missing(entry.module, error)}", file=sys.stderr)
        return 1

    # No prefix character: every argument is positional and lands in `rest`, options too.
    parser = subparsers.add_parser(
        entry.name, prefix_chars="\0", add_help=False, help="(not installed; call it to see what is missing)"
    )
    parser.add_argument("rest", nargs="*")
    parser.set_defaults(run=explain)


def _missing(module: str, error: ImportError) -> str:
    extra = next((e for package, e in EXTRAS.items() if module.startswith(package)), "cli")
    name = error.name or str(error)
    return f"needs {name}, which is not installed; {MEND.format(extra)}"
