"""The readings of the node, round by round: CPUs over a window, memory, and what the serving processes did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from splitinfer.profiler.board import Board
from splitinfer.profiler.calibration import window_ratio
from splitinfer.profiler.contention import share
from splitinfer.profiler.serving import Activity, Served, ServingError, activity, parse_served
from splitinfer.profiler.state import NodeReading
from splitinfer.profiler.window import Window, load_of

SAMPLE_SECONDS = 0.1
"""Between two readings of the runnable threads."""
FIRST_WINDOW_SECONDS = 0.5
"""The first readings come soon, before anything of ours runs."""
TARGETS_SECONDS = 1.0
"""Between two looks at the file of targets."""


class Watcher:
    """Reads and publishes."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._window = Window(None)
        self._served: dict[str, Served] = {}
        self._probing = False
        self._looked = board.ports.clock()
        """When the file of targets was last looked at."""

    async def begin(self) -> None:
        """A new window, and what the serving processes say at its start."""
        self._served = await self._scraped()
        self._window = Window(None)
        self._resume()

    async def round(self, seconds: float) -> bool:
        """Watch for so long and publish what was seen.

        Returns:
            False where a probe of ours took up the window, which then goes on.
        """
        await self._watch(seconds)
        self._window = self._window.held(self._board.ports.counters())
        if self._window.seconds < min(FIRST_WINDOW_SECONDS, seconds) / 2:
            self._resume()
            return False
        window, before = self._window, self._served
        await self.begin()
        did = activity(before, self._served, self._board.targets.serving)
        node = self._reading(window, did)
        self._board.put(replace(self._board.state, node=node))
        self._calibrate(did, node)
        return True

    @contextmanager
    def still(self) -> Iterator[None]:
        """While a probe runs, which is no load of others."""
        self._probing = True
        self._window = self._window.held(self._board.ports.counters())
        try:
            yield
        finally:
            self._probing = False
            self._resume()

    def _resume(self) -> None:
        if not self._probing:
            self._window = self._window.resumed(self._board.ports.counters())

    async def _watch(self, seconds: float) -> None:
        """Sample until the window is over. Other serving processes than before begin it anew."""
        board, clock = self._board, self._board.ports.clock
        over = clock() + seconds
        while (left := over - clock()) > 0:
            await board.ports.sleep(min(SAMPLE_SECONDS, left))
            self._window = self._window.sampled(board.ports.runnable())
            if clock() - self._looked >= TARGETS_SECONDS:
                self._looked = clock()
                before = board.targets.serving
                board.take_targets()
                if before != board.targets.serving:
                    await self.begin()
                    over = max(over, clock() + min(TARGETS_SECONDS, seconds))

    def _reading(self, window: Window, did: Activity | None) -> NodeReading:
        ports = self._board.ports
        cpus, machine = ports.cpus()
        load = load_of(window, machine, None if did is None else did.cpus)
        return NodeReading(
            at=ports.clock(),
            memory_available_bytes=ports.memory(),
            cpus=cpus,
            machine_cpus=machine,
            busy_ratio=None if load is None else load.busy_ratio,
            runnable=None if load is None else load.runnable,
            serving_ratio=None if did is None else min(1.0, did.busy_ratio),
        )

    def _calibrate(self, did: Activity | None, node: NodeReading) -> None:
        """One window more of the only model that is probed; with several it is not known whose steps they were."""
        board = self._board
        if did is None or len(board.targets.probes) != 1:
            return
        (target,) = board.targets.probes
        reading = board.state.probes.get(target)
        if reading is None:
            return
        left = None
        if node.machine_cpus is not None and node.runnable is not None:
            left = share(node.machine_cpus, node.runnable, reading.result.threads)
        ratio = window_ratio(did.steps, left, reading.speeds, reading.result)
        after = reading.calibration.after(ratio, node.at)
        board.put(board.state.with_probe(target, replace(reading, calibration=after)))

    async def _scraped(self) -> dict[str, Served]:
        board, found = self._board, {}
        for url in board.targets.serving:
            try:
                text = await board.ports.scrape(url)
                found[url] = parse_served(text, board.ports.clock())
                board.say(url, None)
            except ServingError as error:
                board.count(scrape_errors=1)
                board.say(url, f"serving: {url}: {str(error).removeprefix(f'{url}: ')}")
        return found
