"""What is asked of a server: at one time of its own clock, and what may fail."""

from __future__ import annotations

import pytest

from splitinfer.profiler.answers import Sample
from splitinfer.profiler.prometheus import HttpConfig, Prometheus, PrometheusError
from splitinfer.profiler.series import LINK_BANDWIDTH
from splitinfer.profiler.sources import OTHERS, PrometheusSource, SourceError


class Fake(Prometheus):
    """A server that knows one series per question, and fails at those that are named."""

    def __init__(self, *failing: str) -> None:
        super().__init__("http://fake:9090", HttpConfig())
        self.failing = failing
        self.asked: list[tuple[str, float | None]] = []

    async def now_seconds(self) -> float:
        """Fixed."""
        if "time()" in self.failing:
            raise PrometheusError("no time")
        return 1234.5

    async def samples(self, query: str, at_seconds: float | None = None) -> tuple[Sample, ...]:
        """One."""
        self.asked.append((query, at_seconds))
        if any(query.startswith(selector) for selector in self.failing):
            raise PrometheusError(f"cannot say {query}")
        return (Sample(query, {}, 1.0, 1230.0),)


async def test_everything_is_asked_as_of_one_time_of_the_servers_clock() -> None:
    """Over one window, each question once."""
    server = Fake()
    gathered = await PrometheusSource(server, 90.0).gather()
    assert gathered.now_seconds == 1234.5
    assert gathered.failures == {}
    assert {at for _, at in server.asked} == {1234.5}
    assert all(query.endswith("[90s]") for query, _ in server.asked)
    assert len({query for query, _ in server.asked}) == len(server.asked) == len(gathered.samples)


async def test_other_exporters_may_fail_and_are_named() -> None:
    """What agents say counts all the same."""
    name, selector = next(iter(OTHERS.items()))
    gathered = await PrometheusSource(Fake(selector), 90.0).gather()
    assert list(gathered.failures) == [name]
    assert gathered.failures[name].startswith("cannot say ")
    assert len(gathered.samples) > 1


@pytest.mark.parametrize("failing", ["time()", '{__name__=~"splitinfer_', LINK_BANDWIDTH.name])
async def test_without_the_time_or_what_agents_say_nothing_was_learned(failing: str) -> None:
    """Half of it would look like nodes or links that are gone."""
    with pytest.raises(SourceError, match=r"no time|cannot say"):
        await PrometheusSource(Fake(failing), 90.0).gather()
