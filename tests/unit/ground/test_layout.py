"""The layout that keeps `operator` from shadowing the standard library's, and what the wheel holds."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCE_ROOTS = ("operator", "optimizer", "profiler", "segment_runtime")


@pytest.mark.parametrize("name", SOURCE_ROOTS)
def test_no_module_lies_where_it_would_shadow(name: str) -> None:
    """No Python file directly in a source root or in its ``splitinfer``; the inner package is typed."""
    for folder in (ROOT / name, ROOT / name / "splitinfer"):
        assert list(folder.glob("*.py")) == []
    assert sorted(p.name for p in (ROOT / name / "splitinfer").iterdir() if p.name != "__pycache__") == [name]
    assert (ROOT / name / "splitinfer" / name / "py.typed").is_file()


def test_the_standard_library_works_from_the_root() -> None:
    """`collections` imports `operator`; from the repository's root that is still the standard library's."""
    code = "import collections, operator; print(operator.__file__)"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout


def test_the_wheel_holds_the_four_packages_and_nothing_else(tmp_path: Path) -> None:
    """Built without a network: each package is in it with its marker, and no test, doc or cache."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()

    packages = {name.split("/")[1] for name in names if name.startswith("splitinfer/")}
    assert packages == set(SOURCE_ROOTS)
    assert {name.split("/")[0] for name in names} == {"splitinfer", "splitinfer-0.1.0.dist-info"}
    for package in SOURCE_ROOTS:
        assert f"splitinfer/{package}/py.typed" in names
    assert "splitinfer/segment_runtime/proto/runtime_pb2.py" in names
    assert [name for name in names if name.endswith(".pyc") or "/tests/" in name] == []
