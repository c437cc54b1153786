"""What a reader and a machine are told: make's help, licence, no address of a package host, true paths."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from splitinfer.operator.spec.manifest import load_manifest

ROOT = Path(__file__).parents[3]
HOSTS = {"127.0.0.1", "www.apache.org", "example.com", "example.org"}
"""Hosts that may be named: this machine, the licence, and names reserved for examples."""


def texts() -> list[Path]:
    """Texts and settings that a person or a tool reads; code and the lock are held elsewhere."""
    found = [p for p in ROOT.iterdir() if p.is_file() and p.suffix in {"", ".md", ".toml", ".yaml", ".lock"}]
    for name in (".ci", "docs", "examples", "tools", "charts"):
        found += [p for p in (ROOT / name).rglob("*") if p.is_file()]
    return sorted(found)


@pytest.mark.parametrize("path", texts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_package_host_is_named(path: Path) -> None:
    """Where packages come from is the reader's setting; a text with an address of one breaks elsewhere."""
    named = set(
        re.findall(r"\b(?:https?|git|ssh|git\+[a-z]+)://([^/\s:\"'`>)]+)", path.read_text("utf-8", "replace"))
    )

    # What has no dot in it is a placeholder.
    assert {host for host in named if "." in host} - HOSTS == set()


def test_the_licence_is_the_plain_one() -> None:
    """Apache-2.0 as published, with nobody's name in front."""
    text = (ROOT / "LICENSE").read_bytes()
    assert (
        hashlib.sha256(text).hexdigest() == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    )


def test_help_lists_every_target() -> None:
    """`make` alone helps; each target of the Makefile that is for people is in it."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    done = subprocess.run(
        ["make", "--no-print-directory"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        # Not the settings of the make that may be running these tests.
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "MFLAGS"},
    )
    listed = set(re.findall(r"^  make ([a-z-]+)", done.stdout, re.MULTILINE))

    assert listed == targets
    assert {"run", "test", "test-fast", "lint", "bench", "help"} <= listed


def test_make_run_refuses_bad_arguments_before_it_imports() -> None:
    """The model takes half a minute; a port or a cut that cannot be is told at once."""
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", "run", "ARGS=--port x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "MFLAGS"},
    )
    check, imports, up = done.stdout.splitlines()[-3:]
    assert "splitinfer up --check" in check
    assert check.endswith("--port x")
    assert "models import" in imports
    assert up.endswith("--port x")


@pytest.mark.parametrize("script", [".ci/run", "tools/setup.sh"])
def test_scripts_can_be_run(script: str) -> None:
    """They are executable and bash reads them."""
    path = ROOT / script
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_pre_commit_runs_the_tools_of_the_environment() -> None:
    """Every hook is local: the same versions as in `make lint`, and nothing is fetched."""
    settings = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert [repo["repo"] for repo in settings["repos"]] == ["local"]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_are_valid_manifests(path: Path) -> None:
    """What the README points to parses under today's rules."""
    load_manifest(path)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_paths_in_the_texts_exist(name: str) -> None:
    """A link or a path in backticks that looks like one of ours leads somewhere."""
    text = (ROOT / name).read_text("utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    paths = re.findall(
        r"`((?:docs|examples|tests|tools|operator|optimizer|profiler|segment_runtime)/[^`\s*]*)`", text
    )
    missing = [path for path in (*links, *paths) if not (ROOT / path.partition("::")[0]).exists()]

    assert missing == []
