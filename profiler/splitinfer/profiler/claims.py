"""Which agent speaks for a node: from samples to the newest word of one agent per node. Pure.

A range of time holds more than what is true now. A series that is not in the newest scrape of its target was withdrawn: the
agent no longer knows the value. A target that ended before another began was replaced by it. Two agents that speak for one
node at the same time and do not agree leave nothing known of it: no rule could tell which of them is right.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from splitinfer.profiler.answers import Sample
from splitinfer.profiler.series import AGENT_SERIES, NODE

MAX_NAME = 253
"""Longest name of a node; what is longer is none."""
MISSED = 2.0
"""Intervals between scrapes after which a target is taken to be gone, where another took its place."""

Key = tuple[str, tuple[str, ...]]
"""Name of a series, and the values of its labels after ``node``."""
_LABELS = {series.name: series.labels for series in AGENT_SERIES}


@dataclass(frozen=True, slots=True)
class Stamped:
    """A value, and how long ago it was scraped."""

    value: float
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Said:
    """What is said of one node.

    Attributes:
        values: the newest of each series.
        problem: why none of it counts; None where it does.
    """

    values: Mapping[Key, Stamped]
    problem: str | None = None


@dataclass(slots=True)
class _Target:
    """One scraped address under one job, as far as it speaks of one node."""

    agent: str
    last: float = 0.0
    first: float = math.inf
    gap: float = 0.0
    """Seconds between two scrapes, as the series that was scraped most often has it."""
    most: int = 1
    samples: dict[Key, Sample] = field(default_factory=dict)

    def add(self, key: Key, sample: Sample) -> None:
        kept = self.samples.get(key)
        if kept is None or kept.at_seconds < sample.at_seconds:
            self.samples[key] = sample
        self.last = max(self.last, sample.at_seconds)
        began = sample.at_seconds if sample.span is None else sample.span.first_at_seconds
        self.first = min(self.first, began, sample.at_seconds)
        if sample.span is not None and sample.span.count > self.most:
            self.most = sample.span.count
            self.gap = (sample.at_seconds - sample.span.first_at_seconds) / (sample.span.count - 1)

    def ended_before(self, other: _Target) -> bool:
        if self.last < other.first:
            return True
        gap = max(self.gap, other.gap)
        return gap > 0 and other.last - self.last > MISSED * gap


def said_by_node(samples: Iterable[Sample], now_seconds: float) -> dict[str, Said]:
    """What agents say of each node, by its name.

    Where Prometheus does not honour labels it renames ours: ``exported_node`` is the agent's word, ``node`` the target's.

    Args:
        samples: of any series; those that agents do not export are passed over.
        now_seconds: by the clock of the samples' times.
    """
    targets: dict[str, dict[frozenset[tuple[str, str]], _Target]] = defaultdict(dict)
    scraped: dict[frozenset[tuple[str, str]], float] = {}
    for sample in samples:
        labels = _LABELS.get(sample.name)
        if labels is None:
            continue
        used = [f"exported_{name}" if f"exported_{name}" in sample.labels else name for name in labels]
        values = [sample.labels.get(name, "") for name in used]
        node = values[labels.index(NODE)]
        if not all(values) or len(node) > MAX_NAME:
            continue
        identity = frozenset((name, value) for name, value in sample.labels.items() if name not in used)
        agent = sample.labels.get("instance", "") or str(sorted(identity))
        target = targets[node].setdefault(identity, _Target(agent))
        target.add((sample.name, tuple(v for n, v in zip(labels, values, strict=True) if n != NODE)), sample)
        scraped[identity] = max(scraped.get(identity, 0.0), sample.at_seconds)
    said = {}
    for node, by_target in targets.items():
        # Of several jobs that scrape one agent, the newest tells best.
        agents: dict[str, tuple[_Target, float]] = {}
        for identity, target in by_target.items():
            if target.agent not in agents or agents[target.agent][0].last < target.last:
                agents[target.agent] = (target, scraped[identity])
        said[node] = _of_one(list(agents.values()), now_seconds)
    return said


def _of_one(agents: list[tuple[_Target, float]], now: float) -> Said:
    here = [
        (one, scrape) for one, scrape in agents if not any(one.ended_before(other) for other, _ in agents)
    ]
    here.sort(key=lambda pair: (pair[0].last, pair[0].agent))
    current, scrape = here[-1]  # the one that was scraped last of all ended before nobody
    newest = {
        key: Stamped(sample.value, max(0.0, now - sample.at_seconds))
        for key, sample in current.samples.items()
        if sample.at_seconds == scrape
    }
    for other, _ in here[:-1]:
        differing = _disagreement(current, other)
        if differing is not None:
            pair = " and ".join(sorted((current.agent, other.agent)))
            return Said(newest, f"agents at {pair} both speak for it, and differ in {differing}"[:200])
    return Said(newest)


def _disagreement(one: _Target, other: _Target) -> str | None:
    """A series in which they differ. Ages and counters always do."""
    for key in sorted(one.samples.keys() | other.samples.keys()):
        if key[0].endswith(("_age_seconds", "_total")):
            continue
        a, b = one.samples.get(key), other.samples.get(key)
        if (
            a is None
            or b is None
            or not (a.value == b.value or (math.isnan(a.value) and math.isnan(b.value)))
        ):
            return key[0]
    return None
