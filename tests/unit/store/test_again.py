"""Importing what is stored already: found out by comparing, without writing, and never by a name alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from inotify_simple import INotify, flags

from splitinfer.segment_runtime.store.errors import DiskFull
from splitinfer.segment_runtime.store.importer import ImportProgress, import_model
from splitinfer.segment_runtime.store.reader import ModelStore, StoredModel
from tests.unit.store.folders import CONFIG, random_tensors, write_folder


def stages(folder: Path, store: ModelStore) -> list[str]:
    """Import it as ``tiny``; the stages that it told, each once."""
    told: list[ImportProgress] = []
    import_model(folder, name="tiny", store=store, progress=told.append)
    return list(dict.fromkeys(now.stage for now in told))


def read_whole(model: StoredModel) -> None:
    """Every file, verified."""
    for unit in model.index.units:
        model.read_unit(unit)
    for file in model.index.files:
        model.read_file(file)


@pytest.fixture
def stored(folder: Path, store: ModelStore) -> StoredModel:
    """The folder as the model ``tiny``."""
    return import_model(folder, name="tiny", store=store)


def test_again_is_a_no_op_that_says_so(folder: Path, store: ModelStore, stored: StoredModel) -> None:
    """Equal content: stage ``unchanged``, and not even a time stamp changes."""
    stamp = (stored.path / "index.json").stat()
    assert stages(folder, store) == ["check", "unchanged"]
    assert (stored.path / "index.json").stat() == stamp


def test_again_writes_nothing(folder: Path, store: ModelStore, stored: StoredModel) -> None:
    """The kernel saw no file of the store written, and none made but the lock of the name."""
    with INotify() as watch:
        for path in (store.root, stored.path):
            watch.add_watch(path, flags.CREATE | flags.MODIFY | flags.MOVED_TO)
        assert stages(folder, store)[-1] == "unchanged"
        touched = {event.name for event in watch.read(timeout=0)}
    assert touched <= {".tiny.lock"}


def test_again_needs_no_room(
    folder: Path, store: ModelStore, stored: StoredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk that holds the model: it is found complete; one that it does not hold is refused as before."""
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=0))
    assert stages(folder, store)[-1] == "unchanged"
    (stored.path / "head.safetensors").unlink()
    with pytest.raises(DiskFull, match="0 are free"):
        stages(folder, store)


FILES = ["embed.safetensors", "block-001.safetensors", "head.safetensors", "config.json", "tokenizer.json"]


@pytest.mark.parametrize("file", [*FILES, "index.json"])
@pytest.mark.parametrize("damage", ["emptied", "gone", "longer", "one bit"])
def test_again_mends_a_damaged_model(
    folder: Path, store: ModelStore, stored: StoredModel, file: str, damage: str
) -> None:
    """The mend that the errors name works: any file, emptied, removed, longer, or with one bit turned at its end."""
    path = stored.path / file
    data = path.read_bytes()
    match damage:
        case "emptied":
            path.write_bytes(b"")
        case "gone":
            path.unlink()
        case "longer":
            path.write_bytes(data + b"\0")
        case _:
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert stages(folder, store)[-1] == "stored"
    read_whole(store.open("tiny"))
    assert store.open("tiny").digest == stored.digest


@pytest.mark.parametrize("what", ["last weight", "config", "tokenizer", "template", "end token"])
def test_a_name_is_not_trusted(
    folder: Path, tmp_path: Path, store: ModelStore, stored: StoredModel, what: str
) -> None:
    """A source at the same path under the same name, with one thing changed: it is stored anew."""
    shutil.rmtree(folder)
    tensors = random_tensors(CONFIG)
    if what == "last weight":
        tensors["lm_head.weight"][-1, -1] += 1
    write_folder(folder, CONFIG | ({"rms_norm_eps": 1e-5} if what == "config" else {}), tensors)
    if what == "tokenizer":
        (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + b" ")
    elif what == "template":
        (folder / "chat_template.jinja").write_text("T")
    elif what == "end token":
        (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert stages(folder, store)[-1] == "stored"
    assert store.open("tiny").digest != stored.digest
    read_whole(store.open("tiny"))


def test_other_content_is_told_early(folder: Path, store: ModelStore, stored: StoredModel) -> None:
    """What the index tells apart is not read: other shapes go to ``write`` without a ``check``."""
    shutil.rmtree(folder)
    config = CONFIG | {"num_hidden_layers": 2}
    write_folder(folder, config, random_tensors(config))
    assert stages(folder, store) == ["write", "stored"]


def test_an_index_of_another_file_is_not_believed(
    folder: Path, store: ModelStore, stored: StoredModel
) -> None:
    """An index that is sealed but has the hash of another file: its readers would refuse the file, so it is mended."""
    index = stored.index
    wrong = index.units["head"].model_copy(update={"sha256": "0" * 64})
    index = index.model_copy(update={"units": {**index.units, "head": wrong}}).sealed()
    (stored.path / "index.json").write_text(index.model_dump_json())
    assert stages(folder, store)[-1] == "stored"
    read_whole(store.open("tiny"))


def test_a_store_folder_is_left_without_a_lock(folder: Path, store: ModelStore, stored: StoredModel) -> None:
    """After the comparison too, nothing but the model is there."""
    assert stages(folder, store)[-1] == "unchanged"
    assert [path.name for path in store.root.iterdir()] == ["tiny"]
