"""The conversion cache: made once, mended when anything about it is wrong, never computed with in doubt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from splitinfer.segment_runtime.store import converted as module
from splitinfer.segment_runtime.store.conversions import conversions, convert_model, drop_stale
from splitinfer.segment_runtime.store.converted import Conversion, converted, is_matrix
from splitinfer.segment_runtime.store.errors import DamagedModel, ImportFailed
from splitinfer.segment_runtime.store.reader import ModelStore, StoredModel
from tests.support.models import random_case

UNIT = "block-001"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one model."""
    root = tmp_path_factory.mktemp("converted")
    random_case("llama-even", root)
    return root / "models"


@pytest.fixture
def model(pristine: Path) -> StoredModel:
    """That model, without any conversion."""
    shutil.rmtree(pristine / module.FOLDER, ignore_errors=True)
    return ModelStore(pristine).open("llama-even")


def get(model: StoredModel) -> Conversion:
    """One unit in 4 bits."""
    return converted(model, UNIT, "int4", is_matrix)


def folder(model: StoredModel) -> Path:
    """Where its conversions are."""
    return model.path.parent / module.FOLDER / model.digest / "int4"


def equal(left: Conversion, right: Conversion) -> bool:
    """The same values."""
    names = left.matrices.keys()
    return names == right.matrices.keys() and all(
        np.array_equal(left.matrices[n].values(), right.matrices[n].values()) for n in names
    )


def test_a_conversion_is_made_once(model: StoredModel) -> None:
    """The second time it comes out of the cache, the same; all matrices and no norm."""
    first, second = get(model), get(model)
    assert (first.cached, second.cached) == (False, True)
    assert equal(first, second)
    assert len(first.matrices) == 7


def _record(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(at: Path) -> None:
        record = json.loads((at / f"{UNIT}.json").read_text("utf-8"))
        change(record)
        (at / f"{UNIT}.json").write_text(json.dumps(record), "utf-8")

    return damage


def _flip(at: Path) -> None:
    data = bytearray((at / f"{UNIT}.safetensors").read_bytes())
    data[-5] ^= 1
    (at / f"{UNIT}.safetensors").write_bytes(data)


def _nan(at: Path) -> None:
    """A scale that is NaN, with a record whose hash fits: what only a look at the numbers finds."""
    import hashlib

    path = at / f"{UNIT}.safetensors"
    arrays = {name: array.copy() for name, array in load_file(path).items()}
    arrays["mlp.up_proj.weight.scales"][3] = np.nan
    save_file(arrays, path)
    data = path.read_bytes()
    _record(lambda r: r.update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)))(at)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_flip, "the sha256 of its file is not that of its record: damaged"),
        (lambda at: (at / f"{UNIT}.safetensors").write_bytes(b""), "another size"),
        (lambda at: (at / f"{UNIT}.safetensors").unlink(), "cannot be read"),
        (lambda at: (at / f"{UNIT}.json").write_text("{"), "its record cannot be read"),
        (_record(lambda r: r["tools"].update(quantiser="0")), "it was made by"),
        (_record(lambda r: r.update(unit_sha256="0" * 64)), "made from another unit"),
        (_record(lambda r: r["matrices"].popitem()), "not those of the index"),
        (_record(lambda r: r["matrices"]["mlp.up_proj.weight"].update(bits=8)), "not those of the index"),
        (_nan, "scales that are not finite"),
    ],
)
def test_what_is_wrong_with_a_cache_is_said_and_mended(
    model: StoredModel, damage: Callable[[Path], None], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every damage leads to a new conversion, with the reason in the log, and the next read is whole."""
    first = get(model)
    damage(folder(model))
    again = get(model)
    assert not again.cached
    assert equal(first, again)
    said = capsys.readouterr()
    assert reason in said.out + said.err
    assert get(model).cached


def test_a_unit_that_is_damaged_itself_is_refused(
    model: StoredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to mend a conversion from: the store's own error comes through."""

    def broken(_: str) -> dict[str, Any]:
        raise DamagedModel("block-001.safetensors: damaged; import the model again")

    monkeypatch.setattr(model, "read_unit", broken)
    with pytest.raises(DamagedModel, match="import the model again"):
        get(model)


def test_a_store_that_takes_no_files_is_no_error(model: StoredModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only volume: the conversion is made for every load, and the log says so."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert equal(get(model), get(model))
    assert not get(model).cached


def test_the_whole_model_is_converted_ahead(model: StoredModel) -> None:
    """Embedding and head in 8 bits, blocks in 4; how many were exact is counted; progress comes to its end."""
    seen: list[tuple[str, int, int]] = []
    assert conversions(model) == ()
    exact, total = convert_model(model, "int4", lambda *now: seen.append(now))
    assert (exact, total) == (0, 5 * 7 + 2)
    assert [unit for unit, _, _ in seen] == [*model.index.units, ""]
    whole = sum(unit.bytes for unit in model.index.units.values())
    assert (seen[0][1:], seen[-1][1:]) == ((0, whole), (whole, whole))
    assert conversions(model) == ("int4",)
    assert converted(model, "embed", "int4", is_matrix).matrices["tokens"].bits == 8
    assert all(m.bits == 4 for m in get(model).matrices.values())


def test_a_conversion_that_cannot_be_kept_is_an_error_of_the_import(
    model: StoredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for it ahead is told which unit and why; nothing counts as converted."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(ImportFailed, match=r"embed in int8 could not be written \(.*No space left"):
        convert_model(model, "int8")
    assert conversions(model) == ()


def test_conversions_of_other_tools_are_not_listed(
    model: StoredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a load would make again does not count."""
    convert_model(model, "int4")
    monkeypatch.setattr(module, "TOOLS", {"quantiser": "0", "numpy": "0"})
    assert conversions(model) == ()


def test_conversions_of_models_that_are_gone_are_dropped(model: StoredModel, pristine: Path) -> None:
    """What no model of the store has the digest of is removed, the rest stays; nothing while a model cannot be read."""
    get(model)
    gone = pristine / module.FOLDER / ("0" * 64)
    gone.mkdir()
    (pristine / "damaged").mkdir()
    (pristine / "damaged" / "index.json").write_text("{")
    drop_stale(ModelStore(pristine))
    assert gone.exists()
    shutil.rmtree(pristine / "damaged")
    drop_stale(ModelStore(pristine))
    assert not gone.exists()
    assert get(model).cached
