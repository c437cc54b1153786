"""What this machine gives now: memory, CPUs, how busy they are, and how many threads want them.

Everything is read below ``root``, so that tests have machines of files. None stands for what the machine does not say.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

from splitinfer.profiler.control_groups import cpu_quota, memory_left, text_of
from splitinfer.profiler.window import Counters, CpuTime

ROOT = Path("/")


def available_memory(root: Path = ROOT) -> int | None:
    """Bytes that can be taken now without swapping, under the control groups' limits."""
    found = [value for value in (_meminfo(root), memory_left(root)) if value is not None]
    return min(found, default=None)


def usable_cpus(root: Path = ROOT) -> float:
    """CPUs that a process here may use on average: the affinity, and the control groups' quota, which may be a part of one."""
    if hasattr(os, "sched_getaffinity"):
        affinity = len(os.sched_getaffinity(0))
    else:  # not on Linux
        affinity = os.cpu_count() or 1
    quota = cpu_quota(root)
    return float(affinity) if quota is None else min(float(affinity), quota)


def machine_cpus(root: Path = ROOT) -> int | None:
    """CPUs that are online, whoever may use them."""
    names = [line.split()[0] for line in (text_of(root / "proc/stat") or "").splitlines() if line.strip()]
    return sum(name.startswith("cpu") and name[3:].isdigit() for name in names) or None


def cpu_time(root: Path = ROOT) -> CpuTime | None:
    """From ``/proc/stat``."""
    for line in (text_of(root / "proc/stat") or "").splitlines():
        name, *fields = line.split()
        if name == "cpu" and len(fields) >= 8 and all(field.isdigit() for field in fields[:8]):
            user, nice, system, idle, iowait, irq, softirq, steal = map(int, fields[:8])
            return CpuTime(user + system + irq + softirq + steal, nice, idle + iowait)
    return None


def counters(at: float, root: Path = ROOT) -> Counters:
    """For a window, at this time of a monotonic clock."""
    return Counters(at, cpu_time(root), own_cpu_seconds())


def runnable_threads(root: Path = ROOT) -> int | None:
    """Threads that run or want to run at this moment, whoever's; this one, which reads, is left out.

    From ``/proc/loadavg``: the number that ``/proc/stat`` has as ``procs_running``, for a tenth of the work.
    """
    words = (text_of(root / "proc/loadavg") or "").split()
    running, slash, _ = words[3].partition("/") if len(words) > 3 else ("", "", "")
    # A kernel that says 0 does not count: the reader itself runs.
    return int(running) - 1 if slash and running.isdigit() and int(running) >= 1 else None


def own_cpu_seconds() -> float:
    """CPU time of this process, without its children's."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def children_cpu_seconds() -> float:
    """CPU time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _meminfo(root: Path) -> int | None:
    for line in (text_of(root / "proc/meminfo") or "").splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "MemAvailable:" and words[1].isdigit():
            return int(words[1]) * 1024
    return None
