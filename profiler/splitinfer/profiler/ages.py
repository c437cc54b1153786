"""How old a reading may be, and readings made of what an agent said. Pure."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from splitinfer.optimizer.capacity import Kind
from splitinfer.optimizer.values import Known, Unknown, Value
from splitinfer.profiler.claims import Said, Stamped
from splitinfer.profiler.plausible import why_not
from splitinfer.profiler.series import LINK_AGE, NODE_AGE, PROBE_AGE, PROBE_CALIBRATION_AGE, Series

Seconds = Annotated[float, Field(gt=0)]
Reading = Known | Unknown
AGENT = "agent"

MOST_REASON = 200
"""Characters of a reason, as `Unknown` has it."""


class StaleBounds(Value):
    """The age beyond which a reading is unknown, per kind. Seconds.

    Attributes:
        state: memory and load: read every 10 s, scraped once a minute at the least.
        speeds: probed once a minute, and less where the budget is spent or something disturbs.
        links: measured in rotation.
    """

    state: Seconds = 120.0
    speeds: Seconds = 600.0
    links: Seconds = 900.0

    def of(self, kind: Kind) -> float:
        """The bound of a kind."""
        return {"state": self.state, "speed": self.speeds, "link": self.links}[kind]

    @property
    def window_seconds(self) -> float:
        """How far back scrapes are looked at. Whoever was last scraped before that is long stale, and not in any answer."""
        return 2 * self.state


def unknown(why: str) -> Unknown:
    """Unknown for this reason."""
    return Unknown(unknown=why[:MOST_REASON])


STALE = "stale: "


def is_stale(reading: Reading) -> bool:
    """Whether it was known, too long ago; and not tried in vain, or wrong."""
    return isinstance(reading, Unknown) and reading.unknown.startswith(STALE)


def fresh(value: float, age_seconds: float, bound_seconds: float, source: str) -> Reading:
    """Known, unless it is too old."""
    if age_seconds > bound_seconds:
        return unknown(f"{STALE}{age_seconds:.0f} s old, at most {bound_seconds:.0f} s ({source})")
    return Known(value=value, age_seconds=age_seconds, source=source)


class Agent:
    """What is said of one node, value by value."""

    def __init__(self, said: Said, bounds: StaleBounds) -> None:
        self._said = said
        self._bounds = bounds

    @property
    def problem(self) -> str | None:
        """Why nothing of it counts."""
        return self._said.problem

    def has(self, series: Series, *labels: str) -> bool:
        """Whether the agent says anything of it, right or wrong."""
        return (series.name, labels) in self._said.values

    def labels_of(self, *series: Series) -> list[tuple[str, ...]]:
        """The label values (without the node's) under which any of these series is said."""
        names = {one.name for one in series}
        return sorted({labels for name, labels in self._said.values if name in names})

    def state(self, series: Series) -> Reading:
        """A reading of the node as it is now."""
        return self.reading(series, NODE_AGE, "state")

    def probed(self, series: Series, labels: tuple[str, ...]) -> Reading:
        """A reading of the last probe, however old: what it is worth is told together with its calibration."""
        return self.reading(series, PROBE_AGE, None, *labels)

    def calibration(self, series: Series, labels: tuple[str, ...]) -> Reading:
        """A reading of the calibration by live steps, however old."""
        return self.reading(series, PROBE_CALIBRATION_AGE, None, *labels)

    def link(self, series: Series, peer: str) -> Reading:
        """A reading of the link to a peer."""
        return self.reading(series, LINK_AGE, "link", peer)

    def reading(self, series: Series, age: Series, kind: Kind | None, *labels: str) -> Reading:
        """A value with its age: since the scrape, and what it had then by the agent's own clock.

        Args:
            series: of the value.
            age: the series that tells its age.
            kind: whose bound holds; None for none.
            labels: values of the labels after ``node``.
        """
        if self._said.problem is not None:
            return unknown(self._said.problem)
        found = self._plain(series, labels)
        if isinstance(found, Unknown):
            return found
        then = self._plain(age, labels)
        if isinstance(then, Unknown):
            return unknown(f"its age is not known: {then.unknown}")
        old = then.value + found.age_seconds
        return fresh(found.value, old, float("inf") if kind is None else self._bounds.of(kind), AGENT)

    def _plain(self, series: Series, labels: tuple[str, ...]) -> Stamped | Unknown:
        found = self._said.values.get((series.name, labels))
        if found is None:
            return unknown(f"the agent does not say {series.name}")
        wrong = why_not(series.name, found.value)
        return found if wrong is None else unknown(wrong)
