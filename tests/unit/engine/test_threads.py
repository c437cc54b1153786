"""CPU limits: from what the kernel says to a number of threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from splitinfer.segment_runtime.engine.threads import (
    effective_cpus,
    parse_cfs,
    parse_cgroup,
    parse_cpu_max,
    usable_cpus,
)

OURS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", None),
        ("200000 100000\n", 2.0),
        ("150000 100000", 1.5),
        ("50000 100000", 0.5),
        ("", None),
        ("garbage 1", None),
        ("100000", None),
        ("100000 0", None),
    ],
)
def test_cpu_max(text: str, expected: float | None) -> None:
    """The cgroup v2 file: quota over period; ``max`` and what is no number is no limit."""
    assert parse_cpu_max(text) == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [
        ("-1\n", "100000\n", None),
        ("400000\n", "100000\n", 4.0),
        ("x", "100000", None),
        ("25000", "100000", 0.25),
    ],
)
def test_cfs(quota: str, period: str, expected: float | None) -> None:
    """The cgroup v1 files: minus one is no limit."""
    assert parse_cfs(quota, period) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0::/kubepods/pod1\n", ("/kubepods/pod1", None)),
        ("12:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n", (None, "/docker/abc")),
        ("4:cpuset:/a\n5:cpu:/b\n0::/c:with:colons\n", ("/c:with:colons", "/b")),
        ("nonsense\n", (None, None)),
    ],
)
def test_cgroup(text: str, expected: tuple[str | None, str | None]) -> None:
    """Our group in both hierarchies; ``cpuset`` is not ``cpu``."""
    assert parse_cgroup(text) == expected


@pytest.mark.parametrize(
    ("affinity", "quotas", "expected"),
    [(8, [], 8), (8, [2.0], 2), (8, [1.5], 2), (8, [0.1], 1), (2, [16.0], 2), (8, [4.0, 3.0], 3)],
)
def test_effective(affinity: int, quotas: list[float], expected: int) -> None:
    """The tightest limit wins; a part of a CPU counts as one; never none."""
    assert effective_cpus(affinity, quotas) == expected


def write(path: Path, text: str) -> None:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "ascii")


def test_reads_v2_of_a_parent(tmp_path: Path) -> None:
    """The limit of the pod binds its containers, whose own file says ``max``."""
    write(tmp_path / "proc/self/cgroup", "0::/pod/container\n")
    write(tmp_path / "sys/fs/cgroup/pod/container/cpu.max", "max 100000\n")
    write(tmp_path / "sys/fs/cgroup/pod/cpu.max", "100000 100000\n")
    assert usable_cpus(tmp_path) == 1


def test_reads_v1_at_the_mount(tmp_path: Path) -> None:
    """Inside a container the group's path is the host's, and its files are at the mount's root."""
    write(tmp_path / "proc/self/cgroup", "2:cpu,cpuacct:/docker/abc\n")
    write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "100000\n")
    write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert usable_cpus(tmp_path) == 1


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    """No files, no limit but the affinity mask."""
    assert usable_cpus(tmp_path) == OURS


def test_a_group_outside_the_namespace_does_not_escape_the_mount(tmp_path: Path) -> None:
    """A path with ``..`` is read as the mount's root."""
    write(tmp_path / "proc/self/cgroup", "0::/../../elsewhere\n")
    write(tmp_path / "sys/fs/cgroup/cpu.max", "100000 100000\n")
    assert usable_cpus(tmp_path) == 1
