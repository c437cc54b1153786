"""The safetensors format: a length, a JSON header and raw bytes. Read and written here with numpy only.

The library's own numpy side has no bfloat16, copies on every read, and writes only what is in memory as a whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

NUMPY_DTYPES: Mapping[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
SAFETENSORS_DTYPES: Mapping[str, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CODES: Mapping[str, str] = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}

# The bits per element of every dtype code of the format: a file may hold buffers that are never read.
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16}
_BITS |= {"U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64}

# Data starts at a cache line: vector loads on a mapped file are aligned.
ALIGNMENT = 64
# A header holds about a hundred bytes per tensor: past this, the length field is not one.
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: ``code`` as in the format (``F32``), ``offset`` from the start of the file."""

    code: str
    shape: tuple[int, ...]
    offset: int
    bytes: int

    @property
    def dtype(self) -> str | None:
        """The store's name of the dtype; None where the store has no such dtype."""
        return SAFETENSORS_DTYPES.get(self.code)


def header_length(prefix: bytes, file_bytes: int) -> int:
    """Bytes of the JSON header, from the first eight bytes of the file.

    Raises:
        ValueError: no room for what the length says.
    """
    if file_bytes < 8 or len(prefix) < 8:
        raise ValueError(f"it has {file_bytes} bytes")
    length = int.from_bytes(prefix[:8], "little")
    if length > min(file_bytes - 8, MAX_HEADER_BYTES):
        raise ValueError(f"its header would be {length} bytes, past the end of the file")
    return length


def parse_header(header: bytes, file_bytes: int) -> dict[str, Entry]:
    """Entries of a header of a file of ``file_bytes``; every byte of the data belongs to one tensor.

    Raises:
        ValueError: a header that is not one, or tensors outside the file, overlapping or with holes between.
    """
    try:
        content = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError("its header is not a JSON object")
    content.pop("__metadata__", None)
    base = 8 + len(header)
    entries = {name: _entry(name, value, base) for name, value in content.items()}
    end = base
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].bytes)):
        if entry.offset != end:
            raise ValueError(f"tensor {name!r} starts at byte {entry.offset}, expected {end}")
        end += entry.bytes
    if end != file_bytes:
        raise ValueError(f"its tensors end at byte {end}, the file at {file_bytes}")
    return entries


def _entry(name: str, value: Any, base: int) -> Entry:
    try:
        code, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
            raise ValueError("shape and data_offsets are counts")
        bits = _BITS[code] * math.prod(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"tensor {name!r} has a bad entry: {error!r}") from None
    if (end - begin) * 8 != bits:
        raise ValueError(f"tensor {name!r} of {code} {list(shape)} does not fit its {end - begin} bytes")
    return Entry(code, shape, base + begin, end - begin)


def make_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Length and header of a file that holds ``(name, dtype, shape)`` in this order."""
    content: dict[str, Any] = {}
    begin = 0
    for name, dtype, shape in tensors:
        end = begin + NUMPY_DTYPES[dtype].itemsize * math.prod(shape)
        content[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
