"""Steps in flight, by an injected time."""

from __future__ import annotations

import asyncio

from splitinfer.segment_runtime.entry.flight import Flight


def test_the_oldest_step_is_overdue_past_the_limit() -> None:
    """At the limit it still has time."""
    flight = Flight()
    flight.sent(1, 10.0)
    flight.sent(2, 11.0)
    assert flight.overdue(15.0, 5.0) is None
    assert flight.overdue(15.5, 5.0) == 1


def test_a_step_that_waits_for_those_before_it_is_not_late() -> None:
    """Each answer gives the next its time anew; a step that is not known is no answer."""
    flight = Flight()
    flight.sent(1, 10.0)
    flight.sent(2, 10.0)
    flight.over(1, 14.0)
    assert flight.overdue(18.0, 5.0) is None
    flight.over(1, 18.0)
    assert flight.overdue(19.5, 5.0) == 2
    flight.over(2, 20.0)
    assert flight.overdue(99.0, 5.0) is None
    flight.sent(3, 100.0)
    assert flight.overdue(104.0, 5.0) is None, "what was heard long ago does not make it late"
    assert flight.overdue(105.5, 5.0) == 3


async def test_a_token_boundary_is_when_every_step_has_landed_or_was_given_up() -> None:
    """One of two back is not enough; a step that comes back twice is no news; giving up ends the wait."""
    flight = Flight()
    flight.sent(1, 0.0)
    flight.sent(2, 0.0)
    waiting = asyncio.create_task(flight.landed())
    flight.over(1, 1.0)
    flight.over(1, 1.0)
    await asyncio.sleep(0)
    assert not waiting.done()
    flight.over(2, 1.0)
    await waiting
    flight.sent(3, 0.0)
    waiting = asyncio.create_task(flight.landed())
    await asyncio.sleep(0)
    assert not waiting.done()
    flight.give_up()
    await waiting
    assert (len(flight), flight.started) == (0, 3)
