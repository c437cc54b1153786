"""Units in memory, each at most once, by what makes two of them the same.

A unit lives as long as somebody holds it. The registry holds only weak references, so that dropping the last
range that uses a block frees it at once and there is no count to get wrong.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

UnitKey = tuple[str, str, str]
"""Model digest, dtype, unit."""


class Unit(Protocol):
    """Something with bytes."""

    nbytes: int


U = TypeVar("U", bound=Unit)


class UnitRegistry(Generic[U]):
    """Loaded units by key. Thread-safe; one unit loads at a time."""

    def __init__(self) -> None:
        self._units: weakref.WeakValueDictionary[UnitKey, U] = weakref.WeakValueDictionary()
        self._loading = threading.Lock()

    def get(self, key: UnitKey, load: Callable[[], U]) -> U:
        """The unit, loaded if nobody holds it now."""
        with self._loading:
            unit = self._units.get(key)
            if unit is None:
                unit = load()
                self._units[key] = unit
            return unit

    @property
    def nbytes(self) -> int:
        """Bytes of all units that somebody holds."""
        return sum(unit.nbytes for unit in list(self._units.values()))
