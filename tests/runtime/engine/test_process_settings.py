"""What an engine takes from its process: the CPUs it may use, and how libgomp's workers wait."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from splitinfer.segment_runtime.engine.factory import SPIN_COUNT

SEES = """
import json, os, sys
allowed = json.loads(sys.argv[2])
os.sched_setaffinity(0, allowed)
from splitinfer.segment_runtime.engine.factory import create_engine
engine = create_engine(sys.argv[1], "cpu", None)
torch = sys.modules.get("torch")
print(json.dumps({
    "threads": engine.threads,
    "torch": torch.get_num_threads() if torch else None,
}))
"""


def seen(engine: str, cpus: set[int], **environment: str) -> dict[str, Any]:
    """What an engine has in a process of its own that may use ``cpus``.

    ``spin`` is what libgomp itself says that it has read: it shows its settings when it is loaded.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", SEES, engine, json.dumps(sorted(cpus))],
        env=clean | {"PYTHONPATH": ":".join(sys.path), "OMP_DISPLAY_ENV": "verbose"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    spin = re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    return {**json.loads(done.stdout), "spin": spin and spin[1]}


CPUS = os.sched_getaffinity(0)


@pytest.mark.skipif(len(CPUS) < 2, reason="this machine has one CPU: no limit would be seen")
@pytest.mark.parametrize("engine", ["onnx", "torch", "auto"])
def test_an_engine_has_as_many_threads_as_its_process_has_cpus(engine: str) -> None:
    """One where the process is held to one, though the machine has more; torch computes with that number."""
    found = seen(engine, {min(CPUS)})
    assert found["threads"] == 1
    assert found["torch"] in (None, 1)
    assert seen(engine, CPUS)["threads"] > 1


def test_the_workers_of_torch_wait_actively_for_a_short_time_only() -> None:
    """The number is set before torch is imported, which is when libgomp reads it."""
    assert seen("torch", CPUS)["spin"] == SPIN_COUNT == "4000"


def test_a_spin_count_of_the_user_stays() -> None:
    """Who sets it knows the machine better."""
    assert seen("torch", CPUS, GOMP_SPINCOUNT="77")["spin"] == "77"
