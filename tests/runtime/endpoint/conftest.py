"""The whole runtime as a user meets it: three host processes, an entry process, the real model, HTTP."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from splitinfer.optimizer.plan import Segment
from splitinfer.segment_runtime.store.reader import StoredModel
from tests.support.models import smollm2_stored
from tests.support.pipelines import HostProcess, cut, plan_for, start_host
from tests.support.waiting import until

NODES = ("node-0", "node-1", "node-2")


@dataclass(frozen=True)
class Endpoint:
    """A served model: its URL, its control URL, and the host processes behind it."""

    url: str
    control: str
    hosts: dict[str, HostProcess]
    model: StoredModel

    def status(self) -> dict[str, Any]:
        """What the entry says of itself."""
        return dict(httpx.get(f"{self.control}/control/status").json())

    def put(self, segments: tuple[Segment, ...], concurrency: int = 8) -> int:
        """Post a plan under the next epoch, and give that."""
        epoch = (self.status()["epoch"] or 0) + 1
        plan = plan_for(self.model, segments, epoch=epoch, context=512, concurrency=concurrency)
        body = {
            "plan": plan.model_dump(mode="json"),
            "hosts": {node: host.address for node, host in self.hosts.items()},
        }
        reply = httpx.put(f"{self.control}/control/plan", json=body)
        assert reply.status_code == 202, reply.text
        return epoch

    def change(self, segments: tuple[Segment, ...], concurrency: int = 8) -> int:
        """Post a plan under the next epoch, wait until it serves, and give its epoch."""
        epoch = self.put(segments, concurrency)

        def serves() -> bool:
            status = self.status()
            assert status["last_error"] is None, status["last_error"]
            return bool(status["state"] == "serving" and status["epoch"] >= epoch)

        until(serves, seconds=60, what=f"epoch {epoch} to serve")
        return int(self.status()["epoch"])

    def sessions_on_hosts(self) -> int:
        """KV bytes that all hosts together reserve for sessions."""
        return sum(host["kv_bytes"] for host in self.status()["hosts"].values())


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """SmolLM2-135M over three hosts, cut at 10 and 20."""
    model = smollm2_stored()
    store, logs = model.path.parent, tmp_path_factory.mktemp("endpoint")
    with contextlib.ExitStack() as stack:
        hosts: dict[str, HostProcess] = {}
        for node in NODES:
            hosts[node] = start_host(store, node, logs)
            stack.callback(hosts[node].stop)
        entry = start_entry(store, model.name, logs)
        stack.callback(entry.kill)  # last of the three: where it did not end by itself
        stack.callback(entry.wait, 30)
        assert entry.stdin is not None
        stack.callback(entry.stdin.close)
        assert entry.stdout is not None
        said = json.loads(entry.stdout.readline())
        served = Endpoint(f"http://{said['http']}", f"http://{said['control']}", hosts, model)
        served.change(cut(model, [10, 20], NODES))
        yield served


def start_entry(store: Path, model: str, logs: Path, *options: str) -> subprocess.Popen[bytes]:
    """An entry process that lives as long as its stdin is open."""
    with (logs / "entry.log").open("wb") as stderr:
        return subprocess.Popen(
            [
                sys.executable, "-m", "splitinfer.segment_runtime.entry", "--model", model, "--store", str(store),
                "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--data", "127.0.0.1:0", "--threads", "1",
                "--exit-with-parent", *options,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
        )  # fmt: skip
