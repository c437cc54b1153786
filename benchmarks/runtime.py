"""The segment runtime against transformers' `generate`, on the default model, same threads, one run.

Reference and pipeline take turns, so that a machine that slows down slows both; medians of several turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import wire
from benchmarks.processes import Chain, Worker, chain
from benchmarks.report import Row, Samples, table
from splitinfer.segment_runtime.engine.threads import usable_cpus
from splitinfer.segment_runtime.store.importer import import_model
from splitinfer.segment_runtime.store.reader import StoredModel

Note = Callable[[str], None]
MIB = 1024 * 1024
SEGMENTS = 3


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    repeats: int = 5
    threads: int = max(1, usable_cpus() // SEGMENTS)
    """Of every process, the reference too; what `splitinfer up` gives to hosts that share this machine."""
    engine: str = "onnx"
    """What `auto` takes on a CPU."""
    dtype: str = "float32"
    new_tokens: int = 48
    prompt_tokens: int = 16
    long_prompt_tokens: int = 512


def prompt(length: int, seed: int) -> list[int]:
    """Token ids without meaning, different for each seed, above the special ones."""
    return [100 + (seed * 7919 + i * 104729) % 40000 for i in range(length)]


def tokens_per_second(tokens: int, first: float, total: float) -> float:
    """Decode speed of one stream: the tokens after the first over the time they took."""
    return (tokens - 1) / (total - first)


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Samples:
    """Turn by turn, so that what slows a turn slows both sides of its ratio."""
    return Samples.of([a / b for a, b in zip(numerators, denominators, strict=True)])


def single_stream(model: StoredModel, reference: Worker, sizes: Sizes, note: Note) -> list[Row]:
    """One stream over 3 segments on loopback, 8 users, TTFT, memory, and where a token's time goes."""
    ours: list[float] = []
    theirs: list[float] = []
    eight: list[float] = []
    ttft_ours: list[float] = []
    ttft_theirs: list[float] = []
    with chain(model, SEGMENTS, sizes.threads, engine=sizes.engine, dtype=sizes.dtype) as served:
        served.complete(prompt(sizes.prompt_tokens, 0), 8)  # warm
        served.complete(prompt(sizes.long_prompt_tokens, 0), 2)
        idle = [host.private_bytes() for host in served.hosts]
        before = served.metrics()
        steps_only: list[dict[tuple[str, str, str], float]] = []
        for turn in range(1, sizes.repeats + 1):
            ids = prompt(sizes.prompt_tokens, turn)
            reference_first = reference.ask({"prompt": ids, "new_tokens": 1})["seconds"]
            reference_all = reference.ask({"prompt": ids, "new_tokens": sizes.new_tokens})["seconds"]
            theirs.append((sizes.new_tokens - 1) / (reference_all - reference_first))
            before = served.metrics()
            ours.append(tokens_per_second(*served.complete(ids, sizes.new_tokens)))
            after = served.metrics()
            steps_only.append({key: after[key] - before.get(key, 0.0) for key in after})
            count, seconds = served.complete_many(
                [prompt(sizes.prompt_tokens, turn * 100 + user) for user in range(8)], sizes.new_tokens
            )
            eight.append(count / seconds)
            long = prompt(sizes.long_prompt_tokens, turn)
            ttft_theirs.append(reference.ask({"prompt": long, "new_tokens": 1})["seconds"])
            ttft_ours.append(served.complete(long, 1)[1])
            note(
                f"turn {turn}: generate {theirs[-1]:.1f}, one stream {ours[-1]:.1f}, 8 users {eight[-1]:.1f} tokens/s"
            )
        rows = [
            Row("`generate`, unsplit, one stream", Samples.of(theirs).show("tokens/s")),
            Row(
                "one stream, 3 segments",
                Samples.of(ours).show("tokens/s"),
                ratios(ours, theirs),
                0.9,
            ),
            Row(
                "8 users, 3 segments, against one stream",
                Samples.of(eight).show("tokens/s"),
                ratios(eight, ours),
                3.0,
            ),
            Row("TTFT, 512-token prompt, `generate`", Samples.of(ttft_theirs).show("s", 3)),
            Row(
                "TTFT, 512-token prompt, 3 segments",
                Samples.of(ttft_ours).show("s", 3),
                ratios(ttft_ours, ttft_theirs),
                1.1,
                "lower",
            ),
        ]
        rows += parts(steps_only, len(served.hosts), [1e3 / speed for speed in ours])
        rows += memory(served, idle)
    return rows


ENTRY_PARTS = ("embed", "wire", "return_queue", "decode", "head", "sample")


def parts(
    turns: Sequence[dict[tuple[str, str, str], float]], hops: int, per_token: Sequence[float]
) -> list[Row]:
    """Milliseconds of one token of one stream, by part, from the entry's own histograms.

    The rest is what the client saw (``per_token``) and no part has: hand-over between threads, the stream to the
    client, the client itself.
    """

    def mean(name: str, part: str, hop: str = "") -> Samples:
        return Samples.of(
            [1e3 * t[(f"{name}_sum", part, hop)] / max(1.0, t[(f"{name}_count", part, hop)]) for t in turns]
        )

    hop, step = "splitinfer_entry_hop_seconds", "splitinfer_entry_step_seconds"

    def over_hops(part: str) -> Samples:
        each = [mean(hop, part, str(h)).values for h in range(hops)]
        return Samples.of([sum(values) for values in zip(*each, strict=True)])

    columns = {f"{part}, all hosts": over_hops(part) for part in ("compute", "serialise", "queue")}
    columns |= {part.replace("_", " "): mean(step, part) for part in ENTRY_PARTS}
    known = [sum(values) for values in zip(*(samples.values for samples in columns.values()), strict=True)]
    columns["rest"] = Samples.of([all_ - some for all_, some in zip(per_token, known, strict=True)])
    return [Row(f"per token: {name}", samples.show("ms", 2)) for name, samples in columns.items()]


def memory(served: Chain, fixed: Sequence[int]) -> list[Row]:
    """Private memory of each host once its whole KV budget has been written, against weights + budget + fixed part.

    The fixed part (Python, torch, transformers, buffers) is measured beforehand, with the weights loaded and hardly
    any KV. Private (USS) and not resident memory: what the processes of one machine share is counted once by nobody.
    """
    users, context = served.concurrency, served.context
    for host in served.hosts:
        host.watch_peak()
    served.complete_many([prompt(context - 2, 7000 + user) for user in range(users)], 2)
    rows = []
    for host, base, (node, view) in zip(
        served.hosts, fixed, sorted(served.status()["hosts"].items()), strict=True
    ):
        used, weights = host.private_bytes(), view["weight_bytes"]
        budget = sum(r["kv_budget_bytes"] for r in view["ranges"])
        rows.append(
            Row(
                f"memory of {node} at its peak",
                f"{host.peak_bytes / MIB:.0f} MiB; weights {weights / MIB:.0f} + KV budget {budget / MIB:.0f} + fixed "
                f"{(base - weights) / MIB:.0f}; {used / MIB:.0f} once all is released",
                Samples.of([host.peak_bytes / (base + budget)]),
                1.0,
                "lower",
            )
        )
    return rows


def micro_batches(model: StoredModel, sizes: Sizes, note: Note) -> list[Row]:
    """Two hosts of one thread each: two micro-batches in flight against one, of the same size, for 16 users."""
    users = 16
    options = ("--max-sessions", "8", "--min-sessions", "8", "--micro-batches")
    speeds: dict[str, list[float]] = {"1": [], "2": []}
    plan: dict[str, Any] = {
        "concurrency": users,
        "context": 256,
        "engine": sizes.engine,
        "dtype": sizes.dtype,
    }
    with (
        chain(model, 2, 1, *options, "1", **plan) as one,
        chain(model, 2, 1, *options, "2", **plan) as two,
    ):
        for turn in range(sizes.repeats + 1):
            for name, served in (("1", one), ("2", two)):
                prompts = [prompt(sizes.prompt_tokens, turn * 100 + user) for user in range(users)]
                count, seconds = served.complete_many(prompts, sizes.new_tokens)
                if turn:  # the first warms
                    speeds[name].append(count / seconds)
            if turn:
                note(
                    f"turn {turn}: one micro-batch {speeds['1'][-1]:.1f}, two {speeds['2'][-1]:.1f} tokens/s"
                )
    return [
        Row("16 users, 2 hosts, one micro-batch of 8 in flight", Samples.of(speeds["1"]).show("tokens/s")),
        Row(
            "16 users, 2 hosts, two micro-batches of 8 in flight",
            Samples.of(speeds["2"]).show("tokens/s"),
            ratios(speeds["2"], speeds["1"]),
            1.6,
        ),
    ]


def run(sizes: Sizes, note: Note) -> str:
    """All of it, as a report."""
    model = import_model("smollm2")
    with tempfile.TemporaryDirectory() as folder:
        reference = Worker(
            "benchmarks.reference", "--threads", str(sizes.threads), log=Path(folder) / "reference.log"
        )
        try:
            reference.ask({"prompt": prompt(16, 0), "new_tokens": 8})
            reference.ask({"prompt": prompt(512, 0), "new_tokens": 2})
            first = single_stream(model, reference, sizes, note)
            first += wire.rows(4 * model.index.hidden_size, sizes.repeats)
            first += wire.handover_rows(sizes.repeats)
        finally:
            reference.stop()
    second = micro_batches(model, sizes, note)
    what = f"{sizes.engine} engine, {sizes.dtype}"
    return (
        table(f"Segment runtime, {what}, {sizes.threads} threads; `generate` in float32", first)
        + "\n\n"
        + table(f"Micro-batches, {what}, 1 thread per host", second)
    )
