"""A folder to import and a store to import it to."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitinfer.segment_runtime.store.reader import ModelStore
from tests.unit.store.folders import write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A three-block Llama of 20 tokens."""
    path = tmp_path / "tiny"
    write_folder(path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """A store that does not exist yet."""
    return ModelStore(tmp_path / "store")
