"""The checked-in gRPC code is what the .proto file generates now."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "segment_runtime"
PROTO = Path("splitinfer/segment_runtime/proto")


def test_generated_code_is_current(tmp_path: Path) -> None:
    """`make proto` would change nothing."""
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "mypy", "grpc_python", "mypy_grpc")]
    done = subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, str(PROTO / "runtime.proto")],
        cwd=SOURCES,
        capture_output=True,
        text=True,
        # protoc looks for its plugins on the path.
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr

    generated = {path.name: path.read_text("utf-8") for path in (tmp_path / PROTO).iterdir()}
    checked_in = {path.name: path.read_text("utf-8") for path in (SOURCES / PROTO).glob("runtime_pb2*")}
    assert sorted(generated) == sorted(checked_in)
    for name, text in generated.items():
        assert checked_in[name] == text, f"{name} is stale: run `make proto`"


def test_the_requirements_admit_no_older_grpc_than_the_generated_code_needs() -> None:
    """The stubs raise on import under an older grpcio; pip must not install one."""
    stubs = (SOURCES / PROTO / "runtime_pb2_grpc.py").read_text("utf-8")
    [needed] = re.findall(r"GRPC_GENERATED_VERSION = '([0-9.]+)'", stubs)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    [asked] = [
        requirement
        for requirement in map(Requirement, project["optional-dependencies"]["runtime"])
        if requirement.name == "grpcio"
    ]

    assert str(asked.specifier) == f">={needed}"
