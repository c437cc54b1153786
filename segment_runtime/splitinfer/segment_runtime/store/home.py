"""Where models are kept when no folder is named, and whether anything can be kept there.

The operator has the same rule in words of its own (`splitinfer.operator.local.models`), as neither imports the other.
"""

from __future__ import annotations

import os
from pathlib import Path

from splitinfer.segment_runtime.store.errors import BadHome


def default_store(*, writing: bool = False) -> Path:
    """``$SPLITINFER_HOME/models``, by default ``~/.cache/splitinfer/models``.

    Args:
        writing: it is going to be written to.

    Raises:
        BadHome: what is there is no folder, or may not be used so.
    """
    named = os.environ.get("SPLITINFER_HOME")
    home = Path(named) if named else Path.home() / ".cache" / "splitinfer"
    store = home / "models"
    # os.path.exists and not Path.exists, which raises where a folder above may not be entered.
    there = next(path for path in (store, *store.parents, Path()) if os.path.exists(path))  # noqa: PTH110
    if not there.is_dir():
        raise BadHome(f"SPLITINFER_HOME: {home}: {there} is not a folder; set it to one")
    if not os.access(there, os.X_OK | (os.W_OK if writing else os.R_OK)):
        what = "written to" if writing else "read"
        raise BadHome(f"SPLITINFER_HOME: {home}: {there} cannot be {what}; set it to a folder that can")
    return store
