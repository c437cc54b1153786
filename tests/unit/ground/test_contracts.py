"""The import contracts bite: a forbidden import, where one would put it, is found."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCE_ROOTS = ("operator", "optimizer", "profiler", "segment_runtime")
PURE = {
    "abc", "bisect", "collections", "contextlib", "copy", "dataclasses", "enum", "fractions", "functools",
    "hashlib", "heapq", "itertools", "json", "math", "numbers", "operator", "re", "statistics", "string",
    "types", "typing",
}  # fmt: skip
"""Modules of the standard library without a clock, a file, a socket or global state."""


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on a copy of the sources."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(root / n) for n in SOURCE_ROOTS]}; {code}"],
        cwd=root,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The four source roots and pyproject, to be spoilt."""
    for name in SOURCE_ROOTS:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("optimizer/splitinfer/optimizer/plan.py", "import time", "The optimizer is pure"),
        ("optimizer/splitinfer/optimizer/plan.py", "import torch", "The optimizer is pure"),
        (
            "segment_runtime/splitinfer/segment_runtime/entry/generate.py",
            "import splitinfer.operator.errors",
            "The runtime may import the optimizer",
        ),
        (
            "operator/splitinfer/operator/errors.py",
            "import splitinfer.segment_runtime.store.index",
            "The operator may import",
        ),
        ("segment_runtime/splitinfer/segment_runtime/wire.py", "import torch", "Only engines know"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(copied: Path, module: str, line: str, contract: str) -> None:
    """One line too many, and lint-imports fails and names the contract."""
    path = copied / module
    path.write_text(f"{path.read_text('utf-8')}\n{line}\n", "utf-8")

    done = lint(copied)

    assert done.returncode == 1, done.stdout + done.stderr
    broken = [each for each in done.stdout.splitlines() if each.startswith(contract) and "BROKEN" in each]
    assert broken or f"{contract}" in done.stdout.partition("Broken contracts")[2]


def test_the_optimizer_imports_from_the_list_only() -> None:
    """numpy, numba, pydantic and what is pure in the standard library: what is not listed is not allowed."""
    allowed = {"__future__", "numba", "numpy", "pydantic", "pydantic_core", "splitinfer", *PURE}
    for path in (ROOT / "optimizer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in names:
                assert name.partition(".")[0] in allowed, f"{path}: {name}"
