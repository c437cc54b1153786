"""`tools/setup.sh` on machines that lack something: it says what, and how to get it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for PATH with what the script itself uses, and no Python and no package manager."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "dirname", "grep", "id"):
        found = shutil.which(name)
        assert found is not None, name
        (folder / name).symlink_to(found)
    return folder


def python(folder: Path, version_ok: bool, venv_ok: bool) -> str:
    """An interpreter that answers the script's two questions as given."""
    path = folder / "python3"
    path.write_text(
        "#!/usr/bin/env bash\n"
        'case "$2" in\n'
        "  *-venv*version_info*) echo python3.11-venv ;;\n"
        f"  *'version_info <'*) exit {int(not version_ok)} ;;\n"
        f"  *ensurepip*) exit {int(not venv_ok)} ;;\n"
        "esac\n",
        "utf-8",
    )
    path.chmod(0o755)
    return str(path)


def setup(tools: Path, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script with a small PATH."""
    return subprocess.run(
        ["bash", str(ROOT / "tools" / "setup.sh"), "cli"],
        env={
            "PATH": str(tools),
            "VENV": str(tmp_path / "venv"),
            "HOME": os.environ.get("HOME", "/"),
            **environment,
        },
        capture_output=True,
        text=True,
    )


def test_without_a_python_it_says_which_one_it_needs(tools: Path, tmp_path: Path) -> None:
    """None at all, or only one that is too old."""
    for named in ("/nowhere/python3", python(tools, version_ok=False, venv_ok=True)):
        done = setup(tools, tmp_path, PYTHON=named)
        assert done.returncode == 1
        assert done.stderr.startswith("error: PYTHON: no Python 3.11 or newer found; install one")
    assert not (tmp_path / "venv").exists()


def test_without_the_venv_module_it_names_the_package(tools: Path, tmp_path: Path) -> None:
    """Where it cannot install the package itself it says which one is missing."""
    done = setup(tools, tmp_path, PYTHON=python(tools, version_ok=True, venv_ok=False))

    assert done.returncode == 1
    assert "has no venv module; install it" in done.stderr
    assert "apt-get install python3.11-venv" in done.stderr
    assert not (tmp_path / "venv").exists()
