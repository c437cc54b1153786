"""A home with a tiny stored model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.homes import Home
from tests.support.stored import write_index


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home whose store has the model ``tiny`` of 6 blocks."""
    found = Home(tmp_path / "home")
    write_index(found.path / "models", "tiny", blocks=6)
    try:
        yield found
    finally:
        found.clean_up()
