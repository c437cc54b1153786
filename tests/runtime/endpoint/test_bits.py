"""The partition-invariance gate through real hosts and the wire, on the real model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import Array, Engine, Identity, LoadedHead, LoadedRange
from splitinfer.segment_runtime.store.reader import StoredModel
from tests.support.chains import reference_logits
from tests.support.models import smollm2_reference, smollm2_stored
from tests.support.pipelines import cut, plan_for, running_entry, start_host

PROMPT = tuple(range(300, 324))
NEW_TOKENS = 12
PLANS: tuple[tuple[tuple[int, ...], tuple[str, ...]], ...] = (
    ((), ("node-0",)),
    ((17,), ("node-0", "node-1")),
    ((1, 29), ("node-0", "node-1", "node-0")),
    ((8, 15), ("node-2", "node-0", "node-1")),
    ((3, 11, 22), ("node-3", "node-1", "node-0", "node-2")),
    ((2, 9, 14, 20, 27), ("node-0", "node-1", "node-2", "node-3", "node-1", "node-0")),
)


@dataclass
class RecordingHead:
    """A head that keeps every logit it gives."""

    head: LoadedHead
    seen: list[torch.Tensor] = field(default_factory=list)

    @property
    def identity(self) -> Identity:
        """Of the head."""
        return self.head.identity

    @property
    def weight_bytes(self) -> int:
        """Of the head."""
        return self.head.weight_bytes

    def logits(self, hidden: Array) -> NDArray[np.float32]:
        """Pass on and keep."""
        logits = self.head.logits(hidden)
        self.seen.extend(torch.from_numpy(row.copy()) for row in logits)
        return logits


class RecordingEngine:
    """The torch engine with a head that records."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.device, self.version, self.threads = (
            engine.name, engine.device, engine.version, engine.threads,
        )  # fmt: skip
        self.identity = engine.identity
        self.heads: list[RecordingHead] = []

    @property
    def resident_weight_bytes(self) -> int:
        """Of the engine."""
        return self.engine.resident_weight_bytes

    @property
    def free_device_bytes(self) -> int | None:
        """Of the engine."""
        return self.engine.free_device_bytes

    def load_range(
        self, model: StoredModel, start: int, stop: int, dtype: str, progress: Callable[[int], None] = print
    ) -> LoadedRange:
        """Pass on."""
        return self.engine.load_range(model, start, stop, dtype, progress)

    def load_head(self, model: StoredModel, dtype: str) -> LoadedHead:
        """A head that records."""
        self.heads.append(RecordingHead(self.engine.load_head(model, dtype)))
        return self.heads[-1]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Four host processes of one thread."""
    logs: Path = tmp_path_factory.mktemp("bits")
    started = [start_host(smollm2_stored().path.parent, f"node-{i}", logs) for i in range(4)]
    yield {host.node: host.address for host in started}
    for host in started:
        host.stop()


async def _hold_to_the_unsplit_model(
    hosts: dict[str, str],
    plans: Sequence[tuple[tuple[int, ...], tuple[str, ...]]],
    new_tokens: int,
    *,
    first_epoch: int = 1,
) -> None:
    """Serve one plan after the other; every logit sampled from, prompt and decode steps, is the unsplit model's."""
    model = smollm2_stored()
    engine = RecordingEngine(create_engine("torch", "cpu", 1))
    expected: Sequence[torch.Tensor] | None = None
    async with running_entry(model, engine=engine) as entry:
        for epoch, (cuts, nodes) in enumerate(plans, first_epoch):
            await entry.serve(plan_for(model, cut(model, cuts, nodes), epoch=epoch), hosts)
            (head,) = engine.heads
            head.seen.clear()
            tokens = [event.token for event in await entry.generate(PROMPT, new_tokens)]
            if expected is None:
                torch.set_num_threads(1)
                reference: Any = smollm2_reference()
                expected = reference_logits(reference, [PROMPT, *([token] for token in tokens[:-1])])
            assert len(expected) == len(head.seen) == new_tokens
            for step, (want, got) in enumerate(zip(expected, head.seen, strict=True)):
                assert torch.equal(want, got), f"cuts {cuts} on {nodes}: step {step} differs"


async def test_logits_through_real_hosts_are_those_of_the_unsplit_model(hosts: dict[str, str]) -> None:
    """Six plans over 1 to 4 host processes, two of them with several ranges on one host (the U-shape).

    Every logit that the entry sampled from, prompt and decode steps, is that of transformers' unsplit model bit for
    bit: same prompt in one chunk, then the same tokens one by one.
    """
    await _hold_to_the_unsplit_model(hosts, PLANS, NEW_TOKENS)


async def test_every_single_cut_through_two_hosts_keeps_the_bits(hosts: dict[str, str]) -> None:
    """All 29 cuts in two, each served by two host processes under an epoch of its own, moved one block at a time."""
    blocks = smollm2_stored().index.blocks
    plans = [((at,), ("node-0", "node-1")) for at in range(1, blocks)]
    assert len(plans) == 29
    await _hold_to_the_unsplit_model(
        hosts, plans, 4, first_epoch=100
    )  # hosts have seen those of the other test
