"""How many CPUs this process may use: the affinity mask, capped by the cgroup's CPU quota.

A container limited to two CPUs on a machine of sixty-four sees sixty-four in `os.cpu_count`; an engine that
starts sixty-four threads there is throttled to a crawl. The parsers are pure; `usable_cpus` reads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MAX_THREADS = 512
"""More than CPUs of one machine. Tens of thousands only wait for one another, and nothing ever comes of it."""


def parse_cpu_max(text: str) -> float | None:
    """CPUs of a cgroup v2 ``cpu.max`` (``"200000 100000"``), None where there is no limit."""
    fields = text.split()
    if len(fields) != 2 or fields[0] == "max":
        return None
    return _quota(fields[0], fields[1])


def parse_cfs(quota: str, period: str) -> float | None:
    """CPUs of a cgroup v1 ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us``, None where there is no limit."""
    return _quota(quota.strip(), period.strip())


def _quota(quota: str, period: str) -> float | None:
    try:
        quota_us, period_us = int(quota), int(period)
    except ValueError:
        return None
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None


def parse_cgroup(text: str) -> tuple[str | None, str | None]:
    """Group paths in ``/proc/self/cgroup``: (v2 path, v1 path of the ``cpu`` controller)."""
    unified, cpu = None, None
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        number, controllers, path = parts
        if number == "0" and not controllers:
            unified = path
        elif "cpu" in controllers.split(","):
            cpu = path
    return unified, cpu


def effective_cpus(affinity: int, quotas: list[float]) -> int:
    """Whole CPUs to use: the affinity, capped by the smallest quota rounded up, at least one.

    Rounded up because a quota of 1.5 CPUs serves two threads that are busy three quarters of the time.
    """
    return max(1, min([affinity, *(math.ceil(quota) for quota in quotas)]))


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may use now."""
    if hasattr(os, "sched_getaffinity"):
        affinity = len(os.sched_getaffinity(0))
    else:  # not on Linux
        affinity = os.cpu_count() or 1
    return effective_cpus(affinity, list(_quotas(root)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs of the smallest quota that binds this process now; None where there is none."""
    return min(_quotas(root), default=None)


def _quotas(root: Path) -> Iterator[float]:
    """The quota of every group from ours up to the root: a limit anywhere above binds too."""
    unified, cpu = parse_cgroup(_read(root / "proc/self/cgroup") or "")
    mount = root / "sys/fs/cgroup"
    for base in (mount, mount / "unified"):
        for folder in _ancestors(base, unified):
            if (text := _read(folder / "cpu.max")) is not None and (quota := parse_cpu_max(text)) is not None:
                yield quota
    for base in (mount / "cpu", mount / "cpu,cpuacct"):
        for folder in _ancestors(base, cpu):
            quota_text, period_text = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
            if quota_text is None or period_text is None:
                continue
            if (quota := parse_cfs(quota_text, period_text)) is not None:
                yield quota


def _ancestors(base: Path, group: str | None) -> Iterator[Path]:
    """``base``/``group`` and its parents up to ``base``, which is our own group inside a container."""
    path = PurePosixPath("/") / (group or "/")
    if ".." in path.parts:  # a group outside our namespace: only the mount's root can be read
        path = PurePosixPath("/")
    for folder in (path, *path.parents):
        yield base / folder.relative_to("/")


def _read(path: Path) -> str | None:
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return None
