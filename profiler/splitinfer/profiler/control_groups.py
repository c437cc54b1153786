"""What control groups let this process have: CPU time and memory, in version 1, version 2 and both side by side.

A limit of any group above binds too, so every group from ours up to the root is asked and the smallest answer counts. In
a container the path in ``/proc/self/cgroup`` may be the host's, and the mount's root is our own group: folders that are
not there are passed over. The runtime has the rule for CPUs in words of its own (`engine.threads`), as neither package
imports the other; a test holds them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

_MOUNT = Path("sys/fs/cgroup")
_UNIFIED = (_MOUNT, _MOUNT / "unified")
_CPU = (_MOUNT / "cpu", _MOUNT / "cpu,cpuacct")
_MEMORY = (_MOUNT / "memory",)


def text_of(path: Path) -> str | None:
    """A file of the kernel's; None where it is not there or may not be read."""
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return None


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs that the smallest quota allows on average; None where there is no quota."""
    unified, controllers = _groups(text_of(root / "proc/self/cgroup") or "")
    pairs = [_pair(text_of(folder / "cpu.max")) for folder in _folders(root, _UNIFIED, unified)]
    pairs += [
        (text_of(folder / "cpu.cfs_quota_us"), text_of(folder / "cpu.cfs_period_us"))
        for folder in _folders(root, _CPU, controllers.get("cpu"))
    ]
    quotas = [_quota(*pair) for pair in pairs]
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_left(root: Path = Path("/")) -> int | None:
    """Bytes until the tightest limit; None where there is no limit.

    File pages that nobody used of late count as free, as the kubelet counts them: the kernel drops them before it
    refuses anything.
    """
    unified, controllers = _groups(text_of(root / "proc/self/cgroup") or "")
    found = [
        _left(folder, "memory.max", "memory.current", "inactive_file")
        for folder in _folders(root, _UNIFIED, unified)
    ]
    found += [
        _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        for folder in _folders(root, _MEMORY, controllers.get("memory"))
    ]
    return min((left for left in found if left is not None), default=None)


def _groups(text: str) -> tuple[str | None, Mapping[str, str]]:
    """Our group in version 2, and per controller of version 1."""
    unified: str | None = None
    controllers: dict[str, str] = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        names, colon, path = rest.partition(":")
        if not colon:
            continue
        if number == "0" and not names:
            unified = path
        controllers |= dict.fromkeys(names.split(","), path)
    return unified, controllers


def _folders(root: Path, mounts: tuple[Path, ...], group: str | None) -> Iterator[Path]:
    """The group's folder below each mount, and its parents' up to the mount."""
    path = PurePosixPath("/") / (group or "/")
    if ".." in path.parts:  # a group outside our namespace: only the mount's root can be read
        path = PurePosixPath("/")
    for mount in mounts:
        for folder in (path, *path.parents):
            yield root / mount / folder.relative_to("/")


def _pair(text: str | None) -> tuple[str | None, str | None]:
    words = (text or "").split()
    return (words[0], words[1]) if len(words) == 2 else (None, None)


def _quota(quota: str | None, period: str | None) -> float | None:
    microseconds, of = _number(quota), _number(period)  # "max" and -1 are no limit
    return microseconds / of if microseconds and of else None


def _left(folder: Path, limit: str, used: str, droppable: str) -> int | None:
    most, now = _number(text_of(folder / limit)), _number(text_of(folder / used))
    if most is None or now is None:
        return None
    stat = dict(_pair(line) for line in (text_of(folder / "memory.stat") or "").splitlines())
    return max(0, most - max(0, now - (_number(stat.get(droppable)) or 0)))


def _number(text: str | None) -> int | None:
    word = (text or "").strip()
    return int(word) if word.isdigit() else None
