"""What a source and a name may be, before anything is read: understood, or refused with what would be."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitinfer.segment_runtime.store.errors import BadName, SourceNotFound, StoreError, UnsupportedSource
from splitinfer.segment_runtime.store.importer import import_model
from splitinfer.segment_runtime.store.reader import ModelStore
from tests.unit.store.folders import write_folder


@pytest.mark.parametrize("name", ["", "a/b", "../a", "/a", ".hidden", "a\0b", "ü", "a b", "-x", "x" * 129])
def test_names_that_are_no_names(folder: Path, store: ModelStore, name: str) -> None:
    """Refused before anything is read or made."""
    with pytest.raises(BadName, match="--name"):
        import_model(folder, name=name, store=store)
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("", SourceNotFound, "SOURCE is empty; name a folder"),
        (" ", SourceNotFound, "SOURCE is empty"),
        ("/nowhere/model", SourceNotFound, "/nowhere/model: no such file or folder"),
        ("hf://just-a-name", SourceNotFound, "hf://ORG/NAME@REVISION"),
        ("hf://a/b@c d", SourceNotFound, "hf://ORG/NAME@REVISION"),
        ("hf://a--b/c", SourceNotFound, "not the name of a repository"),
        ("hf://../b", SourceNotFound, "hf://ORG/NAME"),
        ("file://relative", SourceNotFound, "absolute path"),
        ("s3://bucket/model", UnsupportedSource, "s3:// is not a source"),
        ("pvc://models/smollm2", UnsupportedSource, "pvc:// is not a source"),
        ("package://no-such-distribution", SourceNotFound, "pip install no-such-distribution"),
        ("package://numpy", UnsupportedSource, r"0 \.gguf files"),
    ],
)
def test_sources_that_are_no_sources(
    store: ModelStore, source: str, kind: type[StoreError], message: str
) -> None:
    """Refused with what would be understood."""
    with pytest.raises(kind, match=message):
        import_model(source, store=store)
    assert not store.root.exists()


def test_derived_name_is_made_fit(tmp_path: Path, store: ModelStore) -> None:
    """A folder called by what is no name gives one that is; ``--name`` is for the rest."""
    write_folder(tmp_path / ".my model (v2)")
    assert import_model(tmp_path / ".my model (v2)", store=store).name == "my-model-v2"


def test_file_scheme(folder: Path, store: ModelStore) -> None:
    """``file:///PATH`` is the path, and the index remembers what the user wrote."""
    assert import_model(f"file://{folder}", store=store).index.source == f"file://{folder}"
