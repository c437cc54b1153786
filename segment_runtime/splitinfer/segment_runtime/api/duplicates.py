"""Keys that a JSON object has twice: parsers keep the last one, which would silently ignore the others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any


class _Repeating(dict[str, Any]):
    """An object with a key that came more than once."""

    repeated: str


def repeated_key(body: bytes) -> str | None:
    """The path of the first key that its object has twice (``messages[0].role``), or None.

    Args:
        body: JSON that a stricter parser has taken, so that neither its depth nor its numbers can break this one.
    """
    found: list[_Repeating] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) == len(pairs):
            return content
        repeating = _Repeating(content)
        repeating.repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        found.append(repeating)
        return repeating

    parsed = json.loads(body, object_pairs_hook=collect)
    if not found:
        return None
    # One that is inside a value that a later key of the same name replaced has no path of its own any more.
    return next(_paths(parsed, ""), found[0].repeated)


def _paths(value: object, at: str) -> Iterator[str]:
    if isinstance(value, _Repeating):
        yield f"{at}.{value.repeated}" if at else value.repeated
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, f"{at}.{key}" if at else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            if isinstance(inner, dict | list):
                yield from _paths(inner, f"{at}[{index}]")
