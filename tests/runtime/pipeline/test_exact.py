"""With the onnx engine a stream does not only keep its tokens: every logprob keeps its bits, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import Engine
from splitinfer.segment_runtime.entry.generate import SamplingParams
from splitinfer.segment_runtime.entry.sessions import Limits
from tests.support.fleet import Fleet, assert_no_leak
from tests.support.models import Case, random_case
from tests.support.pipelines import Entry, cut, plan_for, running_entry

NODES = ("node-0", "node-1", "node-2")
PLANS: tuple[tuple[list[int], list[str]], ...] = (
    ([2], ["node-0", "node-1"]),
    ([1, 4], ["node-2", "node-0", "node-2"]),  # the U-shape
    ([], ["node-1"]),
    ([1, 2, 3, 4], ["node-0", "node-1", "node-2", "node-0", "node-1"]),
)
SAMPLING = SamplingParams(temperature=0.0, top_logprobs=2)

Told = list[tuple[int, float | None]]


@pytest.fixture(scope="module")
def onnx() -> Engine:
    """The entry's engine."""
    return create_engine("onnx", "cpu", 1)


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A small model that the onnx engine has a graph for."""
    return random_case("llama-even", tmp_path_factory.mktemp("even"))


@pytest.fixture(scope="module")
def onnx_fleet(even: Case, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three hosts with the onnx engine, though one of them says auto."""
    store: Path = even.stored.path.parent
    fleet = Fleet(store, tmp_path_factory.mktemp("onnx-logs"), "--engine", "onnx")
    yield fleet
    fleet.stop()


async def _until(condition: Callable[[], bool]) -> None:
    """Look until it holds; the test's own timeout is the deadline."""
    while not condition():  # noqa: ASYNC110 - what is looked at has no event
        await asyncio.sleep(0.002)


async def tell(entry: Entry, prompt: list[int], count: int) -> Told:
    """Tokens and logprobs of one request."""
    return [(event.token, event.logprob) for event in await entry.generate(prompt, count, SAMPLING)]


@pytest.mark.parametrize("dtype", ["float32", "int4"])
async def test_logprobs_keep_their_bits_through_changes_of_plan_and_lost_hosts(
    even: Case, onnx: Engine, onnx_fleet: Fleet, dtype: str
) -> None:
    """Six streams through four cuts and a killed host, replayed each time, against each stream alone and undisturbed.

    No margin is asked of the prompts: a close call must fall the same way.
    """
    rng = Random(3)
    requests = [(rng.choices(range(3, 199), k=rng.randint(1, 30)), rng.randint(20, 40)) for _ in range(6)]
    hosts = onnx_fleet.ensure(NODES)
    limits = Limits(kv_budget_tokens=1, prefill_chunk=9, mixed_prefill_chunk=4, min_sessions=2)

    async with running_entry(even.stored, engine=onnx, limits=limits) as entry:
        first = plan_for(even.stored, cut(even.stored, [], ["node-0"]), dtype=dtype, context=96)
        await entry.serve(first, hosts)
        expected = [await tell(entry, prompt, count) for prompt, count in requests]

        streams = [asyncio.create_task(tell(entry, prompt, count)) for prompt, count in requests]
        for number, (cuts, nodes) in enumerate(PLANS):
            before = entry.pipeline.observed.tokens_total

            def moved_on(before: int = before) -> bool:
                return entry.pipeline.observed.tokens_total >= before + 12 or all(s.done() for s in streams)

            await _until(moved_on)
            epoch = entry.pipeline.epoch + 1
            segments = cut(even.stored, cuts, nodes)
            await entry.serve(plan_for(even.stored, segments, epoch=epoch, dtype=dtype, context=96), hosts)
            if number == 1:
                onnx_fleet.kill("node-2")
                hosts = await asyncio.to_thread(onnx_fleet.ensure, NODES)
                entry.coordinator.update_hosts(hosts)
        found = await asyncio.gather(*streams)
        assert found == expected
        replayed = entry.registry.get_sample_value("splitinfer_entry_replayed_tokens_total")
        assert replayed is not None
        assert replayed > 100, "nothing was replayed, so nothing was shown"
        await assert_no_leak(entry, hosts)


async def test_a_pipeline_may_mix_engines_and_says_which_node_runs_which(
    even: Case, onnx: Engine, onnx_fleet: Fleet, tmp_path: Path
) -> None:
    """A torch host between onnx hosts: the greedy tokens of the pure pipeline, and the identities in the status."""
    from splitinfer.segment_runtime.entry.control import status

    prompt = Random(5).choices(range(3, 199), k=12)
    torch_fleet = Fleet(even.stored.path.parent, tmp_path)
    try:
        hosts = onnx_fleet.ensure(["node-0", "node-1"]) | torch_fleet.ensure(["torch-0"])
        async with running_entry(even.stored, engine=onnx) as entry:
            pure = plan_for(even.stored, cut(even.stored, [2], ["node-0", "node-1"]))
            await entry.serve(pure, hosts)
            expected = [token for token, _ in await tell(entry, prompt, 16)]
            assert "-float32-onnx-" in entry.pipeline.system_fingerprint
            segments = cut(even.stored, [1, 3], ["node-0", "torch-0", "node-1"])
            await entry.serve(plan_for(even.stored, segments, epoch=entry.pipeline.epoch + 1), hosts)
            assert [token for token, _ in await tell(entry, prompt, 16)] == expected
            assert "-float32-onnx+torch-" in entry.pipeline.system_fingerprint
            told = await status(entry.coordinator, entry.pipeline, entry.forecasts)
    finally:
        torch_fleet.stop()
    engines = {
        node: [r["identity"]["engine"] for r in host["ranges"]] for node, host in told["hosts"].items()
    }
    assert engines == {"node-0": ["onnx"], "node-1": ["onnx"], "torch-0": ["torch"]}
    assert {host["ranges"][0]["identity"]["exact"] for host in told["hosts"].values()} == {True, False}


async def test_a_dtype_that_an_engine_does_not_have_is_refused_by_name(
    even: Case, onnx: Engine, onnx_fleet: Fleet
) -> None:
    """The plan is refused with the host's words, and nothing stays loaded."""
    hosts = onnx_fleet.ensure(NODES)
    async with running_entry(even.stored, engine=onnx) as entry:
        plan = plan_for(even.stored, cut(even.stored, [], ["node-0"]), dtype="bfloat16")
        entry.coordinator.accept(plan, hosts)
        await _until(lambda: entry.coordinator.last_error is not None)
        error = str(entry.coordinator.last_error)
        assert "the onnx engine has no 'bfloat16'; it has float32, int8, int4" in error
