"""The control API over HTTP: plans in, status out, and refusals that name the field."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from splitinfer.optimizer.plan import Plan
from splitinfer.segment_runtime.engine.port import Engine
from splitinfer.segment_runtime.entry import changes
from splitinfer.segment_runtime.entry.control import control_app
from splitinfer.segment_runtime.entry.members import HostView
from tests.runtime.pipeline.conftest import CONTEXT
from tests.support.models import Case
from tests.support.pipelines import Entry, cut, plan_for, running_entry
from tests.support.twins import Twin

Note = Callable[[str, int, int], None]


@dataclass
class Control:
    """An entry and its control API."""

    entry: Entry
    client: Any

    async def put(self, path: str, body: object) -> tuple[int, Any]:
        """(status, JSON)."""
        async with self.client.put(path, json=body) as response:
            return response.status, await response.json()

    async def status(self) -> Any:
        """The status, as JSON."""
        async with self.client.get("/control/status") as response:
            assert response.status == 200
            return await response.json()


@pytest.fixture
async def control(case: Case, engine: Engine) -> AsyncIterator[Control]:
    """Over a real pipeline."""
    async with running_entry(case.stored, engine=engine) as entry:
        app = control_app(entry.coordinator, entry.pipeline, entry.forecasts)
        async with TestClient(TestServer(app)) as client:
            yield Control(entry, client)


def body_of(case: Case, hosts: dict[str, str], epoch: int = 1) -> dict[str, Any]:
    """Two segments on two hosts."""
    plan = plan_for(case.stored, cut(case.stored, [2], ["node-0", "node-1"]), epoch=epoch, context=CONTEXT)
    return {"plan": plan.model_dump(mode="json"), "hosts": hosts}


async def test_a_plan_is_taken_and_the_status_tells_what_came_of_it(
    control: Control, case: Case, hosts: dict[str, str], twins: list[Twin]
) -> None:
    """Before, while it serves, and with what was observed."""
    empty = await control.status()
    assert (empty["state"], empty["ready"], empty["plan"], empty["hosts"]) == ("empty", False, None, {})
    code, said = await control.put("/control/plan", body_of(case, hosts))
    assert (code, said) == (202, {"epoch": 1})
    await control.entry.until_serving(1)
    await control.entry.generate(twins[0].request.prompt, 4)
    status = await control.status()
    assert (status["state"], status["ready"], status["target_epoch"]) == ("serving", True, None)
    assert status["epoch"] == status["plan"]["epoch"] == status["newest_epoch"]
    assert status["progress"]["loaded_bytes"] == status["progress"]["total_bytes"] > 0
    assert status["sessions"] == {"running": 0, "waiting": 0}
    assert status["observed"]["tokens_total"] == 4
    assert 0 < status["observed"]["ttft_p50_seconds"] <= status["observed"]["ttft_p95_seconds"]
    one = status["hosts"]["node-1"]
    assert (one["alive"], one["engine"], one["address"]) == (True, "torch", hosts["node-1"])
    assert [(r["epoch"], r["start"], r["stop"]) for r in one["ranges"]] == [(status["epoch"], 2, 5)]
    assert one["weight_bytes"] == sum(r["weight_bytes"] for r in one["ranges"]) > 0


async def test_the_status_tells_how_far_a_load_is(
    control: Control, case: Case, hosts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While hosts load: the bytes of all of them together, as each last said; a host that said nothing counts nothing."""
    prepare, notes, go_on = changes.prepare, asyncio.Queue[Note](), asyncio.Event()

    async def held_up(plan: Plan, clients: changes.Clients, back: str, note: Note) -> changes.Identities:
        notes.put_nowait(note)
        await go_on.wait()
        return await prepare(plan, clients, back, note)

    async def progress() -> tuple[str, int, int]:
        status = await control.status()
        return status["state"], status["progress"]["loaded_bytes"], status["progress"]["total_bytes"]

    monkeypatch.setattr(changes, "prepare", held_up)
    await control.put("/control/plan", body_of(case, hosts))
    note = await asyncio.wait_for(notes.get(), 30)
    assert await progress() == ("preparing", 0, 0)
    note("node-0", 0, 100)
    assert await progress() == ("preparing", 0, 100)
    note("node-1", 5, 50)
    note("node-0", 40, 100)
    assert await progress() == ("preparing", 45, 150)
    note("node-1", 50, 50)
    assert await progress() == ("preparing", 90, 150)
    go_on.set()
    await control.entry.until_serving(1)
    state, loaded, total = await progress()
    assert (state, loaded) == ("serving", total)
    assert total > 150


async def test_a_status_is_of_one_moment(
    control: Control, case: Case, hosts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that begins to serve while the hosts are asked is in every part of the answer, or in none."""
    asked = asyncio.Event()

    async def slow_views() -> dict[str, HostView]:
        asked.set()
        await control.entry.until_serving(1)
        return {}

    monkeypatch.setattr(control.entry.coordinator.members, "views", slow_views)
    answer = asyncio.create_task(control.status())
    await asked.wait()
    code, _ = await control.put("/control/plan", body_of(case, hosts))
    assert code == 202
    status = await answer
    assert (status["state"], status["epoch"]) == ("serving", control.entry.pipeline.epoch)


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        (lambda b: b["plan"]["segments"].pop(), "plan.segments[0].stop", "missing at the end"),
        (lambda b: b["plan"]["segments"][1].update(start=3), "plan.segments[1].start", "are missing before"),
        (lambda b: b["plan"]["segments"][1].update(start=1), "plan.segments[1].start", "overlaps"),
        (lambda b: b["plan"]["segments"][1].update(start=5), "plan.segments[1]", "is empty"),
        (lambda b: b["plan"]["model"].update(digest="0" * 64), "plan.model.digest", "this entry serves llama"),
        (lambda b: b["plan"].update(max_context_tokens=4096, kv_budget_tokens=4096), "plan.max_context_tokens", "128"),
        (lambda b: b["plan"].update(kv_budget_tokens=1), "plan.kv_budget_tokens", "not even one session"),
        (lambda b: b["hosts"].pop("node-1"), "hosts", "no address for node-1"),
        (lambda b: b["hosts"].update({"node-1": "nowhere"}), "hosts.node-1", "match pattern"),
        (lambda b: b.update(extra=1), "extra", "not permitted"),
        (lambda b: b.pop("plan"), "plan", "required"),
    ],
)  # fmt: skip
async def test_a_plan_that_cannot_be_served_is_a_400_that_names_the_field(
    control: Control, case: Case, hosts: dict[str, str], change: Any, field: str, words: str
) -> None:
    """And nothing has happened."""
    body = body_of(case, hosts)
    change(body)
    code, said = await control.put("/control/plan", body)
    assert (code, said["error"]["field"]) == (400, field), said
    assert words in said["error"]["message"]
    assert (await control.status())["state"] == "empty"


async def test_a_plan_that_is_not_newer_is_a_409_that_says_which_would_be(
    control: Control, case: Case, hosts: dict[str, str]
) -> None:
    """Also when it is the same plan again."""
    body = body_of(case, hosts, epoch=7)
    assert (await control.put("/control/plan", body))[0] == 202
    code, said = await control.put("/control/plan", body)
    assert (code, said["error"]["field"]) == (409, "plan.epoch")
    assert "is not newer than" in said["error"]["message"]
    await control.entry.until_serving(7)


async def test_a_context_below_a_live_session_is_refused_and_below_a_new_one_is_kept_out(
    control: Control, case: Case, hosts: dict[str, str], twins: list[Twin]
) -> None:
    """No session is ever cut off by a plan; with a smaller one on its way, larger requests are refused."""
    from splitinfer.segment_runtime.entry.generate import ContextTooLong

    await control.put("/control/plan", body_of(case, hosts))
    await control.entry.until_serving(1)
    twin = twins[0]
    need = len(twin.request.prompt) + twin.request.max_tokens
    stream = control.entry.pipeline.submit(twin.request)
    body = body_of(case, hosts, epoch=control.entry.coordinator.newest_epoch + 1)
    body["plan"].update(max_context_tokens=need - 1)
    code, said = await control.put("/control/plan", body)
    assert (code, said["error"]["field"]) == (400, "plan.max_context_tokens")
    assert f"a live session of {need} tokens" in said["error"]["message"]
    body["plan"].update(max_context_tokens=need)
    assert (await control.put("/control/plan", body))[0] == 202
    longer = twin.request.__class__(twin.request.prompt, twin.request.max_tokens + 1, twin.request.sampling)
    with pytest.raises(ContextTooLong, match=f"the context has {need}"):
        control.entry.pipeline.submit(longer)
    assert tuple([event.token async for event in stream]) == twin.tokens


async def test_new_addresses_of_hosts_are_taken(control: Control, hosts: dict[str, str]) -> None:
    """A restarted host has another port."""
    assert (await control.put("/control/hosts", {"hosts": hosts}))[0] == 202
    assert set((await control.status())["hosts"]) == set(hosts)
    code, said = await control.put("/control/hosts", {"hosts": {"node-0": "x"}})
    assert (code, said["error"]["field"]) == (400, "hosts.node-0")
    async with control.client.put("/control/plan", data=b"\xff{") as response:
        assert response.status == 400


async def test_a_forecast_comes_with_a_plan_and_stands_beside_what_is_observed(
    control: Control, case: Case, hosts: dict[str, str], twins: list[Twin]
) -> None:
    """In the status and as metrics while its plan serves; the traffic that was served is told with its own figures."""
    forecast = {
        "traffic": {"sessions": 1.0, "in_flight": 1, "context_tokens": 20.0, "prompt_tokens": 8},
        "tpot_seconds": 0.25,
        "ttft_seconds": 0.5,
        "tokens_per_second": 4.0,
        "segment_seconds": [0.125, 0.0625],
    }
    wrong = {**forecast, "segment_seconds": [0.125]}
    code, said = await control.put("/control/plan", {**body_of(case, hosts), "forecast": wrong})
    assert (code, said["error"]["field"]) == (400, "forecast.segment_seconds")
    wrong = {**forecast, "tpot_seconds": 0.0}
    code, said = await control.put("/control/plan", {**body_of(case, hosts), "forecast": wrong})
    assert (code, said["error"]["field"]) == (400, "forecast.tpot_seconds")
    code, _ = await control.put("/control/plan", {**body_of(case, hosts), "forecast": forecast})
    assert code == 202
    await control.entry.until_serving(1)
    assert (await control.status())["recent"]["decode"] is None
    prompt = twins[0].request.prompt
    await control.entry.generate(prompt, 4)
    status = await control.status()
    assert status["forecast"] == forecast
    labels = {"what": "segment", "hop": "1"}
    value = control.entry.registry.get_sample_value
    assert value("splitinfer_entry_predicted_seconds", labels) == 0.0625
    recent = status["recent"]
    assert (recent["decode"]["steps"], recent["tokens"]["count"]) == (3, 3)
    assert len(recent["decode"]["hop_p50_seconds"]) == 2
    # The tokens after the first: each looks at the prompt, at those before, and at itself.
    assert recent["decode"]["context_tokens_mean"] == len(prompt) + 2
    assert (recent["prompts"]["count"], recent["prompts"]["tokens_p50"]) == (1, len(prompt))
    for hop in ("0", "1"):
        seconds = "splitinfer_entry_hop_step_seconds_count"
        assert value(seconds, {"hop": hop, "phase": "decode"}) == 3
        assert value(seconds, {"hop": hop, "phase": "prefill"}) == 1
