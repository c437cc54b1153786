"""The arithmetic of link probes, on links that are computed: rate, round trip, token bucket, slow start, loss, a busy node."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from splitinfer.profiler.link_times import (
    MOST_BYTES,
    TRAINS,
    LinkTimes,
    Train,
    link_times,
    next_train,
    train_bandwidth,
)

FIRST_WINDOW_BYTES = 14_480
"""Ten segments: what TCP sends before the first answer."""


@dataclass
class Link:
    """One that is computed. Bytes, seconds, bytes per second."""

    rate: float
    round_trip: float = 0.001
    bucket: float = 0.0
    tokens: float = 0.0
    window: float = FIRST_WINDOW_BYTES

    def train(self, messages: int, nbytes: int) -> Train:
        """Bytes pass at full speed while there are tokens, then at the rate; TCP sends twice as much every round trip."""
        now, round_began, in_round, answers = 0.0, 0.0, 0.0, []
        for _ in range(messages):
            left = float(nbytes)
            while left > 0:
                if (
                    in_round >= self.window
                ):  # all of it is on its way: wait for its answers, then send twice as much
                    now = max(now, round_began + self.round_trip)
                    round_began, in_round, self.window = now, 0.0, 2 * self.window
                part = min(left, self.window - in_round)
                free = min(part, self.tokens)
                self.tokens -= free
                now += (part - free) / self.rate
                left, in_round = left - part, in_round + part
            answers.append(now + self.round_trip)
        return Train(nbytes, tuple(answers))


def probe(link: Link, seconds: float = 5.0) -> tuple[LinkTimes, list[Train]]:
    """As `links.measure` does it, with ``seconds`` for the trains."""
    trains: list[Train] = []
    link.tokens, spent = link.bucket, 0.0
    while (asked := next_train(trains, link.round_trip, seconds - spent)) is not None:
        trains.append(link.train(*asked))
        spent += trains[-1].answers[-1]
    return link_times([link.round_trip] * 5, trains), trains


rates = st.floats(4e4, 1.25e7)  # 0.32 to 100 Mbit/s
round_trips = st.floats(2e-4, 0.05)


@given(rates, round_trips, st.floats(0, 40_000))
def test_the_rate_is_found_through_bucket_and_slow_start(
    rate: float, round_trip: float, bucket: float
) -> None:
    """Within 20% from 0.3 to 100 Mbit/s, up to 50 ms, where the bucket is not larger than what is thrown away."""
    found, trains = probe(Link(rate, round_trip, bucket))
    assert found.bandwidth_bytes_per_second == pytest.approx(rate, rel=0.2), trains
    assert found.round_trip_median_seconds == round_trip


@given(st.floats(1e6, 1e7), st.floats(0, 300_000))
def test_a_large_bucket_is_seen_through_on_a_link_that_is_not_slow(rate: float, bucket: float) -> None:
    """Home routers have such: more than 8 Mbit/s and 0.3 MB that pass at once."""
    found, _ = probe(Link(rate, 0.001, bucket))
    assert found.bandwidth_bytes_per_second == pytest.approx(rate, rel=0.2)


@given(rates, round_trips, st.data())
def test_a_lost_packet_never_makes_a_link_look_faster(
    rate: float, round_trip: float, data: st.DataObject
) -> None:
    """What was behind it arrives in one moment, once it was sent again; the first message can be the lost one too."""
    train = Link(rate, round_trip).train(16, 4096)
    first = data.draw(st.integers(0, 15))
    last = data.draw(st.integers(first, 15))
    held = tuple(
        train.answers[last] if first <= i <= last else answer for i, answer in enumerate(train.answers)
    )
    assert train_bandwidth(replace(train, answers=held), round_trip) <= rate * 1.001


@given(st.floats(1e7, 1e9), st.integers(0, 7), st.floats(0, 1))
def test_a_node_that_was_busy_in_one_of_two_trains_changes_nothing(
    rate: float, at: int, seconds: float
) -> None:
    """Whatever disturbs only slows: the better one of the last two counts."""
    trains = [Link(rate, window=1e9).train(*shape) for shape in TRAINS]
    busy = replace(
        trains[-1], answers=tuple(t + seconds * (i >= at) for i, t in enumerate(trains[-1].answers))
    )
    expected = link_times([0.001], trains).bandwidth_bytes_per_second
    assert expected == pytest.approx(rate, rel=0.01)
    for last_two in ((trains[-2], busy), (busy, trains[-1])):
        found = link_times([0.001], [*trains[:3], *last_two]).bandwidth_bytes_per_second
        assert found == pytest.approx(expected)


@given(st.floats(1e3, 1e10), st.floats(1e-5, 2.0), st.floats(0, 1e6), st.floats(0.5, 10))
def test_a_probe_keeps_to_its_bytes_and_its_time(
    rate: float, round_trip: float, bucket: float, seconds: float
) -> None:
    """Each train but the first begins only where the one before says that it can end in time, and says too little yet."""
    _, trains = probe(Link(rate, round_trip, bucket), seconds)
    assert sum(train.nbytes for train in trains) <= MOST_BYTES
    for earlier, later in pairwise(trains):
        assert earlier.answers[-1] <= max(0.25, 4 * round_trip)
        assert earlier.answers[-1] * later.nbytes / earlier.nbytes <= seconds
    assert [(len(t.answers), t.message_bytes) for t in trains] == list(TRAINS[: len(trains)])


def test_a_slow_link_gets_few_bytes_and_a_fast_one_all() -> None:
    """1 Mbit/s: 80 KiB; 10 Mbit/s: 1.3 MiB at most; 1 Gbit/s: all."""
    sent = {rate: sum(t.nbytes for t in probe(Link(rate * 125_000))[1]) for rate in (1, 10, 1000)}
    assert sent[1] == 80 << 10
    assert sent[10] <= (336 + 1024) << 10
    assert sent[1000] == MOST_BYTES < 2.5e6


def test_the_time_that_is_left_ends_the_trains() -> None:
    """A link on which the next train would not end in time is told from the last one that did."""
    train = Train(1024, tuple(0.01 * (i + 1) for i in range(16)))
    assert next_train([train], 0.001, left_seconds=0.65) == TRAINS[1]
    assert next_train([train], 0.001, left_seconds=0.63) is None


@given(
    st.lists(st.floats(1e-7, 10), min_size=4, max_size=32),
    st.integers(1, 1 << 20),
    st.lists(st.floats(1e-7, 10), min_size=1, max_size=20),
)
def test_any_times_give_a_bandwidth_that_is_a_number(
    answers: list[float], nbytes: int, trips: list[float]
) -> None:
    """Positive and finite, also where all came in one moment; p95 is not below the median."""
    train = Train(nbytes, tuple(sorted(answers)))
    assume(train.answers[-1] - min(trips) == 0 or abs(train.answers[-1] - min(trips)) > 1e-9)
    found = link_times(trips, [train])
    assert 0 < found.bandwidth_bytes_per_second < 1e18
    assert found.round_trip_p95_seconds >= found.round_trip_median_seconds > 0


def test_a_link_that_is_too_fast_to_tell_gets_a_lower_bound() -> None:
    """A train that took no longer than a round trip is not an infinite bandwidth."""
    assert train_bandwidth(Train(1_000_000, (0.01,) * 8), 0.01) == pytest.approx(8e8)
