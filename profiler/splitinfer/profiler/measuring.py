"""Link probes and probes of blocks, one thing at a time, so that no measurement disturbs another."""

from __future__ import annotations

from dataclasses import replace

from splitinfer.profiler.ages import StaleBounds
from splitinfer.profiler.board import Board
from splitinfer.profiler.budget import budget
from splitinfer.profiler.link_pace import Pace, pace
from splitinfer.profiler.link_schedule import peers_to_probe, sample
from splitinfer.profiler.links import LinkProbeError
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
        self._pace = pace(
            settings.link_budget, board.ports.link_bytes, settings.interval, StaleBounds().links
        )
        self._links_due = 0
        """The round in which links are probed next."""
        self._link_rounds = 0
        self._asked: set[str] = set()
        """Peers that were probed, in vain or not."""
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
        """A round of links when it is time, and more at once while some were never asked: a new agent knows none."""
        board, now = self._board, self._board.ports.clock()
        peers = board.targets.peers_of()
        self._asked = {peer for peer in self._asked if peer in peers}
        for peer, times in board.ports.live(peers).items():
            board.put(board.state.with_link(peer, LinkReading(now, times, live=True)))
        self._link_budget = self._link_budget.until(now)
        if self._pace is None:
            return
        wheel = sample(board.settings.node, peers, self._pace.most * (self._pace.fresh_rounds - 1))
        while self._link_budget.allows(self._pace.most * board.ports.link_bytes):
            if self._round < self._links_due and self._asked.issuperset(wheel):
                return
            self._links_due = self._round + self._pace.every
            await self._link_round(self._pace)

    async def _link_round(self, pace: Pace) -> None:
        board, node = self._board, self._board.settings.node
        peers, now = board.targets.peers_of(), board.ports.clock()
        ages = {peer: now - link.at for peer, link in board.state.links.items()}
        asked = peers_to_probe(node, peers, ages, self._link_rounds, pace.most, pace.fresh_rounds)
        self._link_rounds += 1
        for peer in asked:
            reading = None
            try:
                times = await board.ports.measure(peers[peer].address, self._sent)
                reading = LinkReading(board.ports.clock(), times)
                board.say(f"link {peer}", None)
            except LinkProbeError as error:
                board.count(link_errors=1)
                board.say(f"link {peer}", f"link to {peer}: {error}")
            self._asked.add(peer)
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
