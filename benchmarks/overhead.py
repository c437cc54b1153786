"""What profiling costs a pipeline that serves: tokens per second with and without agents, in turns, in one run.

One agent per host, as on a node, at its default intervals: it reads its node, scrapes its host, probes its links to the
others, and would probe the model if the node did not serve. All of them share this machine's CPUs with all hosts and the
client, so nothing of what they cost is hidden on another machine. They start once and are stopped (SIGSTOP) for the turns without
them: turns are then short, and what else the machine does slows both alike. They alternate in the order a b b a.

A pipeline that computes loses what CPU time the agents take; that share has next to no noise, and a target of its own.
"""

from __future__ import annotations

import json
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.processes import Chain, Worker, chain
from benchmarks.report import Row, Samples, table
from benchmarks.runtime import SEGMENTS, Sizes, prompt, ratios
from splitinfer.profiler.series import LINK_BYTES, PROBE_RUNS
from splitinfer.segment_runtime.engine.threads import usable_cpus
from splitinfer.segment_runtime.store.importer import import_model

Note = Callable[[str], None]
TURN_SECONDS = 12.0
"""A round of an agent and a little more."""
TURNS_PER_REPEAT = 4
SETTLE_SECONDS = 60.0
USERS = 4
LEAST_RATIO = 0.98
MOST_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Cost:
    """What agents took in one turn."""

    cpu_seconds: float
    link_bytes: float
    seconds: float


class Agents:
    """The agents of all nodes."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers

    def total(self, name: str) -> float:
        """Sum of a counter over all of them."""
        return sum(
            sample.value
            for worker in self._workers
            for family in text_string_to_metric_families(
                httpx.get(f"http://{worker.said['metrics']}/metrics").text
            )
            for sample in family.samples
            if sample.name == name
        )

    def cpu_seconds(self) -> float:
        """Of all of them, with the probes that they started and that have ended."""
        times = [psutil.Process(worker.process.pid).cpu_times() for worker in self._workers]
        return sum(t.user + t.system + t.children_user + t.children_system for t in times)

    def signal(self, number: signal.Signals) -> None:
        """SIGSTOP or SIGCONT, to all of them."""
        for worker in self._workers:
            worker.process.send_signal(number)

    def settle(self) -> None:
        """Wait until each has tried its first probe of the model. Raises RuntimeError where one does not."""
        last = time.monotonic() + SETTLE_SECONDS
        while self.total(PROBE_RUNS.name) < len(self._workers):
            if time.monotonic() > last:
                raise RuntimeError(f"the agents probed nothing in {SETTLE_SECONDS:g} s")
            time.sleep(0.2)  # between two scrapes: an agent tells nobody when it has probed


@contextmanager
def agents(served: Chain, sizes: Sizes) -> Iterator[Agents]:
    """One for each host, which know of one another."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, workers = Path(name), []
        nodes = {f"node-{i}": host for i, host in enumerate(served.hosts)}
        for node in nodes:
            worker = Worker(
                "splitinfer.profiler.agent", "--node", node, "--listen", "127.0.0.1:0",
                "--metrics", "127.0.0.1:0", "--targets", str(folder / f"{node}.json"),
                "--store", str(served.model.path.parent), "--threads", str(sizes.threads),
                log=folder / f"{node}.log",
            )  # fmt: skip
            stack.callback(worker.stop)
            workers.append(worker)
        addresses = {node: worker.said["probe"] for node, worker in zip(nodes, workers, strict=True)}
        for node, host in nodes.items():
            targets = {
                "peers": {peer: {"address": at} for peer, at in addresses.items() if peer != node},
                "serving": [f"http://{host.said['metrics']}/metrics"],
                "probes": [{"model": served.model.name, "dtype": sizes.dtype, "engine": sizes.engine}],
            }
            made = folder / f"{node}.new"
            made.write_text(json.dumps(targets))
            made.rename(folder / f"{node}.json")
        yield Agents(workers)


def turn(served: Chain, seed: int, sizes: Sizes) -> float:
    """Tokens per second of users that ask again and again."""
    tokens, seconds = 0, 0.0
    while seconds < TURN_SECONDS:
        prompts = [prompt(sizes.prompt_tokens, seed * 1000 + user) for user in range(USERS)]
        some, took = served.complete_many(prompts, sizes.new_tokens)
        tokens, seconds = tokens + some, seconds + took
    return tokens / seconds


def profiled_turn(served: Chain, profiling: Agents, seed: int, sizes: Sizes) -> tuple[float, Cost]:
    """The same while agents profile; they are stopped before and after."""
    profiling.signal(signal.SIGCONT)
    cpu, sent, began = profiling.cpu_seconds(), profiling.total(LINK_BYTES.name), time.monotonic()
    speed = turn(served, seed, sizes)
    took, sent = time.monotonic() - began, profiling.total(LINK_BYTES.name) - sent
    cost = Cost(profiling.cpu_seconds() - cpu, sent, took)
    profiling.signal(signal.SIGSTOP)
    return speed, cost


def run(sizes: Sizes, note: Note) -> str:
    """As a report."""
    model = import_model("smollm2")
    alone: list[float] = []
    profiled: list[float] = []
    costs: list[Cost] = []
    with ExitStack() as stack:
        served = stack.enter_context(
            chain(model, SEGMENTS, sizes.threads, engine=sizes.engine, dtype=sizes.dtype)
        )
        profiling = stack.enter_context(agents(served, sizes))
        stack.callback(profiling.signal, signal.SIGCONT)  # so that they can end
        profiling.settle()
        profiling.signal(signal.SIGSTOP)
        served.complete_many([prompt(sizes.prompt_tokens, user) for user in range(USERS)], sizes.new_tokens)
        for number in range(1, sizes.repeats * TURNS_PER_REPEAT + 1):
            for with_agents in (True, False) if number % 2 else (False, True):
                if with_agents:
                    speed, cost = profiled_turn(served, profiling, number, sizes)
                    profiled.append(speed)
                    costs.append(cost)
                else:
                    alone.append(turn(served, number, sizes))
            note(f"turn {number}: alone {alone[-1]:.1f}, profiled {profiled[-1]:.1f} tokens/s")
    shares = Samples.of([cost.cpu_seconds / cost.seconds / usable_cpus() for cost in costs])
    percent = Samples.of([100 * share for share in shares.values])
    rate = Samples.of([cost.link_bytes / cost.seconds / 1e3 for cost in costs])
    rows = [
        Row(f"{USERS} users, {SEGMENTS} segments, no agent", Samples.of(alone).show("tokens/s")),
        Row(
            f"the same, {SEGMENTS} agents beside them",
            Samples.of(profiled).show("tokens/s"),
            ratios(profiled, alone),
            LEAST_RATIO,
        ),
        Row(
            "CPU time that the agents took, of the machine's",
            percent.show("%", 2),
            shares,
            MOST_SHARE,
            "lower",
        ),
        Row("bytes of their link probes", rate.show("kB/s")),
    ]
    return table(
        f"Overhead of profiling, {sizes.engine} engine, {sizes.dtype}, {sizes.threads} threads", rows
    )
