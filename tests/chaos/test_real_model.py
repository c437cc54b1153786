"""A sample of the soak on the real model; `make soak` runs 50 changes and 20 kills."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch

from splitinfer.segment_runtime.engine.factory import create_engine
from tests.chaos.soak import MARGINS, NODES, model_and_prompts
from tests.support.churn import Churn
from tests.support.fleet import Fleet, Load, assert_no_leak, random_plan
from tests.support.pipelines import running_entry
from tests.support.twins import TwinMaker, make_twins

SEED = 7


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Hosts over the store of the real model."""
    _, store, _ = model_and_prompts("smollm2", tmp_path)
    fleet = Fleet(store, tmp_path)
    yield fleet
    fleet.stop()


async def test_the_real_model_keeps_its_tokens_through_changes_and_kills(
    fleet: Fleet, tmp_path: Path
) -> None:
    """Four streams, four changes and two kills; greedy, and sampled with a seed."""
    torch.set_num_threads(1)
    engine = create_engine("torch", "cpu", 1)
    model, _, prompts = model_and_prompts("smollm2", tmp_path)
    twins = make_twins(
        TwinMaker(model, engine), prompts, count=4, output=(12, 24), margin=MARGINS["smollm2"], seed=SEED
    )
    assert {twin.request.sampling.temperature for twin in twins} == {0.0, 0.8}
    rng = Random(SEED)
    hosts = fleet.ensure(NODES)
    async with running_entry(model, engine=engine) as entry:
        await entry.serve(random_plan(rng, entry, NODES, context=96), hosts)
        churn = Churn(entry, fleet, NODES, rng, 96)
        async with Load(entry, twins, seed=SEED) as load:
            for event in ("change", "kill", "change", "change", "kill", "change"):
                await (churn.change(load) if event == "change" else churn.kill(load))
            await load.more_tokens(8)
        assert load.wrong == []
        assert load.finished >= 4
        await assert_no_leak(entry, fleet.ensure(NODES))
