"""``hf://`` against a local server that speaks the hub's API: what is fetched, what is refused, what breaks off."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from splitinfer.segment_runtime.store.errors import ImportFailed, SourceNotFound, UnsupportedSource
from splitinfer.segment_runtime.store.importer import ImportProgress, import_model
from splitinfer.segment_runtime.store.reader import ModelStore
from tests.runtime.store.hub_server import COMMIT, Hub, serve
from tests.unit.store.folders import CONFIG, random_tensors, write_folder

WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A repository with a model and much that is not to be fetched; an empty cache; retries without waiting."""
    folder = tmp_path / "repository"
    config = CONFIG | {"intermediate_size": 2000}
    write_folder(folder, config, random_tensors(config))
    for name in (
        "pytorch_model.bin",
        "evil.pt",
        "modeling_tiny.py",
        "README.md",
        "onnx/model.onnx",
        "sub/config.json",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not for us")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with serve(folder) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def fetched(hub: Hub) -> set[str]:
    """Names of the files that were asked for."""
    return {request.split()[1] for request in hub.requests}


@pytest.mark.parametrize("source", ["hf://org/tiny", "hf://org/tiny@v1", f"hf://org/tiny@{COMMIT}"])
def test_a_revision_is_imported(hub: Hub, store: ModelStore, tmp_path: Path, source: str) -> None:
    """The model as from its folder, the commit in the index, and only what is needed over the wire."""
    stored = import_model(source, store=store)
    assert stored.digest == import_model(tmp_path / "repository", name="folder", store=store).digest
    assert (stored.name, stored.index.source) == ("tiny", f"hf://org/tiny@{COMMIT}")
    assert stored.read_file("chat_template") == b"{{ messages }}"
    assert fetched(hub) == {"config.json", "tokenizer.json", "chat_template.jinja", WEIGHTS}


def test_progress_reaches_the_end(hub: Hub, store: ModelStore) -> None:
    """``download`` counts the bytes of all files and ends at the total."""
    told: list[ImportProgress] = []
    import_model("hf://org/tiny", store=store, progress=told.append)
    downloads = [now for now in told if now.stage == "download"]
    total = sum(len(hub.files[name]) for name in fetched(hub))
    assert (downloads[-1].done_bytes, downloads[-1].total_bytes) == (total, total)


@pytest.mark.parametrize("breaks", [0, 1])
def test_progress_tells_how_far_a_download_is(
    hub: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch, breaks: int
) -> None:
    """Piece by piece and never back, though a connection breaks off: no more than a piece of the file is told at once."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    hub.break_after, hub.breaks = {WEIGHTS: 200_000}, breaks
    told: list[tuple[int, int]] = []
    import_model(
        "hf://org/tiny",
        store=store,
        progress=lambda now: (
            told.append((now.done_bytes, now.total_bytes)) if now.stage == "download" else None
        ),
    )
    done = [bytes_done for bytes_done, _ in told]
    assert done == sorted(done)
    assert all(0 <= now <= total for now, total in told)
    assert all(later - now <= 50_000 for now, later in itertools.pairwise([0, *done]))
    assert len(set(done)) >= len(hub.files[WEIGHTS]) // 50_000
    assert done[-1] == told[-1][1] == sum(len(hub.files[name]) for name in fetched(hub))


def test_shards(hub: Hub, store: ModelStore, tmp_path: Path) -> None:
    """A sharded repository: the index and every shard, nothing else."""
    write_folder(tmp_path / "sharded", shards=3)
    hub.files = {p.name: p.read_bytes() for p in (tmp_path / "sharded").iterdir()}
    stored = import_model("hf://org/tiny", store=store)
    assert stored.digest == import_model(tmp_path / "sharded", store=store).digest


@pytest.mark.parametrize("source", ["hf://org/tiny", f"hf://org/tiny@{COMMIT}"])
def test_a_commit_that_is_stored_is_not_fetched(
    hub: Hub, store: ModelStore, source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The commit is in the index and every stored byte is verified: nothing is fetched, even into an empty cache."""
    import_model(source, store=store)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "another cache"))
    hub.requests.clear()
    told: list[str] = []
    import_model(source, store=store, progress=lambda now: told.append(now.stage))
    assert fetched(hub) == set()
    assert told[-1] == "unchanged"
    (store.root / "tiny" / "head.safetensors").write_bytes(b"")
    import_model(source, store=store, progress=lambda now: told.append(now.stage)).read_unit("head")
    assert hub.gets(WEIGHTS)
    assert told[-1] == "stored"


def test_a_stored_commit_needs_no_network(
    hub: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit names its content: the hub is not asked what it is."""
    import_model(f"hf://org/tiny@{COMMIT}", store=store)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert import_model(f"hf://org/tiny@{COMMIT}", store=store).name == "tiny"


def test_another_commit_of_the_same_name_is_fetched(hub: Hub, store: ModelStore) -> None:
    """What is stored under the name came from another source: the name alone says nothing."""
    config = CONFIG | {"num_hidden_layers": 2}
    write_folder(store.root.parent / "old", config, random_tensors(config))
    old = import_model(store.root.parent / "old", name="tiny", store=store)
    assert import_model("hf://org/tiny", store=store).digest != old.digest
    assert hub.gets(WEIGHTS)


def test_a_cut_connection_is_resumed(hub: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off in the middle, then working: the rest is fetched with a Range, and the model is whole."""
    monkeypatch.setattr(
        huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000
    )  # what it keeps is in whole chunks
    hub.break_after, hub.breaks = {WEIGHTS: 200_000}, 1
    import_model("hf://org/tiny", store=store).read_unit("block-002")
    assert hub.gets(WEIGHTS) == ["-", "bytes=200000-"]


def test_a_dead_server_leaves_nothing(hub: Hub, store: ModelStore, tmp_path: Path) -> None:
    """Broken off for good: a clear failure and an empty store; the next import keeps the files that were whole."""
    hub.break_after, hub.breaks = {WEIGHTS: 0}, 1000
    with pytest.raises(ImportFailed, match=r"hf://org/tiny: could not be fetched.*nothing was stored"):
        import_model("hf://org/tiny", store=store)
    assert not store.root.exists()
    assert hub.breaks < 1000
    hub.breaks = 0
    hub.requests.clear()
    stored = import_model("hf://org/tiny", store=store)
    assert stored.digest == import_model(tmp_path / "repository", name="folder", store=store).digest
    assert hub.gets("config.json") == []


def test_no_server(hub: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens: a failed import, not a stack of the library's errors."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ImportFailed, match=r"hf://org/tiny: could not be fetched"):
        import_model("hf://org/tiny", store=store)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf://org/tiny@gone", "no revision 'gone'"),
        ("hf://org/tiny@" + "f" * 40, "no revision 'f"),
        ("hf://org/missing", "no such repository.*HF_TOKEN"),
    ],
)
def test_what_is_not_there(hub: Hub, store: ModelStore, source: str, message: str) -> None:
    """A wrong revision and a wrong repository, by name."""
    with pytest.raises(SourceNotFound, match=message):
        import_model(source, store=store)
    assert fetched(hub) == set()


@pytest.mark.parametrize(
    ("gone", "extra", "message"),
    [
        (WEIGHTS, {}, r"evil\.pt and no model\.safetensors.*pickle"),
        (WEIGHTS, {"a.gguf": b""}, "pickle"),
        ("config.json", {}, r"no config\.json"),
    ],
)
def test_refused_before_anything_is_fetched(
    hub: Hub, store: ModelStore, gone: str, extra: dict[str, bytes], message: str
) -> None:
    """Pickle only, or no config: told from the list of files."""
    del hub.files[gone]
    hub.files |= extra
    with pytest.raises(UnsupportedSource, match=message):
        import_model("hf://org/tiny", store=store)
    assert fetched(hub) == set()


def test_gguf_repository(hub: Hub, store: ModelStore) -> None:
    """A repository of GGUF files: fetch one and import that."""
    hub.files = {"tiny-q4.gguf": b"", "config.json": b"{}"}
    with pytest.raises(UnsupportedSource, match=r"tiny-q4\.gguf: fetch that file and import it"):
        import_model("hf://org/tiny", store=store)
