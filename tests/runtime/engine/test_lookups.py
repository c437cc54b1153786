"""Children and weights of torch's modules are found as ordinary attributes: less work in a step, and no other bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from torch import nn

from splitinfer.segment_runtime.engine import torch_weights
from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import Array
from tests.support.chains import Chain
from tests.support.models import CASES, Case

Cases = Callable[[str, str], Case]
CHUNKS = [[7, 8, 9, 10, 11, 12], [13], [14]]


def loaded(case: Case, device: str) -> Chain:
    """Two ranges by an engine of their own, so that nothing is shared with another."""
    return Chain.load(create_engine("torch", device, 1), case.stored, [2], "float32")


def played(chain: Chain) -> list[Array]:
    """Logits of a prefill and two steps."""
    return [logits.numpy() for logits in chain.logits(1, CHUNKS)]


def test_no_step_looks_a_child_or_a_weight_up_in_the_second_place(
    case: Cases, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``nn.Module.__getattr__``, which is asked after an ordinary lookup failed, is asked for neither."""
    chain, asked = loaded(case("llama", "float32"), device), set[str]()
    slow = nn.Module.__getattr__

    def noted(self: nn.Module, name: str) -> object:
        if name in self._modules or name in self._parameters:
            asked.add(f"{type(self).__name__}.{name}")
        return slow(self, name)

    monkeypatch.setattr(nn.Module, "__getattr__", noted)
    played(chain)
    assert asked == set()


@pytest.mark.parametrize("name", CASES)
def test_the_short_lookup_changes_no_bit(
    case: Cases, device: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Every architecture, with and without it: the same logits in a prefill and in decode steps."""
    short = played(loaded(case(name, "float32"), device))
    monkeypatch.setattr(torch_weights, "_shorten_lookups", lambda _module: None)
    plain = played(loaded(case(name, "float32"), device))
    assert all(np.array_equal(a, b) for a, b in zip(short, plain, strict=True))
