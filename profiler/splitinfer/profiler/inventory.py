"""The inventory: which nodes there are, where, and whom the owner trusts.

Trust comes from here and from nowhere else: neither an agent nor any series that Prometheus scrapes may say that its node
is trusted. Labels come from here too, because manifests select trusted nodes by labels.

Errors
------
InventoryError            an entry that cannot be used; the message names the field
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, ValidationError

from splitinfer.optimizer.values import Fraction, Name, Value, explain


class InventoryError(Exception):
    """Entries that cannot be used.

    Attributes:
        problems: ``(field, what is wrong)`` of each.
    """

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {words}" for field, words in problems))
        self.problems = problems


class Entry(Value):
    """One node. The fields mean what they mean in a snapshot."""

    site: Name | None = None
    labels: Mapping[str, str] = {}
    trusted: bool = False
    trust: Fraction | None = None


class Inventory(Value):
    """Nodes by name. A node that has no entry is trusted with nothing, and has no labels."""

    nodes: Annotated[Mapping[Name, Entry], Field(max_length=2000)] = {}


def inventory(given: object) -> Inventory:
    """The inventory of a document, as YAML gives it. Raises InventoryError."""
    try:
        return Inventory.model_validate(given)
    except ValidationError as error:
        raise InventoryError(explain(error)) from None
