"""The small parts of the local substrate: the model's facts, the machine's, run files, the control client."""

from __future__ import annotations

import json
import os
from pathlib import Path

import httpx
import pytest

from splitinfer.operator.errors import CommandFailed, UserError
from splitinfer.operator.local import runfile
from splitinfer.operator.local.control import ControlClient, ControlError, PlanRefused
from splitinfer.operator.local.models import find_model
from splitinfer.operator.local.runfile import RunFile
from splitinfer.operator.local.show import format_bytes
from splitinfer.optimizer.plan import ModelRef, Plan, Segment
from splitinfer.segment_runtime.store.reader import ModelStore
from tests.support.stored import write_index


def test_facts_of_a_model_are_those_of_the_store(tmp_path: Path) -> None:
    """Digest, blocks and bytes are what the runtime's own reader says; the digest has no room for drift."""
    write_index(tmp_path, "tiny", blocks=5)
    index = ModelStore(tmp_path).open("tiny").index
    facts = find_model("store://tiny", tmp_path, "source")

    assert facts.digest == index.digest
    assert (facts.name, facts.blocks, facts.max_context_tokens) == ("tiny", 5, index.max_context_tokens)
    assert facts.weight_bytes(1, 3, "float16") == sum(index.block_weight_bytes(b, 2) for b in (1, 2))
    assert facts.kv_bytes(2, 10, "float32") == 2 * 10 * index.kv_bytes_per_token(4)


def test_the_name_a_model_goes_by_is_not_part_of_its_digest(tmp_path: Path) -> None:
    """The same weights under two names are the same model."""
    write_index(tmp_path, "one", blocks=2)
    write_index(tmp_path, "two", blocks=2)
    one, two = (find_model(f"store://{name}", tmp_path, "source") for name in ("one", "two"))
    assert one.digest == two.digest


def run_file(port: int, pid: int | None = None, started: int | None = None, serving: bool = True) -> RunFile:
    """A run file of this very process, or of another."""
    pid = os.getpid() if pid is None else pid
    return RunFile(
        endpoint=f"http://127.0.0.1:{port}",
        control="http://127.0.0.1:1",
        model="tiny",
        serving=serving,
        pid=pid,
        started=(runfile.started_at(pid) or 0) if started is None else started,
        processes={},
    )


def test_the_only_pipeline_needs_no_name(tmp_path: Path) -> None:
    """One: it. Two: the one that is named, or an error that lists them."""
    runfile.write(run_file(8000), "8000", tmp_path)
    assert runfile.the_one(None, tmp_path).endpoint == "http://127.0.0.1:8000"

    runfile.write(run_file(8001), "8001", tmp_path)
    assert runfile.the_one("http://127.0.0.1:8001/v1", tmp_path).endpoint == "http://127.0.0.1:8001"
    with pytest.raises(CommandFailed, match=r"^several pipelines are running .*; name one with --url$"):
        runfile.the_one(None, tmp_path)


def test_no_pipeline_is_no_fault_of_a_flag(tmp_path: Path) -> None:
    """Nobody gave ``--url``, so the message does not begin with it; it says what to do."""
    with pytest.raises(
        CommandFailed, match=r"^no local pipeline is running; start one with `splitinfer up`$"
    ):
        runfile.the_one(None, tmp_path)


def test_a_pipeline_that_starts_is_known_but_has_no_endpoint_to_talk_to(tmp_path: Path) -> None:
    """``status`` finds it; ``chat`` is told to wait."""
    runfile.write(run_file(8000, serving=False), "8000", tmp_path)
    assert not runfile.the_one(None, tmp_path).serving
    with pytest.raises(CommandFailed, match=r"http://127\.0\.0\.1:8000 is starting .*`splitinfer status`"):
        runfile.endpoint_of_the_one(tmp_path)


@pytest.mark.parametrize(("serving", "does"), [(True, "is served"), (False, "is being started")])
def test_a_port_of_a_pipeline_that_starts_is_taken(tmp_path: Path, serving: bool, does: str) -> None:
    """Nothing listens there yet, and a second `up` would take the first one's run file; a stale file claims nothing."""
    parent = os.getppid()
    runfile.write(run_file(8000, pid=parent, serving=serving), "8000", tmp_path)
    with pytest.raises(UserError, match=f"^--port: 8000: a pipeline {does} there by process {parent}"):
        runfile.claim(8000, tmp_path)
    assert runfile.claim(8001, tmp_path) == "8001"
    runfile.write(run_file(8000, pid=parent, started=1), "8000", tmp_path)
    assert runfile.claim(8000, tmp_path) == "8000"


def test_a_pid_that_was_given_to_another_process_is_not_the_pipeline(tmp_path: Path) -> None:
    """Same process id, another start: stale, and removed; so is a file that cannot be read."""
    started = runfile.started_at(os.getpid())
    assert started is not None
    runfile.write(run_file(8000, started=started - 1), "8000", tmp_path)
    (tmp_path / "8001.json").write_text("{", "utf-8")

    assert runfile.running(tmp_path) == []
    assert list(tmp_path.glob("*.json")) == []


def test_bytes_for_people() -> None:
    """Binary units, one digit."""
    assert [format_bytes(n) for n in (0, 1023, 1536, 5 << 20, 3 << 30, 2 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 MiB",
        "3.0 GiB",
        "2.0 TiB",
    ]


PLAN = Plan(
    epoch=3,
    model=ModelRef(name="tiny", digest="0" * 64),
    blocks=2,
    segments=(Segment(node="a", start=0, stop=2),),
    max_context_tokens=8,
    kv_budget_tokens=16,
)


def control(answer: httpx.Response | Exception, seen: list[httpx.Request] | None = None) -> ControlClient:
    """A client whose entry always answers so."""

    def respond(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ControlClient("127.0.0.1:1", httpx.MockTransport(respond))


async def test_a_plan_goes_out_whole_and_a_stale_epoch_is_no_error() -> None:
    """202 is True, 409 is False: the caller asks for the epoch and sends the next."""
    seen: list[httpx.Request] = []
    assert await control(httpx.Response(202), seen).send_plan(PLAN, {"a": "h:1"})
    assert not await control(httpx.Response(409, json={})).send_plan(PLAN, {"a": "h:1"})
    body = json.loads(seen[0].content)
    assert Plan.model_validate(body["plan"]) == PLAN
    assert body["hosts"] == {"a": "h:1"}


async def test_a_wrong_plan_is_told_from_an_entry_that_cannot_be_asked() -> None:
    """400 will not come good and carries the field; the rest may."""
    wrong = httpx.Response(400, json={"error": {"field": "plan.blocks", "message": "30, not 2"}})
    with pytest.raises(PlanRefused, match=r"plan\.blocks: 30, not 2"):
        await control(wrong).send_plan(PLAN, {})
    for answer in (httpx.ConnectError("refused"), httpx.Response(500, text="oops")):
        with pytest.raises(ControlError) as failed:
            await control(answer).send_plan(PLAN, {})
        assert not isinstance(failed.value, PlanRefused)


async def test_status_is_read_and_what_is_new_in_it_is_let_be() -> None:
    """A newer entry may say more; one that says nonsense is an error."""
    body = {"state": "serving", "epoch": 3, "plan": PLAN.model_dump(mode="json"), "novelty": 1}
    status = await control(httpx.Response(200, json=body)).status()
    assert (status.state, status.epoch, status.plan) == ("serving", 3, PLAN)
    for text in ("{", '{"state": "dancing"}'):
        with pytest.raises(ControlError):
            await control(httpx.Response(200, text=text)).status()
