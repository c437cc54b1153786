"""The solver made ready before it is asked: on a new machine its inner loops are compiled first, and someone waits."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

PATIENCE_SECONDS = 5.0
"""Out of the cache it takes one or two."""
NOTE = "compiling the solver for this machine; once, about half a minute"


def _say() -> None:
    print(NOTE, file=sys.stderr, flush=True)


def ready_solver(
    warm_up: Callable[[], None] | None = None,
    say: Callable[[], None] = _say,
    patience_seconds: float = PATIENCE_SECONDS,
) -> None:
    """Compile, or load what was compiled before; tell whoever waits for longer than a load takes."""
    if warm_up is None:
        from splitinfer.optimizer.solver import warm_up as default

        warm_up = default
    late = threading.Timer(patience_seconds, say)
    late.daemon = True
    late.start()
    try:
        warm_up()
    finally:
        late.cancel()
