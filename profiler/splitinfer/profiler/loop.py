"""The agent's two tasks, for as long as it runs: one reads the node, the other measures after each new reading.

What is decided is in `window`, `rounds`, `budget`, `link_schedule` and `calibration`, which are pure.
"""

from __future__ import annotations

import asyncio

from splitinfer.profiler.board import Board
from splitinfer.profiler.measuring import Measurer
from splitinfer.profiler.watching import FIRST_WINDOW_SECONDS, Watcher


async def run(board: Board) -> None:
    """Until cancelled."""
    watcher, ready = Watcher(board), asyncio.Event()
    measurer = Measurer(board, watcher)

    async def watch() -> None:
        board.take_targets()
        await watcher.begin()
        seconds = min(FIRST_WINDOW_SECONDS, board.settings.interval)
        while True:
            if await watcher.round(seconds):
                ready.set()
            seconds = board.settings.interval

    async def measure() -> None:
        while True:
            await ready.wait()
            ready.clear()
            await measurer.round()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch())
        tasks.create_task(measure())
