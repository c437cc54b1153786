"""Runs the probe of one block: a process of its own at the lowest priority, because the profiler knows no engine."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from splitinfer.profiler.speeds import ProbeError, ProbeResult, parse_probe

PROBE_MODULE = "splitinfer.segment_runtime.probe"
PROBE_SECONDS = 60.0
"""A model that is not in the page cache takes a while to be read."""
LOWEST_PRIORITY = 19


def probe_command(options: Mapping[str, object]) -> Sequence[str]:
    """With the probe's own options; those that are None are left out."""
    given = [part for name, value in options.items() if value is not None for part in (name, str(value))]
    return (sys.executable, "-P", "-m", PROBE_MODULE, *given)


async def probe(command: Sequence[str]) -> ProbeResult | str:
    """What it found, or why there is nothing."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        # Looking for plugins of pydantic, which none of ours is, takes 3 % of a probe.
        env=os.environ | {"PYDANTIC_DISABLE_PLUGINS": "__all__"},
    )  # fmt: skip
    with suppress(ProcessLookupError, PermissionError):
        os.setpriority(os.PRIO_PROCESS, process.pid, LOWEST_PRIORITY)
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            out, said = await process.communicate()
    except TimeoutError:
        return f"the probe took more than {PROBE_SECONDS:g} s"
    finally:
        if process.returncode is None:  # too slow, or the agent ends
            process.kill()
            await process.wait()
    if process.returncode != 0:
        lines = said.decode(errors="replace").strip().splitlines()
        return (lines[-1] if lines else f"the probe ended with {process.returncode}").removeprefix("error: ")
    try:
        return parse_probe(out.decode(errors="replace"))
    except ProbeError as error:
        return str(error)
