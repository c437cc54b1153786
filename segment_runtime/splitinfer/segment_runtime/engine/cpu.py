"""What this machine's kernels may use."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path


def instruction_set() -> str:
    """The machine and the widest vectors that its kernels may use, as far as kernels differ by them."""
    flags = _cpu_flags()
    known = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
    found = [flag for flag in known if flag in flags]
    return "+".join([platform.machine(), *found])


@cache
def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text("ascii", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return frozenset(value.split())
    return frozenset()
