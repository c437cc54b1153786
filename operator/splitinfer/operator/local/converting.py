"""The stored model converted to few bits before the hosts start: one process does it, and what it does is shown."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from splitinfer.operator.errors import CommandFailed
from splitinfer.operator.local.process import Child
from splitinfer.operator.local.show import Screen

GRACE_SECONDS = 5.0
"""What a conversion gets to put its half-written file away."""


async def convert_ahead(command: Sequence[str], logs: Path, dtype: str, screen: Screen) -> None:
    """Run the conversion to its end, or until cancelled; it is gone when this returns.

    Raises:
        CommandFailed: it refuses the model, or ended otherwise; its last words are in the message.
    """

    def heard(said: Mapping[str, Any]) -> None:
        match said:
            case {"event": "converting", "done_bytes": int(done), "total_bytes": int(total)}:
                screen.progress(f"converting to {dtype}", done, total)
            case {"event": "converted", "exact": int(exact), "total": int(total)}:
                screen.note(
                    f"converted to {dtype}: {exact} of {total} matrices repacked without quantising a second time"
                )
            case {"event": "not kept", "reason": str(reason)}:
                screen.note(f"the conversion to {dtype} is not kept, so each host makes its own: {reason}")

    ended = asyncio.Event()
    try:
        child = await Child.start(command, logs / "convert.log", ended.set, heard)
    except OSError as error:
        raise CommandFailed(f"the conversion to {dtype} cannot be started: {error}") from error
    try:
        await ended.wait()
    finally:
        await child.stop(GRACE_SECONDS)
    if child.exit_code:
        words = "".join(f"\n  {line}" for line in child.last_words())
        raise CommandFailed(
            f"the model was not converted to {dtype}; the last words (all of it in {child.log}):{words}"
        )
