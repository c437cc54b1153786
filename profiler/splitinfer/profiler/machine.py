"""What this machine gives: free memory under the control group's limits, and how busy its CPUs are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
STAT = Path("/proc/stat")


def available_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Bytes that can be taken now without swapping, or None where the machine does not say."""
    found = [value for value in (_meminfo(meminfo), _cgroup_memory(cgroup)) if value is not None]
    return min(found, default=None)


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Jiffies of all CPUs since the machine started."""

    busy: int
    idle: int


def cpu_time(stat: Path = STAT) -> CpuTime | None:
    """From ``/proc/stat``; None where there is none. Waiting for I/O is idle; what a hypervisor took is busy."""
    for line in _text(stat).splitlines():
        name, *fields = line.split()
        if name == "cpu" and len(fields) >= 8 and all(field.isdigit() for field in fields[:8]):
            user, nice, system, idle, iowait, irq, softirq, steal = map(int, fields[:8])
            return CpuTime(user + nice + system + irq + softirq + steal, idle + iowait)
    return None


def utilisation(before: CpuTime | None, after: CpuTime | None) -> float | None:
    """Share of the time between two readings that CPUs were busy, 0 to 1; None without a window to tell it from."""
    if before is None or after is None:
        return None
    busy, idle = after.busy - before.busy, after.idle - before.idle
    if busy < 0 or idle < 0 or busy + idle == 0:
        return None
    return busy / (busy + idle)


def _meminfo(path: Path) -> int | None:
    for line in _text(path).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_memory(cgroup: Path) -> int | None:
    pairs = (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    )
    for limit_file, used_file in pairs:
        limit, used = _words(cgroup / limit_file), _words(cgroup / used_file)
        if limit and used and limit[0].isdigit():
            return max(0, int(limit[0]) - int(used[0]))
    return None


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return ""
