"""One small model and one real host process, started from its command line, for all tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch

from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import Engine
from tests.support.models import Case, random_case
from tests.support.peer import Peer, peer_of
from tests.support.pipelines import HostProcess, start_host


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The engine that says what is right, on one thread as the host's."""
    torch.set_num_threads(1)
    return create_engine("torch", "cpu", 1)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the small model is; its store is in ``models``."""
    return tmp_path_factory.mktemp("tiny-host")


@pytest.fixture(scope="session")
def case(root: Path) -> Case:
    """A Llama of five blocks with random weights."""
    return random_case("llama", root)


@pytest.fixture(scope="session")
def host(case: Case, root: Path) -> Iterator[HostProcess]:
    """A host that lives through all tests: none may harm it."""
    host = start_host(root / "models", "alpha", root)
    yield host
    assert host.process.poll() is None, f"the host ended: {host.log.read_text()}"
    host.stop()
    assert "Traceback" not in host.log.read_text(), host.log.read_text()


@pytest.fixture
async def peer(case: Case, host: HostProcess) -> AsyncIterator[Peer]:
    """The entry's side of that host; whatever a test left on it is released."""
    async with peer_of(case.stored, "alpha", host.address) as peer:
        yield peer
