"""Probes and metrics."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from splitinfer.segment_runtime.api.server import EndpointUnavailable, start
from splitinfer.segment_runtime.entry.generate import Saturated
from tests.support.serving import Served

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


async def test_health_and_ready(api: Served) -> None:
    """Live whatever the pipeline does; ready only while a whole pipeline answers."""
    assert (await api.http.get("/ready")).status_code == 200
    api.generator.is_ready = False
    not_ready = await api.http.get("/ready")
    assert not_ready.status_code == 503
    assert not_ready.headers["Retry-After"] == "1"
    assert (await api.http.get("/health")).status_code == 200


async def test_requests_are_counted_by_endpoint_and_code(api: Served) -> None:
    """Each answer once under its status; a broken stream is a 500 although it began as a 200; probes do not count."""
    await api.post("chat/completions", CHAT)
    await api.post("chat/completions", CHAT | {"stream": True})
    await api.post("chat/completions", CHAT | {"n": 0})
    await api.post("completions", {"model": "other", "prompt": "x"})
    await api.http.get("/v1/models")
    await api.http.get("/v1/models/other")
    await api.http.get("/health")
    await api.http.get("/nothing")
    api.generator.break_after = 2
    await api.post("completions", {"model": "tiny", "prompt": "x", "stream": True})
    api.generator.refuse = Saturated("full", 1)
    await api.post("completions", {"model": "tiny", "prompt": "x"})
    expected = {
        ("chat.completions", "200"): 2,
        ("chat.completions", "400"): 1,
        ("completions", "404"): 1,
        ("completions", "429"): 1,
        ("completions", "500"): 1,
        ("models", "200"): 1,
        ("models", "404"): 1,
    }
    found = {
        (sample.labels["endpoint"], sample.labels["code"]): sample.value
        for metric in api.registry.collect()
        for sample in metric.samples
        if sample.name == "splitinfer_entry_requests_total"
    }
    assert expected == found


async def test_times_are_the_pipelines(api: Served) -> None:
    """TTFT from the request to the first token, TPOT from each token to the next, on the injected clock."""
    api.generator.script = lambda _: [5, 6, 7]
    api.generator.pause_after = 0
    answer = asyncio.create_task(api.post("completions", {"model": "tiny", "prompt": "x", "max_tokens": 3}))
    async with asyncio.timeout(5):
        await api.generator.admitted()
        await api.generator.streams[0].waiting.wait()
    api.clock.now += 0.75
    api.generator.gate.set()
    assert (await answer).status_code == 200
    assert api.metric("splitinfer_entry_ttft_seconds_count") == 1
    assert api.metric("splitinfer_entry_ttft_seconds_sum") == pytest.approx(0.75)
    assert api.metric("splitinfer_entry_tpot_seconds_count") == 2
    assert api.metric("splitinfer_entry_tpot_seconds_sum") == 0
    assert api.metric("splitinfer_entry_generated_tokens_total") == 3
    assert api.metric("splitinfer_entry_prompt_tokens_total") == len(api.codec.encode("x"))


async def test_the_time_between_two_tokens_is_told_per_token(api: Served) -> None:
    """A first token at once, the second half a second after it, and the third at once again: 0.5 s over two tokens."""
    api.generator.script = lambda _: [5, 6, 7]
    api.generator.pause_after = 1
    answer = asyncio.create_task(api.post("completions", {"model": "tiny", "prompt": "x", "max_tokens": 3}))
    async with asyncio.timeout(5):
        await api.generator.admitted()
        await api.generator.streams[0].waiting.wait()
    api.clock.now += 0.5
    api.generator.gate.set()
    assert (await answer).status_code == 200
    assert api.metric("splitinfer_entry_ttft_seconds_sum") == 0
    assert api.metric("splitinfer_entry_tpot_seconds_count") == 2
    assert api.metric("splitinfer_entry_tpot_seconds_sum") == pytest.approx(0.5)


async def test_the_exposition_shows_the_registry(api: Served) -> None:
    """Prometheus' text format by default, OpenMetrics where it is accepted."""
    await api.post("chat/completions", CHAT)
    plain = await api.http.get("/metrics")
    assert plain.headers["Content-Type"].startswith("text/plain")
    assert 'splitinfer_entry_requests_total{code="200",endpoint="chat.completions"} 1.0' in plain.text
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    assert (await api.http.get("/metrics", headers=accept)).text.rstrip().endswith("# EOF")


async def test_a_port_in_use_is_an_error_that_names_it(api: Served) -> None:
    """Nothing is left listening, and the message has the mend."""
    with pytest.raises(EndpointUnavailable, match=f"{api.endpoint.port}: .*in use.*choose another"):
        await start(web.Application(), api.endpoint.host, api.endpoint.port)
