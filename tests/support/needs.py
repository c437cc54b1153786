"""What tests need of the machine; one that cannot have it is skipped by name, or fails where everything is to run.

With ``SPLITINFER_RUN_ALL=1`` in the environment nothing is skipped for a need.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import pytest

from tests.support.groups import any_hierarchy, cpu_group, cpu_hierarchy, kill_group

RUN_ALL = "SPLITINFER_RUN_ALL"
SHAPED = ("unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "1mbit", "burst", "16kb",
          "latency", "50ms")  # fmt: skip


@cache
def lacking_networks() -> tuple[str, ...]:
    """Of what namespaces, shaped links and delay lines need."""
    programs = tuple(
        f"the program {name}" for name in ("ip", "tc", "nsenter", "unshare") if not shutil.which(name)
    )
    if os.geteuid() != 0 or programs:
        return (*(("root",) if os.geteuid() != 0 else ()), *programs)
    found = []
    tried = subprocess.run(SHAPED, capture_output=True, text=True)
    if tried.returncode != 0:
        found.append(f"network namespaces with tbf ({tried.stderr.strip()})")
    if not Path("/dev/net/tun").exists():
        found.append("/dev/net/tun")
    return (*found, *_lacking_groups(any_hierarchy, kill_group))


@cache
def lacking_cpu_groups() -> tuple[str, ...]:
    """Of what CPU quotas need."""
    if os.geteuid() != 0:
        return ("root",)
    return _lacking_groups(cpu_hierarchy, lambda: cpu_group(1.0))


def _lacking_groups(
    where: Callable[[], object], made: Callable[[], AbstractContextManager[object]]
) -> tuple[str, ...]:
    """Whether one can be made is tried: a container may have them read-only, or full of processes at the top."""
    if where() is None:
        return ("control groups",)
    try:
        with made():
            return ()
    except (OSError, AssertionError) as error:
        return (f"control groups that can be made ({error})",)


def _needs(lacking: tuple[str, ...]) -> pytest.MarkDecorator:
    skip = bool(lacking) and os.environ.get(RUN_ALL) != "1"
    return pytest.mark.skipif(skip, reason=f"needs {' and '.join(lacking)}")


needs_networks = _needs(lacking_networks())
needs_cpu_groups = _needs(lacking_cpu_groups())
