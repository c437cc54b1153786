"""One small model and four host processes for all tests of this folder: a host takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import Engine
from tests.support.fleet import Fleet
from tests.support.models import Case, random_case
from tests.support.twins import Twin, TwinMaker, make_twins, random_prompts

NODES = ("node-0", "node-1", "node-2", "node-3")
CONTEXT = 96
MARGIN = 2e-3
"""Over a hundred times what rounding moves the logits of this model by (tests/runtime/engine/test_replay.py)."""


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The engine of the entry and of the twins, on one thread."""
    torch.set_num_threads(1)
    return create_engine("torch", "cpu", 1)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the small model is; its store is in ``models``."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def case(root: Path) -> Case:
    """A Llama of five blocks with random weights."""
    return random_case("llama", root)


@pytest.fixture(scope="session")
def fleet(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Host processes, started when a test first asks for them by name."""
    fleet = Fleet(root / "models", tmp_path_factory.mktemp("logs"))
    yield fleet
    fleet.stop()


@pytest.fixture
def hosts(fleet: Fleet) -> dict[str, str]:
    """Addresses of four hosts that run; one that an earlier test killed is started again."""
    return fleet.ensure(NODES)


@pytest.fixture(scope="session")
def twins(case: Case, engine: Engine) -> list[Twin]:
    """Requests with the tokens that they must give."""
    prompts = random_prompts(case.stored.index.vocab_size, 40, (2, 40), seed=11)
    return make_twins(
        TwinMaker(case.stored, engine), prompts, count=12, output=(20, 48), margin=MARGIN, seed=12
    )


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where hosts of a test's own log."""
    return tmp_path_factory.mktemp("own-logs")
