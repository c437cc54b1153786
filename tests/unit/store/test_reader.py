"""Reading a stored model: what is damaged is named, and nothing damaged is ever returned."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from splitinfer.segment_runtime.store.errors import DamagedModel, ModelNotFound, ReplacedModel, StoreError
from splitinfer.segment_runtime.store.importer import import_model
from splitinfer.segment_runtime.store.reader import ModelStore, StoredModel
from tests.unit.store.folders import CONFIG, random_tensors, write_folder


def flip(path: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def to_folder(path: Path) -> None:
    """Something else under the name."""
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped bit": flip,
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "missing": Path.unlink,
    "extra bytes": lambda path: path.open("ab").write(b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "a folder": to_folder,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["embed", "block-001", "head", "config", "tokenizer"])
def test_damaged_file_is_named(folder: Path, store: ModelStore, damage: str, file: str) -> None:
    """The file and the mend in the error; the other files still read."""
    model = import_model(folder, store=store)
    entry = model.index.units.get(file) or model.index.files[file]
    DAMAGE[damage](model.path / entry.file)
    model = store.open("tiny")
    read = {
        **dict.fromkeys(model.index.units, model.read_unit),
        **dict.fromkeys(model.index.files, model.read_file),
    }
    with pytest.raises(DamagedModel, match=rf"{entry.file}: .*import the model again"):
        read.pop(file)(file)
    for name, reader in read.items():
        reader(name)


@pytest.mark.parametrize("damage", [d for d in DAMAGE if d not in ("missing", "a folder")])
def test_damaged_index_is_named(folder: Path, store: ModelStore, damage: str) -> None:
    """The index guards itself too."""
    model = import_model(folder, store=store)
    if damage == "extra bytes":
        (model.path / "index.json").open("ab").write(b"}")
    else:
        DAMAGE[damage](model.path / "index.json")
    with pytest.raises(DamagedModel, match=r"index\.json: .*import the model again"):
        store.open("tiny")


def test_changed_index_is_found(folder: Path, store: ModelStore) -> None:
    """An index that still parses, with another number in it."""
    model = import_model(folder, store=store)
    content = json.loads((model.path / "index.json").read_text())
    content["eos_token_ids"] = [3]
    (model.path / "index.json").write_text(json.dumps(content))
    with pytest.raises(DamagedModel, match="seal"):
        store.open("tiny")


def test_no_index_is_no_model(folder: Path, store: ModelStore) -> None:
    """A folder without an index is not listed and not opened."""
    model = import_model(folder, store=store)
    (model.path / "index.json").unlink()
    assert store.names() == []
    with pytest.raises(ModelNotFound, match=r"there: none.*models import"):
        store.open("tiny")


def test_replaced_is_not_damaged(folder: Path, store: ModelStore, tmp_path: Path) -> None:
    """A model that was imported again under a reader: the error says so, and the old weights are never mixed in."""
    old = import_model(folder, store=store)
    write_folder(tmp_path / "other", CONFIG, random_tensors(CONFIG, seed=1))
    import_model(tmp_path / "other", name="tiny", store=store)
    with pytest.raises(ReplacedModel, match="imported again with other content"):
        old.read_unit("block-000")
    store.open("tiny").read_unit("block-000")


@pytest.mark.parametrize("name", ["", ".", "..", "../tiny", "a/b", ".tiny", "gone"])
def test_names_that_are_not_there(folder: Path, store: ModelStore, name: str) -> None:
    """Not found, whatever the name tries."""
    import_model(folder, store=store)
    with pytest.raises(ModelNotFound):
        store.open(name)


def test_units_and_files_that_are_not_there(folder: Path, store: ModelStore) -> None:
    """The error says which blocks there are."""
    model = import_model(folder, store=store)
    with pytest.raises(StoreError, match=r"no unit 'block-003'; its blocks are 0 to 2"):
        model.read_unit("block-003")
    with pytest.raises(StoreError, match="has no chat_template"):
        model.read_file("chat_template")


def test_a_copy_is_the_same_model(folder: Path, store: ModelStore, tmp_path: Path) -> None:
    """Copied with any tool, renamed or imported under another name, the digest is the same."""
    model = import_model(folder, store=store)
    shutil.copytree(model.path, tmp_path / "elsewhere" / "copy")
    copy = StoredModel(tmp_path / "elsewhere" / "copy")
    assert copy.digest == model.digest == import_model(folder, name="other", store=store).digest
    np.testing.assert_array_equal(
        copy.read_unit("head")["norm.weight"], model.read_unit("head")["norm.weight"]
    )
    assert store.names() == ["other", "tiny"]
