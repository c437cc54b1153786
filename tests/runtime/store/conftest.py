"""A store to import to."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitinfer.segment_runtime.store.reader import ModelStore


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """A store that does not exist yet."""
    return ModelStore(tmp_path / "store")
