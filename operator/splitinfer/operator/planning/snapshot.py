"""Reading a capacity snapshot: YAML in, checked values out, or every problem with its path."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from splitinfer.operator.errors import UserError
from splitinfer.operator.spec.manifest import one_document, read_text
from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.optimizer.values import OptimizerInputError, explain

MAX_BYTES = 64 << 20
"""2,000 nodes with all their pairs would be larger; such a site writes siteLinks."""


def load_snapshot(path: Path) -> CapacitySnapshot:
    """The snapshot of a file.

    Raises:
        UserError: no file, not YAML, or not a snapshot; every problem is named.
    """
    larger = "so write siteLinks in place of links"
    return parse_snapshot(read_text(path, "--capacity", "name a snapshot file", MAX_BYTES, larger))


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
