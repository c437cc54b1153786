"""Link probes and probes of blocks, one thing at a time, so that no measurement disturbs another."""

from __future__ import annotations

from dataclasses import replace

from splitinfer.profiler.ages import StaleBounds
from splitinfer.profiler.board import Board
from splitinfer.profiler.budget import budget
from splitinfer.profiler.link_pace import pace
from splitinfer.profiler.link_schedule import peers_to_probe
from splitinfer.profiler.links import LinkProbeError
from splitinfer.profiler.live_window import with_live
from splitinfer.profiler.rounds import due, refusal
from splitinfer.profiler.speeds import ProbeError, ProbeResult, speeds_of
from splitinfer.profiler.state import LinkReading, ProbeReading
from splitinfer.profiler.targets import ProbeTarget
from splitinfer.profiler.watching import Watcher

PROBE_CPU_SECONDS = 1.0
"""What a probe is expected to take before it has run once."""


class Measurer:
    """Asks the links and runs the probes that are due."""

    def __init__(self, board: Board, watcher: Watcher) -> None:
        self._board = board
        self._watcher = watcher
        now = board.ports.clock()
        self._round = 0
        settings = board.settings
        self._link_budget = budget(settings.link_budget, now)
        paced = pace(settings.link_budget, board.ports.link_bytes, settings.interval, StaleBounds().links)
        self._keep = 1 if paced is None else paced.keep
        """Links of the sample; one at the least: better stale for a while than never known."""
        self._asked: dict[str, float] = {}
        """When each link was last probed, in vain or not."""
        self._probe_budget = budget(settings.probe_budget, now)
        self._tried: dict[ProbeTarget, float] = {}
        self._cost: dict[ProbeTarget, float] = {}
        self._probed_cpus: float | None = None

    async def round(self) -> None:
        """Everything that is due."""
        await self._links()
        await self._probes()
        self._round += 1

    async def _links(self) -> None:
        """As many as the budget has bytes for: the longest waiting ones of those that it can keep fresh."""
        board, now, size = self._board, self._board.ports.clock(), self._board.ports.link_bytes
        peers = board.targets.peers_of()
        self._asked = {peer: at for peer, at in self._asked.items() if peer in peers}
        for peer, live in board.ports.live(peers).items():
            if (reading := board.state.links.get(peer)) is not None:
                board.put(board.state.with_link(peer, with_live(reading, live, now)))
        self._link_budget = self._link_budget.until(now)
        if not self._link_budget.allows(size):
            return
        most = max(1, int(self._link_budget.left // size))
        ages = {peer: now - at for peer, at in self._asked.items()}
        for peer in peers_to_probe(board.settings.node, peers, ages, self._round, most, self._keep):
            try:
                times = await board.ports.measure(peers[peer].address, self._sent)
                reading = LinkReading(board.ports.clock(), times)
                board.say(f"link {peer}", None)
            except LinkProbeError as error:
                reading = LinkReading(board.ports.clock(), None)
                board.count(link_errors=1)
                board.say(f"link {peer}", f"link to {peer}: {error}")
            self._asked[peer] = board.ports.clock()
            if peer in board.targets.peers:  # it may have left meanwhile
                board.put(board.state.with_link(peer, reading))

    def _sent(self, nbytes: int) -> None:
        self._link_budget = self._link_budget.spent(nbytes)
        self._board.count(link_bytes=nbytes)

    async def _probes(self) -> None:
        board, node = self._board, self._board.state.node
        if node is None:
            return
        probes = board.targets.probes
        self._tried = {probe: at for probe, at in self._tried.items() if probe in probes}
        cpus = (self._probed_cpus, node.cpus)
        # Of the rounds, the one that is nearest to the end of a probe's interval.
        interval = board.settings.probe_interval - board.settings.interval / 2
        turn = due(probes, self._tried, board.ports.clock(), interval, cpus)
        if turn:
            self._probed_cpus = node.cpus
        for target in turn:
            now = board.ports.clock()
            self._tried[target] = now
            self._probe_budget = self._probe_budget.until(now)
            estimate = self._cost.get(target, PROBE_CPU_SECONDS)
            why = refusal(self._probe_budget, estimate, node.serving_ratio, board.settings.serving_threshold)
            if why is None:
                await self._probe(target)
            else:
                board.put(replace(board.state, counts=board.state.counts.with_run(why)))

    async def _probe(self, target: ProbeTarget) -> None:
        board = self._board
        with self._watcher.still():
            found, cost = await board.ports.probe(target)
        self._cost[target] = cost
        self._probe_budget = self._probe_budget.spent(cost)
        reading = self._reading(found)
        outcome = "failed" if isinstance(reading, str) else "done"
        board.put(replace(board.state, counts=board.state.counts.with_run(outcome, cost)))
        about = f"probe {target}"
        if isinstance(reading, str):
            board.say(about, f"probe of {target.model} in {target.dtype}: {reading}")
        elif target in board.targets.probes:  # it may have left meanwhile
            board.say(about, None)
            board.put(board.state.with_probe(target, reading))

    def _reading(self, found: ProbeResult | str) -> ProbeReading | str:
        if isinstance(found, str):
            return found
        try:
            return ProbeReading(self._board.ports.clock(), found, speeds_of(found))
        except ProbeError as error:
            return str(error)
