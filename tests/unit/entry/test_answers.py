"""From what was drawn to what requests get."""

from __future__ import annotations

import asyncio
from typing import cast

from prometheus_client import CollectorRegistry

from splitinfer.segment_runtime.entry.answers import Answers
from splitinfer.segment_runtime.entry.generate import GenerationRequest
from splitinfer.segment_runtime.entry.head import HeadThread
from splitinfer.segment_runtime.entry.metrics import PipelineMetrics
from splitinfer.segment_runtime.entry.observed import Observed
from splitinfer.segment_runtime.entry.requests import Requests
from splitinfer.segment_runtime.entry.sampler import Sampled
from splitinfer.segment_runtime.entry.scheduler import Scheduler
from splitinfer.segment_runtime.entry.sessions import Limits


async def test_a_draw_for_a_session_that_began_anew_meanwhile_gives_no_token() -> None:
    """Its rows were those of a step that does not count any more; the step that counts will give the same token once."""
    scheduler = Scheduler(Limits(kv_budget_tokens=100))
    requests = Requests(scheduler, lambda: 0.0)
    observed = Observed(PipelineMetrics(CollectorRegistry()))
    answers = Answers(scheduler, requests, observed, cast("HeadThread", None), lambda: 0.0)
    stream = requests.submit(GenerationRequest((1, 2), 3), 50, lambda _: None)
    (live,) = requests
    first = scheduler.next_batch()
    assert first is not None
    drawn = [(live, Sampled(token=7, logprob=None, top=()))]

    scheduler.rewind(first.step)
    assert answers.take(drawn, ()) == []
    assert live.session.tokens == [1, 2]

    again = scheduler.next_batch()
    assert again is not None
    answers.deliver(answers.take(drawn, scheduler.complete(again.step)))
    assert live.session.tokens == [1, 2, 7]
    assert (await asyncio.wait_for(anext(stream), 5)).token == 7
