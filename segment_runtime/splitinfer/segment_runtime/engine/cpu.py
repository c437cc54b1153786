"""What this machine's kernels may use."""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


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


def largest_cache_bytes(cpu: Path = Path("/sys/devices/system/cpu/cpu0")) -> int | None:
    """Of one CPU, as Linux tells it; None where it does not."""
    found = []
    for path in cpu.glob("cache/index*/size"):
        with suppress(OSError):
            text = path.read_text("ascii", errors="replace").strip()
            number, unit = text[:-1], text[-1:]
            if number.isdigit() and unit in _UNITS:
                found.append(int(number) * _UNITS[unit])
    return max(found, default=None)
