"""The agent as a process that runs on: a real probe of the real model, real links, a real host, and scrapes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from splitinfer.profiler.series import AGENT_SERIES
from tests.support.models import smollm2_stored
from tests.support.scrapes import until

pytestmark = pytest.mark.timeout(180)

AGENT = (sys.executable, "-P", "-m", "splitinfer.profiler.agent", "--listen", "127.0.0.1:0")
HOST = (sys.executable, "-P", "-m", "splitinfer.segment_runtime.host", "--listen", "127.0.0.1:0")


@contextmanager
def process(
    command: tuple[str, ...], stderr: int = subprocess.DEVNULL
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A process that says in one line of JSON where it is; ended by its stdin."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            yield running, json.loads(running.stdout.readline())
        finally:
            running.stdin.close()
            try:
                running.wait(30)
            except subprocess.TimeoutExpired:
                running.kill()


@contextmanager
def agent(node: str, *options: str) -> Iterator[dict[str, str]]:
    """One that measures each half second."""
    with process((*AGENT, "--node", node, "--metrics", "127.0.0.1:0", "--interval", "0.5", *options)) as (
        _,
        said,
    ):
        yield said


def names(found: Mapping[str, float]) -> set[str]:
    """Without labels."""
    return {name.partition("{")[0] for name in found}


def write(path: Path, **targets: object) -> Path:
    """Put a new file in its place."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(targets))
    new.replace(path)
    return path


def test_an_agent_measures_its_node_a_model_and_a_link(tmp_path: Path) -> None:
    """Everything that a CPU node has is exported within seconds, and a file that changes is followed."""
    store = str(smollm2_stored().path.parent)
    model = {"model": "smollm2", "dtype": "float32", "engine": "auto", "threads": 1}
    with agent("far") as far:
        peers = {"far": {"address": far["probe"], "site": None}}
        file = write(tmp_path / "targets.json", peers=peers, serving=[], probes=[model])
        with agent("near", "--targets", str(file), "--store", store) as near:
            everything = {s.name for s in AGENT_SERIES if not re.search("device_memory|calibration", s.name)}
            found = until(near["metrics"], lambda found: everything <= names(found))
            assert names(found) == everything
            digest = smollm2_stored().digest
            probe = f'{{dtype="float32",engine="onnx",model="{digest}",node="near"}}'
            assert 1e8 < found[f"splitinfer_probe_memory_bandwidth_bytes_per_second{probe}"] < 1e12
            assert found[f"splitinfer_probe_threads{probe}"] == 1
            assert found['splitinfer_node_machine_cpus{node="near"}'] == os.cpu_count()
            assert 0 < found['splitinfer_node_memory_available_bytes{node="near"}'] < 1 << 50
            assert 0 < found['splitinfer_link_round_trip_median_seconds{node="near",peer="far"}'] < 5
            assert found['splitinfer_node_age_seconds{node="near"}'] < 30
            assert found['splitinfer_node_probe_cpu_seconds_total{node="near"}'] > 0

            (tmp_path / "targets.json").write_text("{half a file")
            errors = 'splitinfer_node_targets_errors_total{node="near"}'
            kept = until(near["metrics"], lambda found: found[errors] == 1)
            assert f"splitinfer_probe_age_seconds{probe}" in kept

            write(file, peers={}, serving=[], probes=[])
            until(near["metrics"], lambda found: not re.search("probe_age|link_age", str(names(found))))


def test_a_host_s_own_work_is_no_load_of_others(tmp_path: Path) -> None:
    """A real host says its CPU time and its steps; one that is gone makes unknown what depends on it, and no more."""
    file = tmp_path / "targets.json"
    with process((*HOST, "--node", "n", "--exit-with-parent")) as (host, said):
        url = f"http://{said['metrics']}/metrics"
        write(file, serving=[url])
        with agent("n", "--targets", str(file)) as up:
            serving, busy = (
                'splitinfer_node_serving_ratio{node="n"}',
                'splitinfer_node_cpu_busy_ratio{node="n"}',
            )
            found = until(up["metrics"], lambda found: serving in found)
            assert found[serving] == 0.0
            assert 0 <= found[busy] <= 1
            host.kill()
            gone = until(up["metrics"], lambda found: serving not in found)
            assert busy not in gone
            assert 'splitinfer_node_memory_available_bytes{node="n"}' in gone
            assert gone['splitinfer_node_serving_scrape_errors_total{node="n"}'] > 0
            write(file, serving=[])
            until(up["metrics"], lambda found: serving in found and busy in found)


@pytest.mark.parametrize("ends", ["stdin", "SIGTERM"])
def test_it_ends_with_its_parent_or_when_told(tmp_path: Path, ends: str) -> None:
    """In order, with a probe under way that ends too."""
    model = {"model": "smollm2", "dtype": "float32", "engine": "auto", "threads": 1}
    file = write(tmp_path / "targets.json", probes=[model])
    options = ("--node", "n", "--metrics", "127.0.0.1:0", "--interval", "0.5", "--targets", str(file))
    with process((*AGENT, *options, "--store", str(smollm2_stored().path.parent))) as (running, _):
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        while not (probes := children.read_text().split()):
            time.sleep(0.02)  # between two looks: the kernel tells nobody when a child is started
        if ends == "stdin":
            running.stdin.close()
        else:
            running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
    assert not Path(f"/proc/{probes[0]}").exists()


def test_an_address_in_use_is_refused_by_its_option() -> None:
    """Exit code 2; nothing is measured for nobody."""
    with agent("n") as up:
        second = subprocess.run(
            [*AGENT, "--node", "n", "--metrics", up["metrics"]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert second.returncode == 2
    assert f"error: --metrics: {up['metrics']} cannot be bound" in second.stderr
