"""`splitinfer up` with the real hosts, the real entry and the real model, as a person runs it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from tokenizers import Tokenizer

from tests.support.homes import alive, end_all_of, read_until, wait_gone
from tests.support.models import smollm2_reference, smollm2_stored

SPLITINFER = str(Path(sys.executable).with_name("splitinfer"))
PROMPT = "The capital of France is"
TOKENS = 48


class RealHome:
    """A home of its own with the real model's store, and `splitinfer` in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._store = smollm2_stored().path.parent
        self._started: list[subprocess.Popen[str]] = []

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``splitinfer`` as installed."""
        process = subprocess.Popen(
            [SPLITINFER, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "SPLITINFER_HOME": str(self.path), "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
        )
        self._started.append(process)
        return process

    def up(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``splitinfer up`` on a free port."""
        return self.command("up", "--store", str(self._store), "--port", "0", *arguments)

    def status(self) -> dict[str, Any]:
        """What ``splitinfer status`` says."""
        output, _ = self.command("status", "-o", "json").communicate(timeout=60)
        return dict(json.loads(output))

    def processes(self) -> dict[str, int]:
        """Pids of the pipeline's processes by name, and of its supervisor."""
        [path] = (self.path / "run").glob("*.json")
        run = json.loads(path.read_text("utf-8"))
        return {**run["processes"], "supervisor": run["pid"]}

    def clean_up(self) -> None:
        """Kill what a failed test left, also what should have ended by itself."""
        end_all_of(self.path)
        for process in self._started:
            process.communicate()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[RealHome]:
    """A home for one test."""
    found = RealHome(tmp_path)
    try:
        yield found
    finally:
        found.clean_up()


@pytest.fixture(scope="module")
def truth() -> str:
    """What transformers' unsplit model says after the prompt."""
    tokenizer = Tokenizer.from_str(smollm2_stored().read_file("tokenizer").decode())
    prompt = tokenizer.encode(PROMPT).ids
    with torch.inference_mode():
        out = smollm2_reference().generate(  # type: ignore[operator]  # transformers leaves it untyped
            torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False
        )
    return str(tokenizer.decode(out[0, len(prompt) :].tolist()))


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that they did."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def command_of(pid: int) -> str:
    """Its command line; nothing once it is gone."""
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())
    return ""


def complete(endpoint: str) -> Iterator[str]:
    """The pieces of a streamed greedy completion."""
    body = {"model": "smollm2", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{endpoint}/completions", json=body, timeout=200) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                for choice in event["choices"]:
                    yield choice["text"]


def test_once_answers_with_the_real_model(home: RealHome) -> None:
    """The README's command: plan, endpoint, an answer, exit code 0, nothing left running."""
    up = home.up("--nodes", "2", "--once", "--prompt", "Why is the sky blue?", "--max-tokens", "8")
    output = read_until(up, "endpoint:")
    rest, _ = up.communicate(timeout=120)

    assert up.returncode == 0, output + rest
    assert "node-1" in output
    assert ", 8 tokens," in rest
    assert list((home.path / "run").glob("*.json")) == []


def test_status_holds_the_prediction_against_what_was_observed(home: RealHome) -> None:
    """Measured by this machine's own agent, which then watches the hosts' steps: per segment, end to end, and calibrated."""
    up = home.up("--nodes", "2")
    endpoint = read_until(up, "serving; Ctrl-C").partition("endpoint: ")[2].partition(" ")[0]
    deadline = time.monotonic() + 120
    while True:
        list(complete(endpoint))
        now = home.status()
        if "calibration_ratio" in now["machine"]:
            break
        assert time.monotonic() < deadline, now["machine"]
    compared = now["compared"]["figures"]
    for name in ("ttft", "tpot", "tokens_per_second", "segment[0]", "segment[1]"):
        assert compared[name]["observed"] > 0, name
        assert compared[name]["predicted"] > 0, name
    assert 0.2 < now["machine"]["calibration_ratio"] < 5
    assert now["machine"]["probe_age_seconds"] > 0
    agents = [pid for pid in descendants(up.pid) if "splitinfer.profiler.agent" in command_of(pid)]
    assert len(agents) == 2

    up.send_signal(signal.SIGINT)
    up.communicate(timeout=60)
    assert up.returncode == 0
    assert [pid for pid in agents if psutil.pid_exists(pid)] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="the engine can run: there is a GPU")
def test_an_engine_that_cannot_run_is_refused_by_the_measurement(home: RealHome) -> None:
    """Its reason is the answer; no host was started."""
    up = home.up("--engine", "torch", "--device", "cuda", "--once", "--prompt", "x")
    output, _ = up.communicate(timeout=120)

    assert up.returncode == 1
    assert "No plan" in output
    assert "torch sees no CUDA device here" in output
    assert "node-0: started" not in output


def test_a_damaged_model_is_told_by_its_file(home: RealHome, tmp_path: Path) -> None:
    """Which node, which file and what mends it come first; that the plan was tried again comes last."""
    damaged = tmp_path / "damaged"
    shutil.copytree(smollm2_stored().path, damaged / "smollm2")
    block = damaged / "smollm2" / "block-012.safetensors"
    content = bytearray(block.read_bytes())
    content[-5] ^= 1
    block.write_bytes(content)

    up = home.command(
        "up", "--store", str(damaged), "--port", "0", "--cuts", "10,20", "--once", "--prompt", "x"
    )
    output, _ = up.communicate(timeout=120)

    assert up.returncode == 1
    last = output.splitlines()[-1]
    assert last.startswith(f"error: node-1: {block}: its sha256 is ")
    assert last.endswith("damaged; import the model again (plan: it failed 3 times)")


def test_a_killed_host_costs_no_token_and_a_killed_supervisor_leaves_nothing(
    home: RealHome, truth: str
) -> None:
    """Through a host's death the stream says what transformers' unsplit model says; then everything goes."""
    up = home.up("--cuts", "10,20")
    endpoint = read_until(up, "serving; Ctrl-C").partition("endpoint: ")[2].partition(" ")[0]
    pieces = complete(endpoint)
    said = [next(pieces)]
    before = home.processes()

    os.kill(before["node-1"], signal.SIGKILL)
    said.extend(pieces)

    assert "".join(said) == truth
    # The entry may help itself first; the supervisor then brings the wanted plan back.
    read_until(up, "node-1: up")
    now = home.status()
    while [segment["node"] for segment in now["plan"]["segments"]] != ["node-0", "node-1", "node-2"]:
        read_until(up, "serving, epoch")
        now = home.status()
    assert now["epoch"] > 1
    assert "".join(complete(endpoint)) == truth

    after = home.processes()
    assert after["node-1"] != before["node-1"]
    up.kill()
    assert all(wait_gone(pid) for pid in after.values())


def test_ctrl_c_in_the_middle_of_an_answer_leaves_nothing(home: RealHome) -> None:
    """Everything is gone within the grace period, and the exit code is that of a server that was stopped."""
    up = home.up("--nodes", "2")
    endpoint = read_until(up, "serving; Ctrl-C").partition("endpoint: ")[2].partition(" ")[0]
    next(complete(endpoint))
    pids = home.processes()

    up.send_signal(signal.SIGINT)
    up.communicate(timeout=60)

    assert up.returncode == 0
    assert [name for name, pid in pids.items() if alive(pid)] == []
