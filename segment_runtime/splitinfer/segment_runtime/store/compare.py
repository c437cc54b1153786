"""Whether the store has what a source holds already: told by reading both, without writing.

What the index can tell apart (sizes, shapes, config, tokenizer) is compared first, so that weights are read only where
all else is equal. Then they are read once, source and stored file side by side, up to the first difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from splitinfer.segment_runtime.store.checkpoint import Checkpoint
from splitinfer.segment_runtime.store.errors import StoreError
from splitinfer.segment_runtime.store.index import FileIndex, ModelIndex, UnitIndex
from splitinfer.segment_runtime.store.layout import UnitPlan
from splitinfer.segment_runtime.store.reader import StoredModel
from splitinfer.segment_runtime.store.writer import unit_content, unit_tensors

MakeIndex = Callable[[Mapping[str, UnitIndex], Mapping[str, FileIndex]], ModelIndex]


def same_content(
    folder: Path,
    checkpoint: Checkpoint,
    units: Mapping[str, UnitPlan],
    sides: Mapping[str, tuple[str, bytes]],
    index: MakeIndex,
    checked: Callable[[int], None],
) -> bool:
    """Whether the folder has the checkpoint's content, every byte of it; False for a damaged one, which is mended so.

    Args:
        folder: of a stored model, or of none.
        checkpoint: the source.
        units: unit -> name inside it -> name in the checkpoint.
        sides: name of a side file -> its file name and content.
        index: the index that the source would be stored with, from the entries of its files.
        checked: called with the bytes of units that are equal so far.

    Raises:
        DamagedSource: the checkpoint cannot be read, or holds a NaN or an infinity.
    """
    try:
        model = StoredModel(folder)
    except StoreError:
        return False
    stored = model.index
    if index(stored.units, stored.files).digest != stored.digest or list(stored.units) != list(units):
        return False
    files = {
        name: FileIndex(file=file, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, (file, data) in sides.items()
    }
    if files != stored.files or any(
        unit_tensors(plan, checkpoint) != stored.units[unit].tensors for unit, plan in units.items()
    ):
        return False
    try:
        for name in files:
            model.read_file(name)
    except StoreError:
        return False
    done = 0
    for unit, plan in units.items():
        if not _same_unit(folder, stored.units[unit], plan, checkpoint):
            return False
        done += stored.units[unit].bytes
        checked(done)
    return True


def whole(model: StoredModel, checked: Callable[[int], None]) -> bool:
    """Whether every file of a stored model is what its index says."""
    done = 0
    try:
        for file in model.index.files:
            model.read_file(file)
        for unit, entry in model.index.units.items():
            model.read_unit(unit)
            done += entry.bytes
            checked(done)
    except StoreError:
        return False
    return True


def _same_unit(folder: Path, entry: UnitIndex, plan: UnitPlan, checkpoint: Checkpoint) -> bool:
    header, pieces = unit_content(plan, entry.tensors, checkpoint)
    hashed = hashlib.sha256(header)
    try:
        with (folder / entry.file).open("rb") as file:
            if file.read(len(header)) != header:
                return False
            for piece in pieces:
                # Not `!=` of memoryviews, which goes byte by byte.
                if not np.array_equal(np.frombuffer(file.read(piece.nbytes), np.uint8), np.asarray(piece)):
                    return False
                hashed.update(piece)
            return not file.read(1) and hashed.hexdigest() == entry.sha256
    except OSError:  # of the stored file; the source's own are DamagedSource
        return False
