"""The conversion cache: units of a stored model in few bits, beside the models, by content and tools.

``<store>/.converted/<digest>/<dtype>/<unit>.safetensors`` and ``<unit>.json``. The record names the sha256 of the file,
of the unit that it was made from, and the tools that made it. What does not match is made again from the store's own
verified unit; so a damaged cache is mended, and never computed with.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.numpy import save

from splitinfer.segment_runtime.store.errors import DamagedModel
from splitinfer.segment_runtime.store.index import Sha256
from splitinfer.segment_runtime.store.quantise import BLOCK, VERSION, FewBits, quantise
from splitinfer.segment_runtime.store.reader import StoredModel
from splitinfer.segment_runtime.store.safetensors_file import header_length, parse_header

log = structlog.get_logger()

FOLDER = ".converted"
TOOLS: Mapping[str, str] = {"quantiser": str(VERSION), "numpy": np.__version__}
BITS: Mapping[str, int] = {"int8": 8, "int4": 4}
OUTER_BITS = 8
"""Of the embedding and the head in every quantised dtype: they are a small part of a large model, and errors in
logits are not averaged out by anything after them."""

Few = dict[str, FewBits]


class _Matrix(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    columns: int
    bits: Literal[4, 8]
    exact: bool


class _Record(BaseModel):
    """What a converted unit was made from and by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tools: dict[str, str]
    unit_sha256: Sha256
    sha256: Sha256
    bytes: int
    matrices: dict[str, _Matrix]


@dataclass(frozen=True, slots=True)
class Conversion:
    """Matrices of one unit that were asked for, by name.

    Attributes:
        matrices: by name.
        cached: they came out of the cache.
        not_kept: why they could not be written into it; None where they could, or were there.
    """

    matrices: Few
    cached: bool
    not_kept: str | None = None


class _Stale(Exception):
    """A cache entry that is not to be used, and why."""


_making = threading.Lock()


def converted(
    model: StoredModel, unit: str, dtype: str, names: Callable[[str, tuple[int, ...]], bool]
) -> Conversion:
    """The matrices of ``unit`` in few bits, from the cache or made now.

    Args:
        model: where the unit is.
        unit: ``block-NNN``, ``head`` or ``embed``.
        dtype: ``int8`` or ``int4``.
        names: which tensors are converted, by name and shape.

    Raises:
        StoreError: the unit itself is damaged or not there.
    """
    bits = BITS[dtype] if unit.startswith("block-") else OUTER_BITS
    folder = model.path.parent / FOLDER / model.digest / dtype
    wanted = {n: t.shape for n, t in model.index.units[unit].tensors.items() if names(n, t.shape)}
    with _making:  # two ranges of one process that want the same unit convert it once
        try:
            return Conversion(_read(folder, unit, model.index.units[unit].sha256, wanted, bits), cached=True)
        except _Stale as stale:
            if str(stale):
                log.warning(
                    "conversion made again", model=model.name, unit=unit, dtype=dtype, reason=str(stale)
                )
        tensors = model.read_unit(unit)
        _check_finite(model.name, unit, {name: tensors[name] for name in wanted})
        matrices = {name: quantise(tensors[name], bits) for name in wanted}
        _check_scales(model.name, unit, matrices)
        not_kept = _write(folder, unit, model.index.units[unit].sha256, matrices)
    return Conversion(matrices, cached=False, not_kept=not_kept)


def is_matrix(_name: str, shape: tuple[int, ...]) -> bool:
    """Everything with two axes."""
    return len(shape) == 2


def is_recorded(path: Path, source: str) -> bool:
    """Whether a record is there, by these tools and of the unit with this sha256. Its file is not looked at."""
    try:
        record = _Record.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return False
    return record.tools == dict(TOOLS) and record.unit_sha256 == source


def _finite(few: FewBits) -> bool:
    offsets = few.offsets is None or bool(np.isfinite(few.offsets).all())
    return offsets and bool(np.isfinite(few.scales).all())


def _check_finite(name: str, unit: str, tensors: Mapping[str, NDArray[Any]]) -> None:
    for tensor, array in tensors.items():
        if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
            raise DamagedModel(
                f"{name}: {unit}: tensor {tensor!r} has values that are not finite (NaN or infinite); the checkpoint is "
                "broken: import the model again"
            )


def _check_scales(name: str, unit: str, matrices: Few) -> None:
    for tensor, few in matrices.items():
        if not _finite(few):
            raise DamagedModel(
                f"{name}: {unit}: tensor {tensor!r} has scales that are not finite in few bits; use float32, or "
                "fetch the model again"
            )


def _read(folder: Path, unit: str, source: str, wanted: Mapping[str, tuple[int, ...]], bits: int) -> Few:
    """Out of the cache. Raises _Stale, with the reason where there is something that is wrong."""
    try:
        record = _Record.model_validate_json((folder / f"{unit}.json").read_bytes())
    except FileNotFoundError:
        raise _Stale from None
    except (OSError, ValidationError) as error:
        raise _Stale(f"its record cannot be read: {str(error).splitlines()[0]}") from None
    if record.tools != dict(TOOLS):
        raise _Stale(f"it was made by {record.tools}, these are {dict(TOOLS)}")
    if record.unit_sha256 != source:
        raise _Stale("it was made from another unit")
    shapes = {name: (m.rows, m.columns) for name, m in record.matrices.items()}
    if shapes != dict(wanted) or any(m.bits != bits for m in record.matrices.values()):
        raise _Stale("its matrices are not those of the index")
    data = _mapped(folder / f"{unit}.safetensors", record)
    try:
        length = header_length(data[:8], len(data))
        entries = parse_header(data[8 : 8 + length], len(data))
        arrays = {
            name: np.frombuffer(data, _KINDS[e.code], e.bytes // _KINDS[e.code].itemsize, e.offset).reshape(
                e.shape
            )
            for name, e in entries.items()
        }
        matrices = {name: _few(arrays, name, m) for name, m in record.matrices.items()}
    except (KeyError, ValueError) as error:
        raise _Stale(f"its file is not one of a conversion: {error}") from None
    for name, few in matrices.items():
        if not _finite(few):
            raise _Stale(f"tensor {name!r} has scales that are not finite")
    return matrices


_KINDS: Mapping[str, np.dtype[Any]] = {"U8": np.dtype(np.uint8), "F32": np.dtype(np.float32)}


def _few(arrays: Mapping[str, NDArray[Any]], name: str, m: _Matrix) -> FewBits:
    blocks = -(-m.columns // BLOCK)
    codes, scales = arrays[f"{name}.codes"], arrays[f"{name}.scales"]
    offsets = arrays.get(f"{name}.offsets")
    if (
        codes.shape != (m.rows, blocks, BLOCK * m.bits // 8)
        or scales.shape != (m.rows * blocks,)
        or (offsets is not None and offsets.shape != (m.rows, blocks))
    ):
        raise ValueError(f"matrix {name!r} is not of the shape of its record")
    return FewBits(m.rows, m.columns, m.bits, codes, scales, offsets, m.exact)


def _mapped(path: Path, record: _Record) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != record.bytes:
                raise _Stale("its file has another size than its record says")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise _Stale(f"its file cannot be read: {error}") from None
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise _Stale("the sha256 of its file is not that of its record: damaged")
    return data


def _write(folder: Path, unit: str, source: str, matrices: Few) -> str | None:
    """Whole or not at all: the record is renamed into place after its file. Why a store took none, which is no error."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, few in matrices.items():
        arrays |= {f"{name}.codes": few.codes, f"{name}.scales": few.scales}
        if few.offsets is not None:
            arrays[f"{name}.offsets"] = few.offsets
    data = save(arrays)
    record = _Record(
        tools=dict(TOOLS),
        unit_sha256=source,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        matrices={
            n: _Matrix.model_validate(
                {"rows": f.rows, "columns": f.columns, "bits": f.bits, "exact": f.exact}
            )
            for n, f in matrices.items()
        },
    )
    mark = f".{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (
            (f"{unit}.safetensors", data),
            (f"{unit}.json", record.model_dump_json().encode()),
        ):
            temporary = folder / (mark + name)
            try:
                temporary.write_bytes(content)
                temporary.replace(folder / name)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        log.warning("conversion not kept", folder=str(folder), unit=unit, reason=str(error))
        return str(error)
    return None
