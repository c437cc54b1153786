"""Figures that tests record are seen in a run that passes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
MEASURES = """
def test_measures(record_property):
    record_property("largest_logit_difference", 8.25e-06)
    record_property("prompts", 10)

def test_fails_and_measures(record_property):
    record_property("largest_logit_difference", 0.5)
    assert not {wrong}

def test_measures_nothing():
    pass
"""


def run(folder: Path, *options: str, wrong: bool = False) -> str:
    """Run the tests above with the plugin of our own conftest; what was printed."""
    (folder / "test_it.py").write_text(MEASURES.format(wrong=wrong), "utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        os.devnull,
        "--rootdir",
        str(folder),
        "-p",
        "tests.conftest",
    ]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *options, str(folder)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == int(wrong), done.stdout + done.stderr
    return done.stdout


def test_a_passing_run_shows_what_was_measured(tmp_path: Path) -> None:
    """By test, quiet or not, without -s or -rP; a test that measures nothing has no line."""
    for options in ((), ("-q",)):
        lines = run(tmp_path, *options).splitlines()
        assert "test_it.py::test_measures: largest_logit_difference 8.25e-06, prompts 10" in lines
        assert not any("measures_nothing" in line for line in lines)


def test_a_failing_test_shows_what_it_measured_before(tmp_path: Path) -> None:
    """That is when the figure is wanted most."""
    assert "test_fails_and_measures: largest_logit_difference 0.5" in run(tmp_path, wrong=True)


def test_where_nothing_is_measured_there_is_no_heading(tmp_path: Path) -> None:
    """Most runs are of tests without figures."""
    assert "= measured =" in run(tmp_path)
    assert "= measured =" not in run(tmp_path, "-k", "measures_nothing")
