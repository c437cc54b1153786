"""What one session or one model breaks stays with it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from splitinfer.segment_runtime.channel import FrameLink
from splitinfer.segment_runtime.engine.port import Engine
from splitinfer.segment_runtime.entry.generate import PipelineFailed
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.store.importer import import_model
from splitinfer.segment_runtime.store.reader import ModelStore
from tests.runtime.pipeline.conftest import CONTEXT
from tests.support.fleet import assert_no_leak
from tests.support.forked import fork_host
from tests.support.models import Case, save_random_model
from tests.support.pipelines import cut, plan_for, running_entry
from tests.support.twins import Twin


async def test_a_session_that_fails_every_step_fails_alone(
    case: Case,
    engine: Engine,
    hosts: dict[str, str],
    twins: list[Twin],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its steps are shared with three others, and the host refuses each as a whole.

    The others are replayed once and give their tokens; it is given up after three failures of its own, with the
    words of the host.
    """
    victim = 2  # the second session that is submitted
    send = FrameLink.send

    async def damage(link: FrameLink, frame: pb.Frame) -> None:
        for piece in frame.sessions:
            if piece.session == victim and piece.position > 0:
                piece.position += 1
        await send(link, frame)

    async with running_entry(case.stored, engine=engine) as entry:
        segments = cut(case.stored, [2], ["node-0", "node-1"])
        await entry.serve(plan_for(case.stored, segments, context=CONTEXT), hosts)
        epoch = entry.pipeline.epoch
        monkeypatch.setattr(FrameLink, "send", damage)

        async def one(twin: Twin) -> None:
            tokens = [event.token async for event in entry.pipeline.submit(twin.request)]
            assert tuple(tokens) == twin.tokens

        others = [asyncio.create_task(one(twin)) for twin in (twins[0], twins[1], twins[3], twins[4])]
        results = await asyncio.gather(*others, return_exceptions=True)
        failed = [result for result in results if isinstance(result, BaseException)]
        assert len(failed) == 1
        assert isinstance(failed[0], PipelineFailed)
        assert "hop 0 on node-0: sessions[0].position" in str(failed[0]), "it was not alone in the end"
        assert entry.pipeline.epoch == epoch, "a step that fails is no broken chain"
        await assert_no_leak(entry, hosts)


async def test_weights_that_are_not_finite_are_named_and_nothing_stays_loaded(
    engine: Engine, tmp_path: Path
) -> None:
    """The block and the tensor stand in the refusal of the plan.

    NaN itself never enters the store; what a host can still meet is a value that its dtype has no room for.
    """
    folder, store = tmp_path / "hf", ModelStore(tmp_path / "models")
    save_random_model("llama", folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.3.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(tensors, file, metadata={"format": "pt"})
    import_model(folder, name="broken", store=store, require_tokenizer=False)
    model = store.open("broken")
    host = fork_host(store.root, "alone", tmp_path)
    try:
        async with running_entry(model, engine=engine) as entry:
            plan = plan_for(model, cut(model, [], ["alone"]), dtype="float16")
            entry.coordinator.accept(plan, {"alone": host.address})
            async with asyncio.timeout(60):
                while entry.coordinator.state != "failed":  # noqa: ASYNC110  # state of the code under test
                    await asyncio.sleep(0.01)
            error = entry.coordinator.last_error or ""
            assert "block-003" in error
            assert "up_proj.weight" in error
            assert "not finite in float16" in error
            views = await entry.coordinator.members.views()
            state = views["alone"].state
            assert state is not None
            assert (list(state.ranges), state.memory_used_bytes) == ([], 0)
    finally:
        host.kill()
