"""The shortest way through everything: hosts, a plan, a request, another plan, the same tokens."""

from __future__ import annotations

import torch

from splitinfer.segment_runtime.engine.port import Engine
from tests.support.models import Case
from tests.support.pipelines import cut, plan_for, running_entry

PROMPT = [5, 6, 7, 8, 9]


async def test_a_split_model_gives_the_tokens_of_transformers_generate(
    case: Case, engine: Engine, hosts: dict[str, str]
) -> None:
    """Two hosts, then a U-shape over the same two: both times what transformers generates unsplit."""
    ids = torch.tensor([PROMPT])
    whole = case.reference.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)  # type: ignore[operator]
    expected = whole[0, len(PROMPT) :].tolist()
    async with running_entry(case.stored, engine=engine) as entry:
        await entry.serve(plan_for(case.stored, cut(case.stored, [2], ["node-0", "node-1"])), hosts)
        assert [event.token for event in await entry.generate(PROMPT, 12)] == expected
        shape = cut(case.stored, [1, 3], ["node-1", "node-0", "node-1"])
        await entry.serve(plan_for(case.stored, shape, epoch=entry.coordinator.newest_epoch + 1), hosts)
        assert [event.token for event in await entry.generate(PROMPT, 12)] == expected
