"""A GGUF file as a checkpoint: metadata and dequantising by the gguf package's numpy side, read row by row."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from splitinfer.segment_runtime.store.checkpoint import PIECE_BYTES, TensorInfo
from splitinfer.segment_runtime.store.errors import DamagedSource, UnsupportedSource
from splitinfer.segment_runtime.store.gguf_config import Metadata, config_of, heads_of_rows, hf_name
from splitinfer.segment_runtime.tokenizer.gguf import GgufTokenizer, read_tokenizer

if TYPE_CHECKING:
    from gguf import ReaderTensor

MAGIC = b"GGUF"


class GgufFile:
    """Metadata is read when it is opened; tensors are read and dequantised to float32 when they are asked for."""

    def __init__(self, path: Path, source: str) -> None:
        """Read the metadata.

        Raises:
            DamagedSource: not a GGUF file, truncated, or metadata that is missing or wrong.
            UnsupportedSource: an architecture, option, tokenizer or quantisation that is refused by name.
        """
        self.source = source
        self.where = str(path)
        self._path = path
        metadata, tensors = _read(path)
        names = [tensor.name for tensor in tensors]
        try:
            self.config: Mapping[str, Any] = config_of(metadata, set(names))
            tokenizer: GgufTokenizer = read_tokenizer(metadata)
            hf_names = [hf_name(metadata, name) for name in names]
        except (DamagedSource, UnsupportedSource) as error:
            raise type(error)(f"{path}: {error}") from error
        self.tokenizer: bytes | None = tokenizer.json
        self.chat_template = tokenizer.chat_template
        self.bos_token_id = tokenizer.bos_token_id
        self.eos_token_ids = tokenizer.eos_token_ids
        # The reader refuses a name that is there twice.
        self._tensors: dict[str, ReaderTensor] = dict(zip(hf_names, tensors, strict=True))
        self.tensors: Mapping[str, TensorInfo] = {
            # A GGUF has its dimensions fastest first.
            name: TensorInfo(
                tuple(int(n) for n in reversed(tensor.shape)), "float32", tensor.tensor_type.name
            )
            for name, tensor in self._tensors.items()
        }

    def pieces(self, name: str) -> Iterator[NDArray[np.float32]]:
        """Rows in order. Raises DamagedSource if the file became shorter, UnsupportedSource for its quantisation."""
        from gguf import dequantize

        tensor, shape = self._tensors[name], self.tensors[name].shape
        rows = shape[0] if len(shape) > 1 else 1
        row_bytes = int(tensor.n_bytes) // rows
        # Whole heads where rows of a head change places, so that a piece can be mended by itself.
        head = heads_of_rows(self.config, name)
        step = max(1, PIECE_BYTES // (4 * shape[-1]) // head) * head
        try:
            with self._path.open("rb") as file:
                for row in range(0, rows, step):
                    count = min(step, rows - row)
                    data = os.pread(
                        file.fileno(), count * row_bytes, int(tensor.data_offset) + row * row_bytes
                    )
                    if len(data) != count * row_bytes:
                        raise DamagedSource(
                            f"{self._path}: tensor {tensor.name!r} ends early; fetch the file again"
                        )
                    raw = np.frombuffer(data, tensor.data.dtype).reshape(count, -1)
                    values = dequantize(raw, tensor.tensor_type)
                    yield np.asarray(_unpermute(values, head) if head > 1 else values, np.float32)
        except NotImplementedError as error:
            raise UnsupportedSource(
                f"{self._path}: tensor {tensor.name!r} is {tensor.tensor_type.name}, which cannot be dequantised: {error}"
            ) from error
        except OSError as error:
            raise DamagedSource(f"{self._path}: tensor {tensor.name!r} cannot be read: {error}") from error


def _unpermute(rows: NDArray[Any], head: int) -> NDArray[Any]:
    """Undo llama.cpp's order of the rows of q and k: ``rows`` ``[heads * head, columns]``, whole heads.

    llama.cpp rotates neighbouring rows (2i, 2i+1), transformers rows half a head apart (i, i + head/2); converters
    to GGUF reorder each head so that both rotate the same pairs.
    """
    heads = rows.shape[0] // head
    pairs = rows.reshape(heads, head // 2, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3)).reshape(rows.shape)


def _read(path: Path) -> tuple[Metadata, list[ReaderTensor]]:
    try:
        with path.open("rb") as file:
            magic, size = file.read(4), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise DamagedSource(f"{path}: cannot be read: {error}") from error
    if magic != MAGIC:
        raise DamagedSource(
            f"{path}: not a GGUF file ({size} bytes); a source is a folder with safetensors or a .gguf file"
        )
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    # What the reader, which maps every tensor, runs into when lengths and offsets are not those of a whole file.
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, struct.error) as error:
        raise DamagedSource(
            f"{path}: a GGUF file that is truncated or damaged ({size} bytes): {error}; fetch it again"
        ) from error
    return metadata, list(reader.tensors)
