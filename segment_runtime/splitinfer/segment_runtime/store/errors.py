"""Errors of the model store.

StoreError                base: says which model, file and field, and the mend
├── ModelNotFound         no such model in the store
├── UnsupportedSource     an architecture, format or option that is refused by name, with the reason
├── DamagedModel          a file whose bytes are not those of the index
└── ImportFailed          an import that stopped (disk full, network, interrupted); nothing is left behind
"""

from __future__ import annotations


class StoreError(Exception):
    """Something about a stored model is not as it must be."""


class ModelNotFound(StoreError):
    """No such model in the store."""


class UnsupportedSource(StoreError):
    """Refused by name, with the reason."""


class DamagedModel(StoreError):
    """A file whose bytes are not those of the index."""


class ImportFailed(StoreError):
    """An import that stopped; nothing is left behind."""
