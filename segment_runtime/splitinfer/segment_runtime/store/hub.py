"""Fetching a repository of a model hub: safetensors, JSON and templates only, resumed where it broke off.

The files land in huggingface_hub's own cache (``HF_HOME``), which is shared with other tools. A connection that breaks
off is resumed within an import; after an import that failed, whole files are kept and the others are fetched again.
The endpoint is ``HF_ENDPOINT``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from splitinfer.segment_runtime.store.errors import ImportFailed, SourceNotFound, UnsupportedSource
from splitinfer.segment_runtime.store.hf_folder import PICKLES, SHARDS, SINGLE

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

ALLOWED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    SINGLE,
    SHARDS,
    "model-*-of-*.safetensors",
)
"""What is fetched of a repository, at its top: never .bin, .pt or .py."""


def fetch_snapshot(
    repo: str, revision: str | None, text: str, progress: Callable[[int, int], None]
) -> tuple[Path, str]:
    """Fetch a revision, by default the main one.

    Args:
        repo: ``ORG/NAME``.
        revision: branch, tag or commit.
        text: the source as the user wrote it, for errors.
        progress: called with bytes fetched and bytes in all.

    Returns:
        The folder of the snapshot, and the commit it is.

    Raises:
        SourceNotFound: no such repository or revision, or no right to see it.
        UnsupportedSource: a repository without safetensors or without config, before anything large is fetched.
        ImportFailed: the network or the disk; whole files are kept, so the next import goes on from there.
    """
    from huggingface_hub import HfApi, snapshot_download

    with _errors(revision, text):
        info = HfApi(endpoint=_endpoint()).model_info(repo, revision=revision)
        _check(info, text)
        folder = snapshot_download(
            repo,
            revision=info.sha,
            endpoint=_endpoint(),
            allow_patterns=list(ALLOWED),
            max_workers=4,
            tqdm_class=_reporter(progress),
        )
    return Path(folder), str(info.sha)


def commit_of(repo: str, revision: str | None, text: str) -> str:
    """The commit that a revision is now; a commit is itself, without asking. Raises as `fetch_snapshot`."""
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi

    with _errors(revision, text):
        return str(HfApi(endpoint=_endpoint()).model_info(repo, revision=revision).sha)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _errors(revision: str | None, text: str) -> Iterator[None]:
    """The library's errors as the store's."""
    import httpx2
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError as error:
        raise SourceNotFound(f"{text}: not the name of a repository: {error}") from None
    except RevisionNotFoundError:
        raise SourceNotFound(
            f"{text}: the repository has no revision {revision!r}; name a branch, a tag or a commit that it has"
        ) from None
    except RepositoryNotFoundError:  # GatedRepoError is one
        raise SourceNotFound(
            f"{text}: no such repository, or no right to see it; check the name, or set HF_TOKEN if it is private or gated"
        ) from None
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        raise ImportFailed(
            f"{text}: could not be fetched: {error}; nothing was stored. Import again: files that were fetched whole are kept"
        ) from error


def _check(info: ModelInfo, text: str) -> None:
    names = {sibling.rfilename for sibling in info.siblings or ()}
    if SINGLE not in names and SHARDS not in names:
        pickles = sorted(name for name in names if name.endswith(PICKLES))
        if pickles:
            raise UnsupportedSource(
                f"{text}: the repository has {pickles[0]} and no {SINGLE}: pickle can run code when it is read, so it is "
                "never fetched or read; take a revision or a repository with safetensors"
            )
        ggufs = sorted(name for name in names if name.endswith(".gguf"))
        more = f"; it has {ggufs[0]}: fetch that file and import it" if ggufs else ""
        raise UnsupportedSource(f"{text}: the repository has neither {SINGLE} nor {SHARDS}{more}")
    if "config.json" not in names:
        raise UnsupportedSource(f"{text}: the repository has no config.json: it is not a transformers model")


def _reporter(progress: Callable[[int, int], None]) -> type[Any]:
    """A stand-in for tqdm's class that shows nothing and reports the bytes written to disk, of all files together.

    huggingface_hub makes three bars: two in bytes ("Downloading" counts the wire, "Reconstructing" the disk, and
    adds to ``total`` as files start), and one that counts files.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    lock = Lock()

    class Reporter(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._reports = str(kwargs.get("desc") or "").startswith("Reconstructing")
            self._done = 0
            self._all = 0
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            with lock:
                self._done += int(n or 0)
                if self._reports:
                    progress(self._done, max(int(self.total or 0), self._done))
            return None

    return Reporter
