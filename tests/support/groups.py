"""Control groups of version 1 and 2 that never outlive the test: each is held by a warden (`tests.support.warden`)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import warden

MOUNTS = Path("/proc/self/mounts")
PERIOD_MICROSECONDS = 100_000
"""The kernel's default, and what Kubernetes uses."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where groups are made: a mounted hierarchy of version 1 or 2."""

    root: Path
    version: int


def cpu_hierarchy(mounts: Path = MOUNTS) -> Hierarchy | None:
    """The one whose groups limit CPU time, or None where none can."""
    for kind, root, options in _mounted(mounts):
        if kind == "cgroup" and "cpu" in options:
            return Hierarchy(root, 1)
        if kind == "cgroup2" and "cpu" in (root / "cgroup.controllers").read_text().split():
            return Hierarchy(root, 2)
    return None


def any_hierarchy(mounts: Path = MOUNTS) -> Hierarchy | None:
    """One that holds processes together, and limits nothing if there is such a one."""
    found = [Hierarchy(root, 2) for kind, root, _ in _mounted(mounts) if kind == "cgroup2"]
    return found[0] if found else cpu_hierarchy(mounts)


def _mounted(mounts: Path) -> Iterator[tuple[str, Path, list[str]]]:
    for line in mounts.read_text().splitlines():
        _device, root, kind, options, *_ = line.split()
        yield kind, Path(root), options.split(",")


@dataclass(frozen=True, slots=True)
class Group:
    """A group that exists.

    Attributes:
        path: its folder.
        version: of its hierarchy.
    """

    path: Path
    version: int

    def command(self, *command: str) -> list[str]:
        """``command``, to be started as a member; it keeps the process id that Popen gives."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.path / "cgroup.procs"), *command]

    def members(self) -> list[int]:
        """Process ids."""
        return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]


@dataclass(frozen=True, slots=True)
class CpuGroup(Group):
    """A group whose CPU time is limited."""

    def limit(self, cpus: float | None) -> None:
        """So many CPUs together from now on, also while members run; None: as many as there are."""
        quota = None if cpus is None else int(cpus * PERIOD_MICROSECONDS)
        if self.version == 2:
            (self.path / "cpu.max").write_text(f"{'max' if quota is None else quota} {PERIOD_MICROSECONDS}")
        else:
            (self.path / "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS))
            (self.path / "cpu.cfs_quota_us").write_text(str(-1 if quota is None else quota))

    def throttled(self) -> int:
        """Periods in which members wanted more than there was."""
        lines = (self.path / "cpu.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("nr_throttled "))


@contextmanager
def held(hierarchy: Hierarchy) -> Iterator[Path]:
    """A new group; on the way out, and when this process is killed, its members are killed and it goes."""
    path = hierarchy.root / f"splitinfer-test-{os.getpid()}-{os.urandom(4).hex()}"
    keeper = subprocess.Popen(
        [sys.executable, "-I", warden.__file__, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    with keeper.stdout:
        try:
            assert keeper.stdout.readline() == b"ready\n", f"{path} cannot be made"
            yield path
        finally:
            keeper.stdin.close()
            code = keeper.wait(2 * warden.EMPTY_SECONDS)
    assert code == 0, f"{path} could not be removed"


@contextmanager
def kill_group() -> Iterator[Group]:
    """A group without limits: what is started in it, with all children, ends with the block."""
    hierarchy = any_hierarchy()
    assert hierarchy is not None
    with held(hierarchy) as path:
        yield Group(path, hierarchy.version)


@contextmanager
def cpu_group(quota_cpus: float | None = None) -> Iterator[CpuGroup]:
    """A group that has ``quota_cpus`` CPUs in every 100 ms: what runs in it is truly slow."""
    hierarchy = cpu_hierarchy()
    assert hierarchy is not None
    if hierarchy.version == 2:
        (hierarchy.root / "cgroup.subtree_control").write_text("+cpu")
    with held(hierarchy) as path:
        group = CpuGroup(path, hierarchy.version)
        group.limit(quota_cpus)
        yield group
