"""Reading a manifest: YAML in, a checked `SplitInference` out, or every problem with its path and mend."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from splitinfer.operator.errors import UserError
from splitinfer.operator.spec.resource import SplitInference

MAX_BYTES = 1 << 20
"""Larger than any manifest that Kubernetes would store."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error: the first value would be lost without a word."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[object] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (dict, list)):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"{key!r} is given twice; keep one", key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def one_document(text: str, what: str, rule: str) -> object:
    """The one YAML document of a text. Raises UserError, naming ``what``."""
    try:
        documents = list(yaml.load_all(text, Loader=_Loader))
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(what, f"not YAML: {_one_line(error)}") from None
    documents = [document for document in documents if document is not None]
    if len(documents) != 1:
        raise UserError(what, f"{len(documents)} documents; {rule}")
    return documents[0]


def read_text(path: Path, flag: str, mend: str, most: int, larger: str) -> str:
    """A file's text.

    Args:
        path: of the file.
        flag: what an error is about.
        mend: what to do where it cannot be read.
        most: bytes that it may have.
        larger: what a larger one means.

    Raises:
        UserError: no file, too large, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UserError(flag, f"{path}: {error.strerror}; {mend}") from None
    if len(data) > most:
        raise UserError(flag, f"{path}: larger than {most} bytes, {larger}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(flag, f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None


def load_manifest(path: Path) -> SplitInference:
    """The resource of a file.

    Raises:
        UserError: no file, not YAML, or not a `SplitInference`; every problem is named.
    """
    return parse_manifest(read_text(path, "-f", "name a manifest file", MAX_BYTES, "so not a manifest"))


def parse_manifest(text: str) -> SplitInference:
    """The resource of a text.

    Raises:
        UserError: as `load_manifest`.
    """
    document = one_document(text, "manifest", "a manifest holds one SplitInference")
    try:
        # JSON mode: strict about types, and lists may become tuples.
        return SplitInference.model_validate_json(json.dumps(document, default=str))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            raise UserError.of([explain(detail) for detail in error.errors()]) from None
        raise UserError("manifest", f"not a resource: {_one_line(error)}") from None


def explain(error: ErrorDetails) -> tuple[str, str]:
    """``(field path, what is wrong; what mends it)`` of one validation error."""
    field = _path(error["loc"])
    given = error["input"]
    match error["type"]:
        case "extra_forbidden":
            return field, _unknown(error["loc"])
        case "missing":
            return field, "is missing; it has no default"
        case "string_type":
            return field, f'must be text, got {given!r}; put it in quotes: "{given}"'
        case "int_type" | "int_from_float" | "int_parsing":
            return field, f"must be a whole number, got {given!r}"
        case "string_pattern_mismatch" if field == "spec.model.source":
            return field, (
                f"{given!r} is not a source; write store://NAME, file:///PATH, pvc://CLAIM/PATH "
                "or hf://ORG/NAME@REVISION"
            )
        case "value_error":
            return field, error["msg"].removeprefix("Value error, ")
        case "model_type" | "model_attributes_type":
            return field, f"must be a mapping of fields, got {given!r}"
        case _:
            message = error["msg"][:1].lower() + error["msg"][1:]
            return field, f"{message}, got {given!r}"


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".") or "manifest"


def _unknown(loc: tuple[int | str, ...]) -> str:
    known = _fields_at(loc[:-1])
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    if close:
        return f"no such field; did you mean {close[0]}?"
    return f"no such field; there are {', '.join(known)}"


def _fields_at(loc: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the model that a path leads to."""
    model: type[BaseModel] = SplitInference
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = next(f.annotation for f in model.model_fields.values() if f.alias == part)
        candidates = [annotation, *get_args(annotation)]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return [field.alias or name for name, field in model.model_fields.items()]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
