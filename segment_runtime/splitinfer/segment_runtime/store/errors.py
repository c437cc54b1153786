"""Errors of the model store.

StoreError                base: says which model, file and field, and the mend
├── ModelNotFound         no such model in the store
├── BadHome               $SPLITINFER_HOME is no folder, or one that may not be used
├── BadName               a model name that cannot be a folder name
├── SourceNotFound        what to import does not exist
├── UnsupportedSource     an architecture, format or option that is refused by name, with the reason
├── DamagedSource         a source file that does not hold what it says or what its model needs
├── DamagedModel          a stored file whose bytes are not those of the index
│   └── ReplacedModel     the model was imported again, with other content, while it was open
└── ImportFailed          an import that stopped (disk full, network, interrupted); nothing is left behind
    └── DiskFull          with the bytes needed and the bytes free
"""

from __future__ import annotations


class StoreError(Exception):
    """Something about a stored model is not as it must be."""


class ModelNotFound(StoreError):
    """No such model in the store."""


class BadHome(StoreError):
    """``$SPLITINFER_HOME`` is no folder, or one that may not be used."""


class BadName(StoreError):
    """A model name that cannot be a folder name."""


class SourceNotFound(StoreError):
    """What to import does not exist."""


class UnsupportedSource(StoreError):
    """Refused by name, with the reason."""


class DamagedSource(StoreError):
    """A source file that does not hold what it says or what its model needs."""


class DamagedModel(StoreError):
    """A file whose bytes are not those of the index."""


class ReplacedModel(DamagedModel):
    """The model was imported again, with other content, while it was open; open it anew."""


class ImportFailed(StoreError):
    """An import that stopped; nothing is left behind."""


class DiskFull(ImportFailed):
    """No room for the model.

    Attributes:
        needed_bytes: what the whole model takes.
        free_bytes: what the file system had free when it was asked.
    """

    def __init__(self, message: str, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
