"""What this machine gives: free memory, under the control group's limits."""

from __future__ import annotations

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def available_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Bytes that can be taken now without swapping, or None where the machine does not say."""
    found = [value for value in (_meminfo(meminfo), _cgroup_memory(cgroup)) if value is not None]
    return min(found, default=None)


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
