"""Block ranges as people write them: ``"0-9"`` is blocks 0 to 9, both included; ``"29"`` is one block."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

PATTERN = r"^[0-9]{1,4}(-[0-9]{1,4})?$"
_EXAMPLE = 'write "first-last", both included, such as "0-9", or one block, such as "29"'


def parse_blocks(text: str) -> tuple[int, int]:
    """``"5-9"`` as the half-open ``(5, 10)``.

    Raises:
        ValueError: not a range, or one that ends before it starts.
    """
    if not re.fullmatch(PATTERN, text):
        raise ValueError(f"{text!r} is not a block range; {_EXAMPLE}")
    first, _, last = text.partition("-")
    start, stop = int(first), int(last or first) + 1
    if stop <= start:
        raise ValueError(f"{text!r} ends before it starts; write {f'{last}-{first}'!r}")
    return start, stop


def format_blocks(start: int, stop: int) -> str:
    """The half-open ``[start, stop)`` as people write it."""
    return str(start) if stop == start + 1 else f"{start}-{stop - 1}"


def _checked(text: str) -> str:
    parse_blocks(text)
    return text


BlockRange = Annotated[
    str,
    Field(max_length=9, json_schema_extra={"pattern": PATTERN}),
    AfterValidator(_checked),
]
