"""Programs that tests run beside ours: from the machine, or from Debian's package, unpacked into a cache folder.

A package is not installed: that would start a service on a machine where somebody only runs tests.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CACHE = Path.home() / ".cache" / "splitinfer" / "programs"


def program(name: str, package: str) -> str:
    """Where it is; the test fails, and says what to install, where it cannot be had."""
    found = shutil.which(name)
    if found is not None:
        return found
    unpacked = CACHE / package / "usr" / "bin" / name
    if not unpacked.exists():
        mend = f"install it, so that `{name}` is on PATH (on Debian and Ubuntu: apt-get install {package})"
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            pytest.fail(f"this test needs {name}; {mend}")
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / f"{package}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once would unpack over one another
            if not unpacked.exists():
                said = _unpack(package)
                if not unpacked.exists():
                    pytest.fail(f"this test needs {name}, and its package gives none: {said}; {mend}")
    return str(unpacked)


def _unpack(package: str) -> str:
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        done = _apt(folder, "download", package)
        if done.returncode != 0 and os.geteuid() == 0:
            _apt(folder, "update")  # a fresh machine has no list of packages
            done = _apt(folder, "download", package)
        for found in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", str(found), str(folder / "root")], check=True)
            (folder / "root").rename(CACHE / package)
        return done.stderr.strip()


def _apt(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["apt-get", "-qq", *arguments], cwd=folder, capture_output=True, text=True)
