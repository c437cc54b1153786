"""Converts a stored model to int8 or int4 before hosts load it: JSON lines on stdout, then the process ends.

``python -m splitinfer.segment_runtime.convert --model NAME --dtype D --store DIR``

A process of its own, because whoever starts hosts imports nothing of the runtime, and because hosts that each converted
their own blocks would do it at the same time, unseen. The lines are ``converting`` (unit, done_bytes, total_bytes of the
source) and then one of

- ``there``: nothing was to be done;
- ``converted`` (exact, total): so many matrices were repacked without quantising a second time, of so many;
- ``not kept`` (reason): the store takes no files; each host then converts what it loads, every time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from splitinfer.segment_runtime.arguments import Parser
from splitinfer.segment_runtime.engine.onnx_recipes import unsupported
from splitinfer.segment_runtime.process import configure_logging
from splitinfer.segment_runtime.store.conversions import conversions, convert_model
from splitinfer.segment_runtime.store.converted import BITS
from splitinfer.segment_runtime.store.errors import ImportFailed, StoreError
from splitinfer.segment_runtime.store.reader import ModelStore

REFUSED = 2
INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(prog="splitinfer-convert", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--model", required=True, help="its name in the store")
    p.add_argument("--dtype", required=True, choices=list(BITS), help="what to convert to")
    p.add_argument("--store", type=Path, help="folder of the model store")
    p.add_argument(
        "--exit-with-parent", action="store_true", help="stop when stdin, held open by the parent, ends"
    )
    return p


def convert(store: ModelStore, name: str, dtype: str) -> None:
    """Convert one model, and tell.

    Raises:
        StoreError: no such model, or a damaged one.
        ValueError: a model that the only engine with this dtype has no graph for: converting it would be for nothing.
    """
    model = store.open(name)
    reason = unsupported(model.config)
    if reason is not None:
        raise ValueError(
            f"dtype: {dtype}: {name}: {reason}; only that engine has {dtype}: use a float dtype and engine torch or auto"
        )
    if dtype in conversions(model):
        _tell("there")
        return
    try:
        exact, total = convert_model(
            model,
            dtype,
            lambda unit, done, of: _tell("converting", unit=unit, done_bytes=done, total_bytes=of),
        )
    except ImportFailed as error:
        _tell("not kept", reason=str(error))
        return
    _tell("converted", exact=exact, total=total)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 2 for what the user can mend, 130 when stopped; what was converted until then stays."""
    args = parser().parse_args(arguments)
    configure_logging("warning")
    # Both ways of being stopped unwind the stack, so that no half-written file stays in the store.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if args.exit_with_parent:
        threading.Thread(target=_interrupt_with_parent, name="parent-watch", daemon=True).start()
    try:
        convert(ModelStore(args.store), args.model, args.dtype)
    except (StoreError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _interrupt_with_parent() -> None:
    while os.read(0, 4096):
        pass
    signal.raise_signal(signal.SIGINT)


def _tell(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
