import torch
from tests.support.models import random_case
from tests.support.pipelines import *


async def test_smoke(tmp_path):
    torch.set_num_threads(1)
    case = random_case("llama", tmp_path)
    hosts = [start_host(tmp_path / "models", f"node-{i}", tmp_path) for i in range(2)]
    addresses = {h.node: h.address for h in hosts}
    try:
        async with running_entry(case.stored) as entry:
            await entry.serve(plan_for(case.stored, cut(case.stored, [2], ["node-0", "node-1"])), addresses)
            events = await entry.generate([5, 6, 7, 8, 9], 12)
            ref = case.reference.generate(
                torch.tensor([[5, 6, 7, 8, 9]]), max_new_tokens=12, do_sample=False, eos_token_id=None
            )
            assert [e.token for e in events] == ref[0, 5:].tolist()
            await entry.serve(
                plan_for(case.stored, cut(case.stored, [1, 3], ["node-1", "node-0", "node-1"]), epoch=2),
                addresses,
            )
            events = await entry.generate([5, 6, 7, 8, 9], 12)
            assert [e.token for e in events] == ref[0, 5:].tolist()
    finally:
        for h in hosts:
            h.stop()
            print(h.log.read_text())
