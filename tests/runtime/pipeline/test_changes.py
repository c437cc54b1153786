"""Changes of plan and lost hosts under running streams: every stream gives the tokens of its undisturbed twin."""

from __future__ import annotations

from random import Random

import pytest

from splitinfer.segment_runtime.engine.port import Engine
from tests.runtime.pipeline.conftest import CONTEXT, NODES
from tests.support.churn import Churn
from tests.support.fleet import Fleet, Load, assert_no_leak, random_plan
from tests.support.models import Case
from tests.support.pipelines import running_entry
from tests.support.twins import Twin


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_plans_change_at_random_moments(
    case: Case, engine: Engine, fleet: Fleet, hosts: dict[str, str], twins: list[Twin], seed: int
) -> None:
    """Five changes each: other cuts, other hosts, U-shapes, sometimes the next before the last one served."""
    rng = Random(seed)
    async with running_entry(case.stored, engine=engine) as entry:
        await entry.serve(random_plan(rng, entry, NODES, context=CONTEXT), hosts)
        churn = Churn(entry, fleet, NODES, rng, CONTEXT)
        async with Load(entry, twins, seed=seed) as load:
            for _ in range(5):
                await churn.change(load)
            await load.more_tokens(20)
        assert load.wrong == []
        assert load.finished >= 4
        await assert_no_leak(entry, hosts)


@pytest.mark.parametrize("seed", [1, 2])
async def test_hosts_are_killed_at_random_moments(
    case: Case, engine: Engine, fleet: Fleet, hosts: dict[str, str], twins: list[Twin], seed: int
) -> None:
    """Three kills each, also while a plan is prepared or committed; the host comes back empty at another port."""
    rng = Random(seed)
    async with running_entry(case.stored, engine=engine) as entry:
        await entry.serve(random_plan(rng, entry, NODES, context=CONTEXT), hosts)
        churn = Churn(entry, fleet, NODES, rng, CONTEXT)
        async with Load(entry, twins, seed=seed) as load:
            for _ in range(3):
                await churn.kill(load)
            await load.more_tokens(20)
        assert load.wrong == []
        assert load.finished >= 4
        await assert_no_leak(entry, fleet.ensure(NODES))
