"""`splitinfer profile` as a person runs it: real agents, a real probe of the real model, a snapshot that plans."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.models import smollm2_stored

MANIFEST = """
apiVersion: splitinfer.dev/v1alpha1
kind: SplitInference
metadata: {name: measured}
spec:
  model: {source: "store://smollm2", dtype: float32}
  workload: {maxContextTokens: 512, concurrency: 2, promptTokens: 64, outputTokens: 32}
  privacy: {sensitiveBlocks: ["0-1"], trustedNodes: {matchLabels: {splitinfer.dev/trust: trusted}}}
"""


def splitinfer(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    return subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            "import sys; from splitinfer.operator.cli import main; sys.exit(main())",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_what_profile_writes_is_what_plan_reads(tmp_path: Path) -> None:
    """The YAML is a snapshot with everything known, and `plan` predicts a plan from it."""
    store = smollm2_stored().path.parent
    said = splitinfer("profile", "--store", str(store), "--nodes", "2", "--threads", "1", "-o", "yaml")
    assert said.returncode == 0, said.stderr
    taken = yaml.safe_load(said.stdout)
    assert [node["name"] for node in taken["nodes"]] == ["node-0", "node-1"]
    assert all(node["memoryBandwidthBytesPerSecond"]["value"] > 1e8 for node in taken["nodes"])
    assert {(link["fromNode"], link["toNode"]) for link in taken["links"]} == {
        ("node-0", "node-1"),
        ("node-1", "node-0"),
    }
    (tmp_path / "capacity.yaml").write_text(said.stdout)
    (tmp_path / "manifest.yaml").write_text(MANIFEST)
    options = ("--capacity", str(tmp_path / "capacity.yaml"), "--store", str(store), "-o", "yaml")
    planned = splitinfer("plan", "-f", str(tmp_path / "manifest.yaml"), *options)
    assert planned.returncode == 0, planned.stderr
    plan = yaml.safe_load(planned.stdout)
    assert plan["feasible"]
    assert plan["ineligible"] == {}
    assert plan["predicted"]["tpotMilliseconds"] > 0


def test_a_dtype_that_the_engine_lacks_is_unknown_and_says_why() -> None:
    """Exit code 1, the reason on stderr, `unknown` in the snapshot: no number is made up."""
    store = smollm2_stored().path.parent
    said = splitinfer(
        "profile", "--store", str(store), "--dtype", "float16", "--engine", "onnx", "-o", "yaml"
    )
    assert said.returncode == 1
    assert "onnx engine has no 'float16'" in said.stderr
    (node, *_) = yaml.safe_load(said.stdout)["nodes"]
    assert "unknown" in node["memoryBandwidthBytesPerSecond"]
    assert node["freeMemoryBytes"]["value"] > 0


def test_a_damaged_model_is_unknown_and_says_which_file(tmp_path: Path) -> None:
    """The probe verifies what it reads as a host does."""
    stored = smollm2_stored()
    shutil.copytree(stored.path, tmp_path / "smollm2")
    (tmp_path / "smollm2" / "block-000.safetensors").write_bytes(b"no weights")
    said = splitinfer("profile", "--store", str(tmp_path), "--threads", "1", "-o", "json")
    assert said.returncode == 1
    assert "block-000" in said.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "nothing"), "no model 'nothing'"),
        (("--nodes", "0"), "--nodes"),
        (("--threads", "0"), "--threads"),
    ],
)
def test_bad_input_is_refused_by_name(arguments: tuple[str, ...], words: str) -> None:
    """Exit code 2, one line, nothing measured."""
    said = splitinfer("profile", "--store", str(smollm2_stored().path.parent), *arguments)
    assert said.returncode == 2
    assert words in said.stderr
    assert "Traceback" not in said.stderr
