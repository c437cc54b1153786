"""Reading a capacity snapshot: YAML in, checked values out, or every problem with its path."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from splitinfer.operator.errors import UserError
from splitinfer.operator.spec.manifest import one_document
from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.optimizer.values import OptimizerInputError, explain

MAX_BYTES = 64 << 20
"""2,000 nodes with all their pairs would be larger; such a site writes siteLinks."""


def load_snapshot(path: Path) -> CapacitySnapshot:
    """The snapshot of a file.

    Raises:
        UserError: no file, not YAML, or not a snapshot; every problem is named.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError("--capacity", f"{path}: {error.strerror}; name a snapshot file") from None
    if len(data) > MAX_BYTES:
        raise UserError(
            "--capacity", f"{path}: larger than {MAX_BYTES} bytes; write siteLinks in place of links"
        )
    try:
        return parse_snapshot(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError("--capacity", f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None


def parse_snapshot(text: str) -> CapacitySnapshot:
    """The snapshot of a text.

    Raises:
        UserError: as `load_snapshot`.
    """
    document = one_document(text, "capacity", "a file holds one snapshot")
    if not isinstance(document, dict):
        raise UserError("capacity", f"must be a mapping of fields, got {document!r}"[:200])
    try:
        return CapacitySnapshot.model_validate(document)
    except OptimizerInputError as error:
        raise UserError(f"capacity.{error.field}", error.message) from None
    except ValidationError as error:
        raise UserError.of([(f"capacity.{field}", words) for field, words in explain(error)]) from None
