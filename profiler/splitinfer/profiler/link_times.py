"""From the times of messages over a link to its round trip and bandwidth. Pure.

Bandwidth is measured with *trains*: messages one behind the other, each answered when it has arrived whole. The time between
two answers is the time between two arrivals: neither the far clock nor the length of the link is part of it. Trains grow
until one took long enough:

    trains      16, 64, 256 KiB of 16 messages, 1, 1 MiB of 8: 2.3 MiB, which is the whole budget
    enough      it took more than a quarter of a second and more than 4 round trips
    whole       n messages / (t[n] - round trip)                       n messages from 0 on, answered at t[1] to t[n]
    second      median of  n/4 messages / (t[i + n/4] - t[i]),         i in the second half
    bandwidth   min(whole, second) of the last train; of two of the same size, the better

The slower one, because three things lie on the other side. A token bucket lets what comes first through at full speed: the
second half tells. TCP's slow start holds back what comes first, a lost packet holds back everything behind it, which then
arrives in one moment: the whole train tells, if too little. The better train, because what disturbs a node only slows.

A probe so takes about a second however slow the link, and its bytes fit its speed. Before what counts of a link of 10 Mbit/s,
0.8 MiB went through, at 1 Mbit/s 48 KiB: a larger bucket is not seen through. The messages of the last trains are large,
because on a fast link it is the number of messages that takes the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

TRAINS = ((16, 1 << 10), (16, 4 << 10), (16, 16 << 10), (8, 128 << 10), (8, 128 << 10))
"""Messages, and bytes of each."""
MOST_BYTES = sum(messages * nbytes for messages, nbytes in TRAINS)
ENOUGH_SECONDS = 0.25
ENOUGH_ROUND_TRIPS = 4


@dataclass(frozen=True, slots=True)
class LinkTimes:
    """One ordered pair. Seconds and bytes per second."""

    round_trip_median_seconds: float
    round_trip_p95_seconds: float
    bandwidth_bytes_per_second: float


@dataclass(frozen=True, slots=True)
class Train:
    """Messages that followed one another.

    Attributes:
        message_bytes: of each.
        answers: seconds from the start of the first message to each answer; at least 4, never decreasing, above 0.
    """

    message_bytes: int
    answers: tuple[float, ...]

    @property
    def nbytes(self) -> int:
        """Of all messages."""
        return self.message_bytes * len(self.answers)


def next_train(
    trains: Sequence[Train], round_trip_seconds: float, left_seconds: float
) -> tuple[int, int] | None:
    """Messages of the next train and bytes of each; None where those before tell enough or another could not end in time.

    Args:
        trains: those before.
        round_trip_seconds: of a small message.
        left_seconds: until the probe is given up.
    """
    if len(trains) == len(TRAINS):
        return None
    messages, nbytes = TRAINS[len(trains)]
    if trains:
        took = trains[-1].answers[-1]
        if took > max(ENOUGH_SECONDS, ENOUGH_ROUND_TRIPS * round_trip_seconds):
            return None
        if took * messages * nbytes / trains[-1].nbytes > left_seconds:
            return None
    return messages, nbytes


def train_bandwidth(train: Train, round_trip_seconds: float) -> float:
    """Bytes per second of one train, the slower of its second half and the whole.

    A link that is so fast that a train takes no longer than a round trip gets what the train took with the round trip in
    it: a lower bound.
    """
    answers = train.answers
    tail, span = answers[len(answers) // 2 - 1 :], len(answers) // 4
    second = median(later - sooner for sooner, later in zip(tail, tail[span:], strict=False)) / span
    whole = (answers[-1] - round_trip_seconds) / len(answers)
    slower = max(second, whole)
    return train.message_bytes / slower if slower > 0 else train.nbytes / answers[-1]


def link_times(round_trips: Sequence[float], trains: Sequence[Train]) -> LinkTimes:
    """From seconds of small messages, each there and back, and the trains in their order; at least one of each."""
    middle = median(round_trips)
    p95 = quantiles(round_trips, n=20, method="inclusive")[-1] if len(round_trips) > 1 else middle
    last = [train for train in trains if train.nbytes == trains[-1].nbytes]
    return LinkTimes(middle, p95, max(train_bandwidth(train, min(round_trips)) for train in last))
