"""Machines of files: control groups of both versions as a process sees them, memory, CPUs."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinfer.profiler import control_groups, machine
from splitinfer.profiler.window import CpuTime
from splitinfer.segment_runtime.engine import threads

AFFINITY = len(os.sched_getaffinity(0))


def files(root: Path, **texts: str) -> Path:
    """Files below ``root``; ``__`` in a name is a slash, ``DOT`` a dot, ``COMMA`` a comma."""
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("DOT", ".").replace("COMMA", ",")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "ascii")
    return root


def test_a_machine_without_groups_has_no_limits(tmp_path: Path) -> None:
    """Nothing is known of memory, and CPUs are those of the affinity."""
    assert control_groups.memory_left(tmp_path) is None
    assert control_groups.cpu_quota(tmp_path) is None
    assert machine.available_memory(tmp_path) is None
    assert machine.usable_cpus(tmp_path) == AFFINITY


def test_the_tightest_group_of_version_2_binds(tmp_path: Path) -> None:
    """The pod's limits bind its container, whose own files say ``max`` or more."""
    files(
        tmp_path,
        proc__self__cgroup="0::/pod/container\n",
        sys__fs__cgroup__pod__container__cpuDOTmax="400000 100000\n",
        sys__fs__cgroup__pod__cpuDOTmax="50000 100000\n",
        sys__fs__cgroup__pod__container__memoryDOTmax="max\n",
        sys__fs__cgroup__pod__container__memoryDOTcurrent="700\n",
        sys__fs__cgroup__pod__memoryDOTmax="1000\n",
        sys__fs__cgroup__pod__memoryDOTcurrent="900\n",
        sys__fs__cgroup__pod__memoryDOTstat="anon 500\ninactive_file 300\nactive_file 100\n",
    )
    assert control_groups.cpu_quota(tmp_path) == 0.5
    assert machine.usable_cpus(tmp_path) == 0.5
    assert control_groups.memory_left(tmp_path) == 1000 - (900 - 300)  # what nobody reads is dropped first


def test_the_tightest_group_of_version_1_binds(tmp_path: Path) -> None:
    """Each controller has a tree of its own, and -1 and huge numbers are no limits."""
    files(
        tmp_path,
        proc__self__cgroup="5:memory:/a/b\n4:cpu,cpuacct:/a\n3:cpuset:/elsewhere\n0::/\n",
        sys__fs__cgroup__cpuCOMMAcpuacct__a__cpuDOTcfs_quota_us="150000\n",
        sys__fs__cgroup__cpuCOMMAcpuacct__a__cpuDOTcfs_period_us="100000\n",
        sys__fs__cgroup__cpuCOMMAcpuacct__cpuDOTcfs_quota_us="-1\n",
        sys__fs__cgroup__cpuCOMMAcpuacct__cpuDOTcfs_period_us="100000\n",
        sys__fs__cgroup__memory__a__b__memoryDOTlimit_in_bytes="9223372036854771712\n",
        sys__fs__cgroup__memory__a__b__memoryDOTusage_in_bytes="10\n",
        sys__fs__cgroup__memory__a__memoryDOTlimit_in_bytes="2000\n",
        sys__fs__cgroup__memory__a__memoryDOTusage_in_bytes="1500\n",
        sys__fs__cgroup__memory__a__memoryDOTstat="inactive_file 1\ntotal_inactive_file 200\n",
    )
    assert control_groups.cpu_quota(tmp_path) == 1.5
    assert control_groups.memory_left(tmp_path) == 2000 - (1500 - 200)


def test_in_a_container_the_mount_is_our_group(tmp_path: Path) -> None:
    """The path is the host's, which is not there; the limits are at the mount's root."""
    files(
        tmp_path,
        proc__self__cgroup="2:memory:/docker/abc\n1:cpu:/docker/abc\n0::/../../elsewhere\n",
        sys__fs__cgroup__cpu__cpuDOTcfs_quota_us="20000\n",
        sys__fs__cgroup__cpu__cpuDOTcfs_period_us="100000\n",
        sys__fs__cgroup__memory__memoryDOTlimit_in_bytes="500\n",
        sys__fs__cgroup__memory__memoryDOTusage_in_bytes="600\n",
    )
    assert control_groups.cpu_quota(tmp_path) == 0.2
    assert control_groups.memory_left(tmp_path) == 0  # above its limit for a moment: nothing, and not less


def test_memory_is_the_least_of_what_machine_and_group_give(tmp_path: Path) -> None:
    """A container's limit where that is below the machine's, and the machine's where it is not."""
    files(tmp_path, proc__meminfo="MemTotal: 100 kB\nMemAvailable:   50 kB\n", proc__self__cgroup="0::/\n")
    assert machine.available_memory(tmp_path) == 50 * 1024
    files(tmp_path, sys__fs__cgroup__memoryDOTmax="20000", sys__fs__cgroup__memoryDOTcurrent="5000")
    assert machine.available_memory(tmp_path) == 15000


QUOTAS = st.sampled_from(
    ["max 100000", "100000 100000", "250000 100000", "10000 100000", "x", "", "-1 5", "5 0"]
)


@given(
    of=st.fixed_dictionaries(dict.fromkeys(("", "pod/", "pod/c/"), QUOTAS)),
    group=st.sampled_from(["/", "/pod", "/pod/c", "/../x", "/gone"]),
    unified=st.booleans(),
)
def test_agent_and_host_count_the_same_cpus(
    tmp_path_factory: pytest.TempPathFactory, of: dict[str, str], group: str, unified: bool
) -> None:
    """The rule stands in both packages; a host computes with the agent's CPUs, rounded up."""
    root = tmp_path_factory.mktemp("machine")
    files(root, proc__self__cgroup=f"0::{group}\n" if unified else f"3:cpu,cpuacct:{group}\n")
    for folder, text in of.items():
        quota, _, period = text.partition(" ")
        base = root / "sys/fs/cgroup" / ("" if unified else "cpu,cpuacct") / folder
        base.mkdir(parents=True, exist_ok=True)
        if unified:
            (base / "cpu.max").write_text(text)
        else:
            (base / "cpu.cfs_quota_us").write_text(quota.replace("max", "-1"))
            (base / "cpu.cfs_period_us").write_text(period)
    assert control_groups.cpu_quota(root) == threads.cpu_quota(root)
    assert max(1, math.ceil(machine.usable_cpus(root))) == threads.usable_cpus(root)


STAT = """cpu  10 20 30 400 5 6 7 8 0 0
cpu0 5 10 15 200 2 3 3 4 0 0
cpu3 5 10 15 200 3 3 4 4 0 0
intr 123 4
procs_running 3
"""


def test_cpu_time_of_lower_priority_is_kept_apart(tmp_path: Path) -> None:
    """It gives way to a host; waiting for I/O is idle, and what a hypervisor took is busy."""
    files(tmp_path, proc__stat=STAT)
    assert machine.cpu_time(tmp_path) == CpuTime(busy=10 + 30 + 6 + 7 + 8, niced=20, idle=405)
    assert machine.machine_cpus(tmp_path) == 2  # online, whatever their numbers


@pytest.mark.parametrize("text", ["", "cpu  1 2 3\n", "cpu  1 2 3 x 5 6 7 8\n", "intr 1\n"])
def test_a_stat_that_says_nothing_is_unknown(tmp_path: Path, text: str) -> None:
    """No zero is made of it."""
    files(tmp_path, proc__stat=text)
    assert machine.cpu_time(tmp_path) is None
    files(tmp_path, proc__stat="")
    assert machine.machine_cpus(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.1 0.2 0.3 5/90 18187\n", 4),  # without the reader
        ("0.1 0.2 0.3 1/90 18187\n", 0),
        ("0.0 0.0 0.0 0/0 0\n", None),  # a sandbox that does not count
        ("", None),
        ("0.1 0.2 0.3\n", None),
        ("0.1 0.2 0.3 x/90 1\n", None),
    ],
)
def test_runnable_threads_are_counted_without_the_reader(
    tmp_path: Path, text: str, expected: int | None
) -> None:
    """A kernel that counts not even the reader does not count: unknown."""
    files(tmp_path, proc__loadavg=text)
    assert machine.runnable_threads(tmp_path) == expected
