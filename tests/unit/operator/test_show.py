"""What `up` prints: a bar on a terminal, plain lines elsewhere, each event once."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from splitinfer.operator.local.control import EntryStatus, Progress
from splitinfer.operator.local.show import Screen
from splitinfer.optimizer.forecast import Forecast, Traffic
from tests.support.stored import write_index
from tests.unit.operator.test_request import request_for


def screen(terminal: bool) -> tuple[Screen, io.StringIO]:
    """A screen and what it printed."""
    out = io.StringIO()
    return Screen(Console(file=out, force_terminal=terminal, width=100, legacy_windows=False)), out


def loading(loaded: int) -> EntryStatus:
    """An entry that loads 100 MiB."""
    return EntryStatus(
        state="preparing", progress=Progress(loaded_bytes=loaded << 20, total_bytes=100 << 20), target_epoch=1
    )


def test_without_a_terminal_loading_is_a_line_per_quarter() -> None:
    """Logs stay short: the same quarter is not printed twice."""
    shown, out = screen(terminal=False)
    with shown:
        for loaded in (0, 10, 24, 25, 60, 99, 100, 100):
            shown.status(loading(loaded))

    assert out.getvalue().splitlines() == [
        "loading blocks: 0 B of 100.0 MiB",
        "loading blocks: 25.0 MiB of 100.0 MiB",
        "loading blocks: 60.0 MiB of 100.0 MiB",
        "loading blocks: 99.0 MiB of 100.0 MiB",
        "loading blocks: 100.0 MiB of 100.0 MiB",
    ]


def test_on_a_terminal_a_bar_moves() -> None:
    """One bar with the bytes; no line per step."""
    shown, out = screen(terminal=True)
    with shown:
        shown.status(loading(60))

    assert "loading blocks" in out.getvalue()
    assert "60.0/100.0 MiB" in out.getvalue()
    assert "loading blocks: " not in out.getvalue()


def test_an_error_and_a_new_epoch_are_told_once() -> None:
    """Status is polled; people are told of changes."""
    shown, out = screen(terminal=False)
    for _ in range(3):
        shown.status(EntryStatus(state="serving", epoch=1))
    for _ in range(3):
        shown.status(EntryStatus(state="recovering", epoch=1, last_error="node-1 is lost"))
    for _ in range(3):
        shown.status(EntryStatus(state="serving", epoch=2))

    assert out.getvalue().splitlines() == ["entry: node-1 is lost", "entry: serving, epoch 2"]


def test_the_plan_is_a_table_of_node_blocks_and_bytes(tmp_path: Path) -> None:
    """One row per segment, blocks as people count them."""
    write_index(tmp_path, "tiny", blocks=3)
    shown, out = screen(terminal=False)
    shown.plan(request_for(tmp_path, nodes=2))

    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in out.getvalue().splitlines()
        if "│" in line
    ]
    assert rows == [["node-0", "0-1", "320"], ["node-1", "2", "160"]]


def test_what_is_expected_of_the_plan_stands_below_it(tmp_path: Path) -> None:
    """For the load that it was made for, in milliseconds; nothing where cuts were given."""
    write_index(tmp_path, "tiny", blocks=3)
    request = request_for(tmp_path, nodes=2)
    load = Traffic(sessions=2.0, in_flight=2, context_tokens=300.0, prompt_tokens=256)
    shown, out = screen(terminal=False)
    shown.plan(request)
    assert "expected" not in out.getvalue()
    shown.plan(
        request,
        Forecast(
            traffic=load,
            tpot_seconds=0.0456,
            ttft_seconds=0.7048,
            tokens_per_second=87.72,
            segment_seconds=(0.02,),
        ),
    )
    assert out.getvalue().splitlines()[-1] == (
        "expected with 4 users and prompts of 256 tokens: first token after 705 ms, 45.6 ms per token, "
        "87.7 tokens/s in all"
    )
