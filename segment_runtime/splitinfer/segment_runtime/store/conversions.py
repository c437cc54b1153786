"""Conversions of whole models: made ahead, listed, and removed when their model is gone."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from splitinfer.segment_runtime.store.converted import BITS, FOLDER, converted, is_matrix, is_recorded
from splitinfer.segment_runtime.store.errors import ImportFailed, StoreError
from splitinfer.segment_runtime.store.reader import ModelStore, StoredModel


def convert_model(
    model: StoredModel,
    dtype: str,
    progress: Callable[[str, int, int], None] = lambda _unit, _done, _total: None,
) -> tuple[int, int]:
    """Convert every unit now, so that no load has to. Gives how many matrices were repacked exactly, and of how many.

    ``progress`` is called with the unit, the bytes of the source that are done, and all of them.

    Raises:
        ImportFailed: a conversion could not be written; those before it stay.
        StoreError: a damaged unit.
    """
    exact = total = done = 0
    units = model.index.units
    whole = sum(unit.bytes for unit in units.values())
    for unit, entry in units.items():
        progress(unit, done, whole)
        found = converted(model, unit, dtype, is_matrix)
        if found.not_kept is not None:
            raise ImportFailed(
                f"{model.name}: {unit} in {dtype} could not be written ({found.not_kept}); free some space and import "
                "again, what was converted stays"
            )
        for few in found.matrices.values():
            exact, total = exact + few.exact, total + 1
        done += entry.bytes
    progress("", whole, whole)
    return exact, total


def conversions(model: StoredModel) -> tuple[str, ...]:
    """Dtypes that every unit has been converted to by these tools. Reads the records only: a load verifies the rest."""
    folder = model.path.parent / FOLDER / model.digest
    return tuple(
        dtype
        for dtype in BITS
        if all(
            is_recorded(folder / dtype / f"{unit}.json", entry.sha256)
            for unit, entry in model.index.units.items()
        )
    )


def drop_stale(store: ModelStore) -> None:
    """Remove conversions of models that the store no longer has. Nothing, while one of its models cannot be read."""
    folder = store.root / FOLDER
    if not folder.is_dir():
        return
    try:
        digests = {store.open(name).digest for name in store.names()}
    except StoreError:
        return
    for path in folder.iterdir():
        if path.name not in digests:
            shutil.rmtree(path, ignore_errors=True)
