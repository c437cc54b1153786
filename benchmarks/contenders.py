"""Who takes turns in `benchmarks.engines`: our engines alone or served in a chain, transformers, llama.cpp.

Each has a name and gives tokens per second, of all its sessions together: `decode` after short prompts, `prefill` of one
long prompt. What each includes is said where it is measured; ours, when served, has the HTTP endpoint on top.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks import llama
from benchmarks.llama_build import Llama
from benchmarks.processes import Chain, Worker, chain
from benchmarks.runtime import prompt, tokens_per_second
from splitinfer.segment_runtime.store.reader import StoredModel


@dataclass(frozen=True, slots=True)
class Load:
    """What every contender is given, so that all get the same.

    Attributes:
        threads: of every process.
        prompt_tokens: of each session that decodes.
        new_tokens: of each of those.
        long_prompt_tokens: of the prompt that prefill is measured with.
    """

    threads: int = 1
    prompt_tokens: int = 16
    new_tokens: int = 48
    long_prompt_tokens: int = 512


class Contender(Protocol):
    """One of those who take turns; its processes are up."""

    @property
    def name(self) -> str:
        """As the report has it."""

    def decode(self, batch: int) -> float:
        """Tokens per second of ``batch`` sessions together, prompts not counted."""

    def prefill(self) -> float:
        """Prompt tokens per second of one long prompt, to its first token."""


class Alone:
    """One of our engines in one process, without endpoint; its greedy choice is part of a step."""

    def __init__(self, name: str, worker: Worker, load: Load) -> None:
        self.name = name
        self.weight_bytes = int(worker.said["weight_bytes"])
        self._worker, self._load = worker, load

    def _decode(self, batch: int) -> tuple[float, float]:
        load = self._load
        ids = prompt(load.prompt_tokens, 0)
        said = self._worker.ask({"prompt": ids, "batch": batch, "new_tokens": load.new_tokens})
        return float(said["decode_seconds"]), float(said["kernel_seconds"])

    def decode(self, batch: int) -> float:
        """Steps over all sessions after their prompts."""
        return batch * (self._load.new_tokens - 1) / self._decode(batch)[0]

    def kernel_share(self) -> float:
        """Part of the time of a lone session's steps that is spent inside ONNX Runtime; 0 for other engines."""
        taken, kernels = self._decode(1)
        return kernels / taken

    def prefill(self) -> float:
        """One step over the prompt, and the head for its last row."""
        ids = prompt(self._load.long_prompt_tokens, 0)
        said = self._worker.ask({"prompt": ids, "batch": 1, "new_tokens": 1})
        return len(ids) / float(said["prompt_seconds"])


class Transformers:
    """`generate` of transformers' unsplit model in float32; its prompts are taken off by a run of one token."""

    name = "transformers float32"

    def __init__(self, worker: Worker, load: Load) -> None:
        self._worker, self._load = worker, load

    def _seconds(self, tokens: int, batch: int, new_tokens: int) -> float:
        request = {"prompt": prompt(tokens, 0), "batch": batch, "new_tokens": new_tokens}
        return float(self._worker.ask(request)["seconds"])

    def decode(self, batch: int) -> float:
        """Of a batch of equal prompts."""
        load = self._load
        first = self._seconds(load.prompt_tokens, batch, 1)
        total = self._seconds(load.prompt_tokens, batch, load.new_tokens)
        return batch * tokens_per_second(load.new_tokens, first, total)

    def prefill(self) -> float:
        """`generate` of one token."""
        return self._load.long_prompt_tokens / self._seconds(self._load.long_prompt_tokens, 1, 1)


class Served:
    """Hosts in a chain and their entry, as a client over HTTP sees them: sampler and stream are included."""

    def __init__(self, name: str, served: Chain, load: Load) -> None:
        self.name = name
        self.chain = served
        self._load = load
        self._seed = 0
        self._parts: list[dict[tuple[str, str, str], float]] | None = None

    def keep_parts(self) -> list[dict[tuple[str, str, str], float]]:
        """From now on, how much the entry's histograms grow in each run of one session is added to what this gives."""
        self._parts = []
        return self._parts

    def _prompts(self, tokens: int, count: int) -> list[list[int]]:
        self._seed += count  # a cache of prefixes, were there one, would not help
        return [prompt(tokens, self._seed + i) for i in range(count)]

    def decode(self, batch: int) -> float:
        """One stream: what follows its first token. Several: a run of one token each is taken off."""
        load = self._load
        if batch == 1:
            [ids] = self._prompts(load.prompt_tokens, 1)
            before = self.chain.metrics()
            found = tokens_per_second(*self.chain.complete(ids, load.new_tokens))
            if self._parts is not None:
                after = self.chain.metrics()
                self._parts.append({key: after[key] - before.get(key, 0.0) for key in after})
            return found
        _, first = self.chain.complete_many(self._prompts(load.prompt_tokens, batch), 1)
        _, total = self.chain.complete_many(self._prompts(load.prompt_tokens, batch), load.new_tokens)
        return batch * tokens_per_second(load.new_tokens, first, total)

    def prefill(self) -> float:
        """The time to the first token, at the client."""
        [ids] = self._prompts(self._load.long_prompt_tokens, 1)
        return len(ids) / self.chain.complete(ids, 1)[1]


class LlamaCpp:
    """`llama-batched-bench`: a fresh process each turn, logits and no sampling; loading is not counted."""

    def __init__(self, name: str, build: Llama, kind: str, load: Load, servers: tuple[str, ...] = ()) -> None:
        self.name = name
        self._build, self._kind, self._load, self._servers = build, kind, load, servers

    def decode(self, batch: int) -> float:
        """Steps over all sequences after their prompts."""
        load = self._load
        return self._measure(batch, load.prompt_tokens, load.new_tokens - 1).decode

    def prefill(self) -> float:
        """One sequence; a step follows that is not counted."""
        return self._measure(1, self._load.long_prompt_tokens, 1).prompt

    @property
    def weight_bytes(self) -> int:
        """Bytes that a step reads: every tensor, as the table of tokens is the head's too."""
        return self._build.weight_bytes(self._kind)

    def _measure(self, batch: int, prompt_tokens: int, new_tokens: int) -> llama.Speed:
        return llama.measure(
            self._build,
            self._kind,
            self._load.threads,
            batches=[batch],
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            servers=self._servers,
        )[batch]


@dataclass(frozen=True, slots=True)
class Field:
    """Starts contenders; their processes end with the ``with`` block."""

    model: StoredModel
    build: Llama
    load: Load

    @contextlib.contextmanager
    def ours(self, engine: str, dtype: str, hosts: int, delay_ms: float = 0.0) -> Iterator[Alone | Served]:
        """An engine of ours; ``hosts`` 0: unsplit, in one process."""
        threads = str(self.load.threads)
        if hosts:
            options = {"engine": engine, "dtype": dtype, "delay_ms": delay_ms}
            with chain(self.model, hosts, self.load.threads, **options) as served:  # type: ignore[arg-type]
                yield Served(f"{engine} {dtype}, {hosts} hosts", served, self.load)
            return
        options_ = ("--engine", engine, "--dtype", dtype, "--threads", threads)
        with _worker("benchmarks.unsplit", *options_) as worker:
            yield Alone(f"{engine} {dtype}", worker, self.load)

    @contextlib.contextmanager
    def transformers(self) -> Iterator[Transformers]:
        """The yardstick of float32."""
        with _worker("benchmarks.reference", "--threads", str(self.load.threads)) as worker:
            yield Transformers(worker, self.load)

    @contextlib.contextmanager
    def llama(self, kind: str, hosts: int, delay_ms: float = 0.0) -> Iterator[LlamaCpp]:
        """llama.cpp; ``hosts`` 0: in one process, else that many RPC servers."""
        if not hosts:
            yield LlamaCpp(f"llama.cpp {kind}", self.build, kind, self.load)
            return
        with llama.servers(self.build, hosts, self.load.threads, delay_ms) as servers:
            yield LlamaCpp(
                f"llama.cpp {kind}, {hosts} RPC servers", self.build, kind, self.load, tuple(servers)
            )


@contextlib.contextmanager
def _worker(module: str, *options: str) -> Iterator[Worker]:
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(module, *options, log=Path(folder) / f"{module}.log")
        try:
            yield worker
        finally:
            worker.stop()
