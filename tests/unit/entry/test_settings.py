"""The entry's command line: every limit that is given reaches the scheduler, and a bad one is refused by name."""

from __future__ import annotations

from dataclasses import fields

import pytest

from splitinfer.segment_runtime.entry.__main__ import parser, settings_of
from splitinfer.segment_runtime.entry.generate import Saturated
from splitinfer.segment_runtime.entry.sessions import Limits
from splitinfer.segment_runtime.entry.settings import Settings
from tests.support.hand_chain import CONTEXT, hand_chain


def settings(*options: str) -> Settings:
    """What a command line says."""
    return settings_of(parser().parse_args(["--model", "m", *options]))


@pytest.mark.parametrize(
    ("option", "field"),
    [
        ("--max-sessions", "max_sessions"),
        ("--min-sessions", "min_sessions"),
        ("--prefill-chunk", "prefill_chunk"),
        ("--mixed-prefill-chunk", "mixed_prefill_chunk"),
        ("--max-waiting", "max_waiting"),
    ],
)
def test_a_limit_that_is_given_is_the_scheduler_s_and_no_other_changes(option: str, field: str) -> None:
    """Each option sets its own field, with its own number."""
    default, given = settings().scheduler, settings(option, "17").scheduler
    changed = {f.name for f in fields(Limits) if getattr(default, f.name) != getattr(given, f.name)}
    assert (changed, getattr(given, field)) == ({field}, 17)


def test_what_is_no_limit_is_set_too() -> None:
    """Micro-batches in flight and the patience with a step."""
    assert (settings().micro_batches, settings().step_seconds) == (0, 60.0)
    given = settings("--micro-batches", "3", "--step-seconds", "2.5")
    assert (given.micro_batches, given.step_seconds) == (3, 2.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-sessions", "0"), "--max-sessions: must be at least 1"),
        (("--min-sessions", "0"), "--min-sessions: must be at least 1"),
        (("--prefill-chunk", "-1"), "--prefill-chunk: must be at least 1"),
        (("--mixed-prefill-chunk", "0"), "--mixed-prefill-chunk: must be at least 1"),
        (("--max-waiting", "-1"), "--max-waiting and --micro-batches: must not be negative"),
        (("--micro-batches", "-1"), "--max-waiting and --micro-batches: must not be negative"),
        (("--prefill-chunk", "8192"), "--max-sessions and --prefill-chunk: together 8256 rows in a step"),
        (("--mixed-prefill-chunk", "8192"), "--max-sessions and --prefill-chunk: together 8256 rows"),
    ],
)
def test_a_bad_limit_is_refused_by_name(options: tuple[str, ...], message: str) -> None:
    """The message names the option and says what it must be."""
    with pytest.raises(ValueError, match=f"^{message}"):
        settings(*options)


@pytest.mark.parametrize("waiting", [0, 2])
async def test_as_many_requests_wait_as_max_waiting_says(waiting: int) -> None:
    """The plan has room for four: they run, so many more wait, and the next is told how many do either."""
    async with hand_chain(settings=settings("--max-waiting", str(waiting))) as chain:
        chain.switch(1)
        for _ in range(4 + waiting):
            chain.submit(CONTEXT - 3)
        assert chain.pipeline.sessions() == (4, waiting)
        with pytest.raises(Saturated, match=f"4 sessions run and {waiting} wait"):
            chain.submit(CONTEXT - 3)


async def test_as_many_micro_batches_are_in_flight_as_is_said() -> None:
    """Three sessions, one to a step: all three steps go out over two segments, where two would by default."""
    options = ("--micro-batches", "3", "--max-sessions", "1", "--min-sessions", "1")
    async with hand_chain(settings=settings(*options)) as chain:
        link = chain.switch(1)
        for _ in range(3):
            chain.submit(4)
        assert [(await link.frame()).step for _ in range(3)] == [1, 2, 3]
