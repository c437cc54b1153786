"""Machine code for the inner loops, compiled once per installation and kept on disk.

numba writes what it compiles beside this package, or, where that is read-only, to the user's cache folder, or to
``NUMBA_CACHE_DIR``. Where none of them can be written (a container with a read-only root and no home), it is compiled
anew in each process, which takes some ten seconds of one CPU: an image is best built with a step that runs
`splitinfer.optimizer.solver.warm_up`, so that the cache is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile at the first call; from the disk's copy where there is one."""
    try:
        made: Callable[P, R] = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba's word for: no place to keep it
        made = numba.njit(nogil=True)(function)
    return made
