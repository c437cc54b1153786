"""`tools/setup.sh` on machines that lack something: it says what, and how to get it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
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


CONSTRAINTS = ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")


def test_every_call_of_pip_has_the_lock_for_builds_too(tools: Path, tmp_path: Path) -> None:
    """By option for what it installs, and by environment for the isolated environments in which it builds."""
    heard = tmp_path / "heard"
    pip = tmp_path / "venv" / "bin" / "python"
    pip.parent.mkdir(parents=True)
    shown = " ".join(f"${{{name}:-}}" for name in CONSTRAINTS)
    pip.write_text(f'#!/usr/bin/env bash\n[ "$1" = -c ] || echo "{shown} $*" >> {heard}\n', "utf-8")
    pip.chmod(0o755)

    done = setup(tools, tmp_path, PYTHON=python(tools, version_ok=True, venv_ok=True))

    assert done.returncode == 0, done.stderr
    calls = heard.read_text("utf-8").splitlines()
    assert len(calls) == 2
    for call in calls:
        assert call.split()[:2] == [str(ROOT / "requirements.lock")] * 2
        assert "--constraint requirements.lock" in call


BACKEND = """
import zipfile
from pathlib import Path

VERSION = "{version}"

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = f"built-{{VERSION}}-py3-none-any.whl"
    info = f"built-{{VERSION}}.dist-info"
    with zipfile.ZipFile(Path(folder) / name, "w") as wheel:
        wheel.writestr(f"{{info}}/METADATA", f"Metadata-Version: 2.1\\nName: built\\nVersion: {{VERSION}}\\n")
        wheel.writestr(f"{{info}}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{{info}}/RECORD", "")
    return name
"""


def test_pip_builds_with_the_pinned_backend(tmp_path: Path) -> None:
    """What setup.sh relies on, with the pip of this environment: of two versions the build takes the one of the lock."""
    for version in ("1.27", "1.99"):
        with zipfile.ZipFile(tmp_path / f"toy-{version}-py3-none-any.whl", "w") as wheel:
            info = f"toy-{version}.dist-info"
            wheel.writestr("toy.py", BACKEND.format(version=version))
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: toy\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    (tmp_path / "lock").write_text("toy==1.27\n", "utf-8")
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["toy>=1.20"]\nbuild-backend = "toy"\n', "utf-8"
    )

    def built(**environment: str) -> list[str]:
        out = tmp_path / f"out-{len(environment)}"
        offline = ["--no-index", "--find-links", str(tmp_path), "--no-deps", "--quiet"]
        command = [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", str(out), str(project)]
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **environment}
        subprocess.run(command, check=True, env=environment, capture_output=True)
        return [path.name.split("-")[1] for path in out.iterdir()]

    assert built() == ["1.99"], "without the lock it takes the newest"
    assert built(**dict.fromkeys(CONSTRAINTS, str(tmp_path / "lock"))) == ["1.27"]
