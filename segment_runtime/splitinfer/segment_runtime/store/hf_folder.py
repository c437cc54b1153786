"""A Hugging Face model folder as a checkpoint: config.json, safetensors (one file or shards), tokenizer.json."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinfer.segment_runtime.store.checkpoint import PIECE_BYTES, TensorInfo
from splitinfer.segment_runtime.store.errors import DamagedSource, UnsupportedSource
from splitinfer.segment_runtime.store.safetensors_file import NUMPY_DTYPES, Entry, header_length, parse_header

SINGLE = "model.safetensors"
SHARDS = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class HfFolder:
    """Headers are read when it is opened, tensors when they are asked for."""

    def __init__(self, path: Path, source: str) -> None:
        """Read config, tokenizer and the headers of the weights.

        Raises:
            DamagedSource: a file that is missing or not what it should be, by name.
            UnsupportedSource: no safetensors.
        """
        self.source = source
        self.where = str(path)
        self.config: Mapping[str, Any] = read_json(path / "config.json")
        generation = _optional_json(path / "generation_config.json")
        tokenizer_config = _optional_json(path / "tokenizer_config.json")
        self.tokenizer = _optional_bytes(path / "tokenizer.json")
        self.chat_template = _chat_template(path, tokenizer_config)
        self.eos_token_ids = _eos(generation, self.config)
        self.bos_token_id = self._bos(tokenizer_config)
        self._files: dict[str, tuple[Path, Entry]] = {}
        for file, names in _weight_files(path).items():
            entries = read_header(file)
            if names is not None and names != set(entries):
                wrong = sorted(names ^ set(entries))[0]
                raise DamagedSource(
                    f"{path / SHARDS}: tensor {wrong!r} is not where weight_map says; {file.name} is of another model"
                )
            self._files |= {name: (file, entry) for name, entry in entries.items()}
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(entry.shape, entry.dtype, entry.code) for name, (_, entry) in self._files.items()
        }

    def pieces(self, name: str) -> Iterator[NDArray[Any]]:
        """Elements in order, in flat arrays. Raises DamagedSource if the file became shorter or cannot be read."""
        path, entry = self._files[name]
        assert entry.dtype is not None, "the layout refuses dtypes the store does not hold"
        offset, end = entry.offset, entry.offset + entry.bytes
        try:
            with path.open("rb") as file:
                while offset < end:
                    # Not mapped: pages of a mapped file count as resident memory of the import.
                    data = os.pread(file.fileno(), min(PIECE_BYTES, end - offset), offset)
                    if len(data) % NUMPY_DTYPES[entry.dtype].itemsize or not data:
                        raise DamagedSource(
                            f"{path}: tensor {name!r} ends early, at byte {offset + len(data)}"
                        )
                    yield np.frombuffer(data, NUMPY_DTYPES[entry.dtype])
                    offset += len(data)
        except OSError as error:
            raise DamagedSource(f"{path}: tensor {name!r} cannot be read: {error}") from error

    def _bos(self, tokenizer_config: Mapping[str, Any]) -> int | None:
        """The id of the tokenizer's bos token; the config's where the tokenizer does not say (an explicit null says none)."""
        if "bos_token" not in tokenizer_config or self.tokenizer is None:
            bos = self.config.get("bos_token_id")
            return bos if isinstance(bos, int) else None
        bos = tokenizer_config["bos_token"]
        text = bos.get("content") if isinstance(bos, dict) else bos
        if text is None:
            return None
        from tokenizers import Tokenizer

        found: int | None = parse_tokenizer(
            f"{self.where}/tokenizer.json", self.tokenizer, Tokenizer
        ).token_to_id(text)
        return found


def parse_tokenizer(where: str, data: bytes, kind: Any) -> Any:
    """The tokenizers library's object. Raises DamagedSource with the library's reason."""
    try:
        return kind.from_str(data.decode())
    except Exception as error:  # the library raises bare Exception
        raise DamagedSource(f"{where}: not a tokenizer of the tokenizers library: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises DamagedSource, naming the file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedSource(f"{path}: missing; a Hugging Face model folder has a {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedSource(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DamagedSource(f"{path}: not a JSON object")
    return content


def read_header(path: Path) -> dict[str, Entry]:
    """Entries of a safetensors file. Raises DamagedSource, naming the file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = header_length(file.read(8), size)
            return parse_header(file.read(length), size)
    except FileNotFoundError:
        raise DamagedSource(f"{path}: missing; the checkpoint is not complete") from None
    except (OSError, ValueError) as error:
        raise DamagedSource(f"{path}: not a whole safetensors file: {error}; fetch it again") from error


def _weight_files(path: Path) -> dict[Path, set[str] | None]:
    """Weight files and, where shards have an index, the tensors that each must hold."""
    if (path / SINGLE).exists():
        return {path / SINGLE: None}
    if not (path / SHARDS).exists():
        pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES)
        if pickles:
            raise UnsupportedSource(
                f"{path}: has {pickles[0]} and no {SINGLE}: pickle can run code when it is read, so it is never read; "
                "save the model again with safe_serialization, or take a checkpoint with safetensors"
            )
        raise DamagedSource(f"{path}: has neither {SINGLE} nor {SHARDS}")
    weight_map = read_json(path / SHARDS).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DamagedSource(f"{path / SHARDS}: weight_map is missing or empty")
    shards: dict[Path, set[str] | None] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors", shard):
            raise DamagedSource(
                f"{path / SHARDS}: weight_map[{name!r}] is {shard!r}, not the plain name of a .safetensors file in this folder"
            )
        names = shards.setdefault(path / shard, set())
        assert names is not None
        names.add(name)
    return shards


def _optional_bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedSource(f"{path}: cannot be read: {error}") from error


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _chat_template(path: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """``chat_template.jinja``, else that of tokenizer_config.json: a string, or a list whose ``default`` is taken."""
    data = _optional_bytes(path / "chat_template.jinja")
    if data is not None:
        where = str(path / "chat_template.jinja")
        try:
            return checked_template(where, data.decode())
        except UnicodeDecodeError as error:
            raise DamagedSource(f"{where}: not UTF-8: {error}") from error
    where = f"{path / 'tokenizer_config.json'}: chat_template"
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise DamagedSource(f"{where} is not text")
    return None if template is None else checked_template(where, template)


def checked_template(where: str, template: str) -> str:
    """The template, if it is jinja: one that is not would be met by the first who serves the model.

    Raises:
        DamagedSource: with the line of the fault.
    """
    from splitinfer.segment_runtime.text.renderer import fault_of

    fault = fault_of(template)
    if fault is not None:
        raise DamagedSource(
            f"{where}: not a jinja template: {fault}; mend it, or remove it: the model then completes, and cannot chat"
        )
    return template


def _eos(generation: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, ...]:
    """As transformers' generate takes them: generation_config.json before config.json."""
    for source in (generation, config):
        value = source.get("eos_token_id")
        if isinstance(value, int):
            return (value,)
        if isinstance(value, list) and value and all(isinstance(v, int) for v in value):
            return tuple(value)
    return ()
