"""The probe of the real model: what it says of the model, what it costs, and what cannot disturb it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from splitinfer.operator.local.models import find_model
from splitinfer.operator.planning.graph import graph_of
from splitinfer.optimizer.wanted import Workload
from splitinfer.profiler.speeds import ProbeResult, parse_probe, speeds_of
from tests.support.models import smollm2_stored

pytestmark = pytest.mark.timeout(120)


def probe(*options: str) -> ProbeResult:
    """Run it to its end."""
    store = str(smollm2_stored().path.parent)
    command = [sys.executable, "-P", "-m", "splitinfer.segment_runtime.probe", "--model", "smollm2"]
    said = subprocess.run([*command, "--store", store, *options], capture_output=True, text=True, check=True)
    return parse_probe(said.stdout)


def test_it_counts_the_model_as_the_planner_does() -> None:
    """The FLOPs, weights and KV of a block are those of the model graph at the probe's context."""
    found = probe("--threads", "1", "--repeats", "1")
    model = find_model("store://smollm2", smollm2_stored().path.parent, "--model")
    work = Workload(
        prompt_tokens=found.context_tokens,
        output_tokens=1,
        concurrency=1,
        max_context_tokens=found.context_tokens + 1,
    )
    block = graph_of(model, "float32", work, frozenset()).blocks[0]
    assert found.model_digest == model.digest
    assert found.weight_bytes == block.parameter_bytes["float32"]
    assert found.kv_bytes_per_token == block.kv_bytes_per_token
    assert found.prefill_flops_per_token == block.prefill_flops_per_token
    # Planned with what a request looks at on average, which is one token more than the prompt here at most.
    assert found.decode_flops_per_token == pytest.approx(block.decode_flops_per_token, rel=0.01)


def test_other_processes_on_the_cpu_do_not_slow_what_it_finds() -> None:
    """Beside three busy loops per CPU at the same priority its speeds stay: the load is measured elsewhere, once."""
    alone = speeds_of(probe("--threads", "1"))
    loop = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(loop) for _ in range(3 * (os.cpu_count() or 1))]
    try:
        beside = speeds_of(probe("--threads", "1"))
    finally:
        for process in busy:
            process.kill()
            process.wait()
    # By its wall clock it would be four times as slow. Hyperthreads and shared caches may cost a half.
    assert beside.memory_bandwidth_bytes_per_second > alone.memory_bandwidth_bytes_per_second / 2.5
    assert beside.flops_per_second > alone.flops_per_second / 2.5
