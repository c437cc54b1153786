"""Models for the engine's tests: imported once per session, each with transformers' own as reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch

from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import Engine
from tests.support.models import Case, random_case, smollm2_reference, smollm2_stored

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device that this machine has."""
    return str(request.param)


@pytest.fixture
def engine(device: str) -> Engine:
    """A fresh engine of one thread: other work on the machine cannot slow it to a crawl."""
    return create_engine("torch", device, 1)


@pytest.fixture(scope="session")
def onnx() -> Engine:
    """The onnx engine, one for the session: blocks that several tests load are shared."""
    return create_engine("onnx", "cpu", 1)


@pytest.fixture(params=[*DEVICES, "onnx"])
def each_engine(request: pytest.FixtureRequest) -> Engine:
    """Every engine and device that keeps KV, for models with heads of a multiple of 8 values."""
    if request.param == "onnx":
        found: Engine = request.getfixturevalue("onnx")
        return found
    return create_engine("torch", str(request.param), 1)


@pytest.fixture(scope="session")
def case(device: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Case]:
    """Small random models by name and dtype."""
    root = tmp_path_factory.mktemp("random-models")

    @lru_cache
    def load(name: str, dtype: str) -> Case:
        return random_case(name, root, dtype, device)

    return load


@pytest.fixture(scope="session")
def smollm2() -> Case:
    """The real default model."""
    return Case("smollm2", smollm2_stored(), smollm2_reference())
