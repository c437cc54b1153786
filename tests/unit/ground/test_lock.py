"""The lock and what pyproject asks for belong together, so that installs are the same everywhere."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def lines() -> list[str]:
    """The lock without its comments."""
    text = (ROOT / "requirements.lock").read_text("utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def pins() -> dict[str, Version]:
    """Pinned version by package."""
    found: dict[str, Version] = {}
    for line in lines():
        requirement = Requirement(line)
        [specifier] = requirement.specifier
        assert specifier.operator == "==", line
        found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


def asked() -> list[str]:
    """Every requirement of the project, of its extras and of its build."""
    extras: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
    build: list[str] = PROJECT["build-system"]["requires"]
    return sorted(
        {*PROJECT["project"]["dependencies"], *build, *(r for extra in extras.values() for r in extra)}
    )


@pytest.mark.parametrize("text", asked())
def test_every_requirement_is_pinned_within_its_bounds(text: str) -> None:
    """`make lock` was run after the last change of pyproject."""
    requirement = Requirement(text)
    pinned = pins()

    assert canonicalize_name(requirement.name) in pinned
    assert pinned[canonicalize_name(requirement.name)] in requirement.specifier


def test_what_the_pinned_packages_need_is_pinned_too() -> None:
    """The lock is closed: no dependency of an installed pin is left to chance on this platform."""
    pinned, open_ends = pins(), set()
    for name in pinned:
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue  # pinned for another platform, or for the model package, whose dependencies stay out
        for text in needed:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                key = canonicalize_name(requirement.name)
                if key not in pinned:
                    open_ends.add(f"{name} needs {text}")

    assert open_ends == set()


def test_the_lock_binds_to_no_index_and_no_build() -> None:
    """No address and no hash in it: `TORCH_INDEX` may bring another build of the same torch version."""
    for line in lines():
        assert "://" not in line
        assert "--" not in line
    torch = next(line for line in lines() if line.startswith("torch=="))
    assert re.fullmatch(r"torch==[0-9.]+", torch), "a local version would exclude other builds"


def test_the_installed_command_line_is_the_one_of_pyproject() -> None:
    """Subcommands are found by name; each name leads to a function."""
    from importlib.metadata import entry_points

    commands = PROJECT["project"]["entry-points"]["splitinfer.commands"]
    installed = {entry.name: entry for entry in entry_points(group="splitinfer.commands")}

    assert {name: entry.value for name, entry in installed.items()} == commands
    assert all(callable(entry.load()) for entry in installed.values())
