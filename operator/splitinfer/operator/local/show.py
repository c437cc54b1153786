"""What ``up`` shows: progress while loading, the plan as a table, and one line per event.

On a terminal a bar moves; anywhere else each line is printed once and stays.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from splitinfer.operator.local.control import EntryStatus
from splitinfer.operator.local.request import Request, table_rows
from splitinfer.optimizer.forecast import Forecast

STEP_PERCENT = 25
"""Without a terminal, progress is one line for so many percent."""


class Screen:
    """A `Listener` that prints. Use it as a context for the time of loading."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._shown = ("", -1)
        self._last_error: str | None = None
        self._epoch: int | None = None
        self._open = False

    def __enter__(self) -> Self:
        self._open = True
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            self._task = self._bar.add_task("starting processes", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def process(self, name: str, what: str) -> None:
        """One line, and where it matters only: a first start is not news on a terminal."""
        if not (self._bar is not None and what == "started"):
            self.note(f"{name}: {what}")

    def note(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def status(self, status: EntryStatus) -> None:
        """Move the bar; tell errors and returns to service once."""
        if status.last_error and status.last_error != self._last_error:
            self.note(f"entry: {status.last_error}")
        self._last_error = status.last_error
        if status.state == "serving" and status.epoch != self._epoch:
            if self._epoch is not None:
                self.note(f"entry: serving, epoch {status.epoch}")
            self._epoch = status.epoch
        if status.state == "preparing" and self._open:
            self.progress("loading blocks", status.progress.loaded_bytes, status.progress.total_bytes)

    def progress(self, what: str, done: int, total: int) -> None:
        """Move the bar of what is under way, in bytes; without a terminal, a line for each step."""
        if total <= 0:
            return
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=what, completed=done, total=total)
            return
        step = (what, 100 * done // total // STEP_PERCENT)
        if step != self._shown:
            self._shown = step
            self.note(f"{what}: {format_bytes(done)} of {format_bytes(total)}")

    def plan(self, request: Request, promised: Forecast | None = None) -> None:
        """The plan as a table: node, blocks, bytes; and what is expected of it, where that can be told."""
        self.console.print(plan_table(request))
        if promised is not None:
            self.note(expected(promised))


def expected(promised: Forecast) -> str:
    """What the solver expects of the plan, under the load that it was made for."""
    load = promised.traffic
    users = round(load.sessions * load.in_flight)
    return (
        f"expected with {users} {'user' if users == 1 else 'users'} and prompts of {load.prompt_tokens} tokens: "
        f"first token after {promised.ttft_seconds * 1000:.0f} ms, {promised.tpot_seconds * 1000:.1f} ms per token, "
        f"{promised.tokens_per_second:.1f} tokens/s in all"
    )


def plan_table(request: Request) -> Table:
    """Node, blocks and bytes of each segment in the order of the chain."""
    table = Table(title=f"{request.plan.model.name}, {request.plan.blocks} blocks, {request.plan.dtype}")
    table.add_column("node")
    table.add_column("blocks", justify="right")
    table.add_column("bytes", justify="right")
    for node, blocks, weight_bytes in table_rows(request):
        table.add_row(node, blocks, f"{weight_bytes:,}")
    return table


def format_bytes(count: int) -> str:
    """``1536`` as ``1.5 KiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
