"""Importing a model: from a source to a complete folder of the store, or to nothing."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from splitinfer.segment_runtime.store.architectures import Architecture, architecture_of
from splitinfer.segment_runtime.store.checkpoint import Checkpoint
from splitinfer.segment_runtime.store.compare import same_content, whole
from splitinfer.segment_runtime.store.dimensions import Dimensions, dimensions_of
from splitinfer.segment_runtime.store.errors import (
    DamagedModel,
    DamagedSource,
    DiskFull,
    ImportFailed,
    ModelNotFound,
    UnsupportedSource,
)
from splitinfer.segment_runtime.store.hf_folder import parse_tokenizer
from splitinfer.segment_runtime.store.index import INDEX_FILE, FileIndex, ModelIndex, UnitIndex
from splitinfer.segment_runtime.store.layout import Layout, lay_out
from splitinfer.segment_runtime.store.publish import check_name, locked, partial_folder, publish, remove_stale
from splitinfer.segment_runtime.store.reader import ModelStore, StoredModel
from splitinfer.segment_runtime.store.sources import parse_source
from splitinfer.segment_runtime.store.writer import common_dtype, equal_tensors, write_file, write_unit

Stage = Literal["download", "wait", "write", "check", "stored", "unchanged", "convert"]
# Headers, config, tokenizer and the index: small beside the weights, but a full disk must not be met half way.
_SIDE_ROOM = 64 << 10


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """Where an import is.

    Attributes:
        stage: ``download`` from a hub, ``wait`` for another import of the name, ``check`` against the model of
            that name that is there already, ``write`` if it is another or damaged; then ``stored``, or ``unchanged``:
            the same content was there, and nothing was written. ``convert`` is what the command line does after it.
        done_bytes: of this stage.
        total_bytes: of this stage.
        unit: the unit being written, else empty.
    """

    stage: Stage
    name: str
    done_bytes: int
    total_bytes: int
    unit: str = ""


Progress = Callable[[ImportProgress], None]


def import_model(
    source: str | Path,
    *,
    name: str | None = None,
    store: ModelStore | None = None,
    progress: Progress | None = None,
    require_tokenizer: bool = True,
) -> StoredModel:
    """Import a model and return it, open. The model of that name, if there is one, stays until the new one is complete.

    Args:
        source: a Hugging Face folder, a GGUF file, ``hf://ORG/NAME@REVISION``, ``package://NAME`` or ``smollm2``.
        name: what it will be called; by default what the source suggests.
        store: where to; by default the user's store.
        progress: called with where the import is, from threads too while files are fetched.
        require_tokenizer: False lets bare weights in, for tests of engines.

    Raises:
        StoreError: naming the file or field and the mend; nothing is left behind.
    """
    store = store or ModelStore()
    tell = progress or (lambda _: None)
    parsed = parse_source(source)
    name = check_name(
        name if name is not None else re.sub(r"[^A-Za-z0-9._-]+", "-", parsed.name).strip("-._")
    )
    if parsed.pin is not None and name in store.names():
        with suppress(DamagedModel, ModelNotFound):  # what cannot be opened is stored anew
            model = store.open(name)
            if _stored_pin(parsed.pin, model, tell):
                tell(ImportProgress("unchanged", name, model.index.weight_bytes, model.index.weight_bytes))
                return model
    checkpoint = parsed.open(lambda done, total: tell(ImportProgress("download", name, done, total)))
    plan = _plan(checkpoint, require_tokenizer)
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        with locked(store.root, name, lambda: tell(ImportProgress("wait", name, 0, 0))):
            remove_stale(store.root, name)
            return _store(checkpoint, plan, name, store.root, tell)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(store.root, plan.weight_bytes) from error
        raise ImportFailed(f"{store.root}: {name} could not be stored: {error}") from error


@dataclass(frozen=True, slots=True)
class _Plan:
    """All that is decided before the first byte is written."""

    architecture: Architecture
    config: Mapping[str, Any]
    dims: Dimensions
    layout: Layout
    weight_bytes: int


def _plan(checkpoint: Checkpoint, require_tokenizer: bool) -> _Plan:
    try:
        architecture = architecture_of(checkpoint.config)
        dims = dimensions_of(checkpoint.config)
    except (DamagedSource, UnsupportedSource) as error:
        raise type(error)(f"{checkpoint.where}: {error}") from None
    if checkpoint.tokenizer is not None:
        from tokenizers import Tokenizer

        parse_tokenizer(f"{checkpoint.where}/tokenizer.json", checkpoint.tokenizer, Tokenizer)
    elif require_tokenizer:
        raise DamagedSource(
            f"{checkpoint.where}: tokenizer.json is missing; save one beside the model: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    config = checkpoint.config
    layout = lay_out(checkpoint.where, architecture, config, dims, checkpoint.tensors)
    if layout.tied_copy is not None and not equal_tensors(
        checkpoint, layout.units["embed"]["tokens"], layout.tied_copy
    ):
        # As transformers has it: tie_word_embeddings is overruled by two different tensors. The stored config says so.
        layout = layout.untied()
        config = {**config, "tie_word_embeddings": False}
    used = [name for unit in layout.units.values() for name in unit.values()]
    return _Plan(architecture, config, dims, layout, sum(checkpoint.tensors[name].bytes for name in used))


def _store(checkpoint: Checkpoint, plan: _Plan, name: str, root: Path, tell: Progress) -> StoredModel:
    sides = _sides(checkpoint, plan)

    def index(units: Mapping[str, UnitIndex], files: Mapping[str, FileIndex]) -> ModelIndex:
        return _index(checkpoint, plan, name, units, files)

    total = plan.weight_bytes
    stage: Stage = "unchanged"
    if not same_content(
        root / name, checkpoint, plan.layout.units, sides, index, _checking(tell, name, total)
    ):
        if total + _SIDE_ROOM > shutil.disk_usage(root).free:
            raise _disk_full(root, total)
        with partial_folder(root, name) as partial:
            units = _write_units(checkpoint, plan, name, partial, tell)
            files = _write_sides(sides, partial)
            write_file(partial / INDEX_FILE, index(units, files).sealed().model_dump_json(indent=1).encode())
            publish(partial, root / name)
        stage = "stored"
    model = StoredModel(root / name)
    tell(ImportProgress(stage, name, model.index.weight_bytes, model.index.weight_bytes))
    return model


def _checking(tell: Progress, name: str, total: int) -> Callable[[int], None]:
    return lambda done: tell(ImportProgress("check", name, min(done, total), total))


def _stored_pin(pin: Callable[[], str], model: StoredModel, tell: Progress) -> bool:
    """Whether a stored model came from the very content that the source names, and is whole."""
    index = model.index
    return index.source == pin() and whole(model, _checking(tell, index.name, index.weight_bytes))


def _write_units(
    checkpoint: Checkpoint, plan: _Plan, name: str, folder: Path, tell: Progress
) -> dict[str, UnitIndex]:
    done = 0
    units = {}
    for unit, tensors in plan.layout.units.items():

        def written(count: int, unit: str = unit) -> None:
            nonlocal done
            done += count
            tell(ImportProgress("write", name, done, plan.weight_bytes, unit))

        units[unit] = write_unit(folder / f"{unit}.safetensors", tensors, checkpoint, written)
    return units


def _sides(checkpoint: Checkpoint, plan: _Plan) -> dict[str, tuple[str, bytes]]:
    """The files beside the weights: what the index calls them, and their names and content."""
    config = json.dumps(plan.config, indent=2, sort_keys=True).encode()
    sides = {"config": ("config.json", config)}
    if checkpoint.tokenizer is not None:
        sides["tokenizer"] = ("tokenizer.json", checkpoint.tokenizer)
    if checkpoint.chat_template is not None:
        sides["chat_template"] = ("chat_template.jinja", checkpoint.chat_template.encode())
    return sides


def _write_sides(sides: Mapping[str, tuple[str, bytes]], folder: Path) -> dict[str, FileIndex]:
    return {name: write_file(folder / file, data) for name, (file, data) in sides.items()}


def _index(
    checkpoint: Checkpoint,
    plan: _Plan,
    name: str,
    units: Mapping[str, UnitIndex],
    files: Mapping[str, FileIndex],
) -> ModelIndex:
    dims = plan.dims
    return ModelIndex.model_validate(
        {
            "name": name,
            "source": checkpoint.source,
            "model_type": plan.architecture.model_type,
            "blocks": dims.blocks,
            "hidden_size": dims.hidden,
            "vocab_size": dims.vocab,
            "max_context_tokens": dims.max_context,
            "kv_heads": dims.kv_heads,
            "head_dim": dims.head_dim,
            "dtype": common_dtype(tensor for unit in units.values() for tensor in unit.tensors.values()),
            "tied_embeddings": plan.layout.tied,
            "bos_token_id": checkpoint.bos_token_id,
            "eos_token_ids": checkpoint.eos_token_ids,
            "units": units,
            "files": files,
        }
    )


def _disk_full(root: Path, needed: int) -> DiskFull:
    free = shutil.disk_usage(root).free
    return DiskFull(
        f"{root}: the disk is full: the model needs {needed:,} bytes, {free:,} are free; nothing was stored. "
        "Free some space or choose another folder with --store",
        needed,
        free,
    )
