"""What one block of the actual model takes on this node, measured: one JSON line on stdout, then the process ends.

``python -m splitinfer.segment_runtime.probe --model NAME --dtype D --engine E --threads T``

The profiler's agent runs it at low priority, in a process of its own: the profiler knows no engine, and what a probe
takes goes back to the system with it. One block and a few are timed, so that what a step takes whatever its blocks can
be told from what a block takes. Before each step the caches are emptied: in a host, a block's weights were last
touched a whole step ago.

What is told is the node's own speed, without what others take of it: that changes from second to second, is measured
beside the probe, and would be counted twice. So one thread is timed by its own CPU clock, which stands while others
run, or while a quota holds the process back. Threads that wait for one another, and a GPU, have no such clock: there
the shortest of the repeats counts, because whatever disturbs only slows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, prod
from pathlib import Path
from statistics import median

import numpy as np

from splitinfer.optimizer.dtypes import activation_of
from splitinfer.segment_runtime.cpu_options import add_thread_options, threads_of
from splitinfer.segment_runtime.engine.cpu import largest_cache_bytes
from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import Engine, EngineError, KvBlob, LoadedRange, SessionRows
from splitinfer.segment_runtime.engine.threads import cpu_quota
from splitinfer.segment_runtime.probe_frames import frame_times
from splitinfer.segment_runtime.probe_memory import FLUSH_BYTES, Memory, Timer, flush_bytes
from splitinfer.segment_runtime.store.errors import StoreError
from splitinfer.segment_runtime.store.index import ModelIndex, block_unit
from splitinfer.segment_runtime.store.reader import NUMPY_DTYPES, ModelStore, StoredModel

CONTEXT = 128
"""Tokens in the cache of a session that decodes."""
MOST_CHUNKS = 8
"""Prompts that go through the smaller range at most."""
MOST_BLOCKS = 4
"""Of the larger range: what a probe takes is bounded."""


def timer_of(device: str, threads: int) -> Timer:
    """See above: the CPU clock of the calling thread where it computes alone."""
    return (
        Timer(time.thread_time, median)
        if device == "cpu" and threads == 1
        else Timer(time.perf_counter, min, more=3)
    )


@dataclass(frozen=True, slots=True)
class BlockTimes:
    """Seconds of one step of a range.

    Attributes:
        blocks: of the range.
        decode_one: one session's token after `CONTEXT` others.
        prefill: a chunk of `CONTEXT` tokens.
    """

    blocks: int
    decode_one: float
    prefill: float


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe found. Bytes per second are achieved, with ``threads`` threads.

    ``frame_seconds`` is what a host does with a frame of one row beside the blocks, ``frame_bytes_per_second`` how fast
    the activations of a larger one are written and read again. FLOPs are of one block and per token: 2 per weight, and 4 x hidden size per
    token of context looked at, which in a chunk are half of it on average. ``quota_cpus`` is what the control group
    lets the process use, on average; none of the times has it in it.
    """

    model_digest: str
    dtype: str
    engine: str
    version: str
    threads: int
    weight_bytes: int
    kv_bytes_per_token: int
    context_tokens: int
    prefill_flops_per_token: float
    decode_flops_per_token: float
    memory_bytes_per_second: float
    frame_seconds: float
    frame_bytes_per_second: float
    quota_cpus: float | None
    free_device_bytes: int | None
    times: tuple[BlockTimes, BlockTimes]


def lever(blocks: int, weight_bytes: int, cache_bytes: int | None) -> int:
    """Blocks of the larger range: their weights do not fit into the caches, and a disturbed step counts for a part only.

    A difference between one and two blocks is a small one between two noisy times; over more of them it is the same noise
    by so many times as much. Between 2 and `MOST_BLOCKS`, of a model that has so many ``blocks``.
    """
    wanted = ceil(2 * (cache_bytes or FLUSH_BYTES) / weight_bytes)
    return min(blocks, max(2, min(MOST_BLOCKS, wanted)))


def block_flops(index: ModelIndex) -> tuple[float, float]:
    """FLOPs per token of a block's matrices, and of its attention per token that is looked at.

    As `splitinfer.profiler.model_costs` counts them, from which predictions are made; a test holds the two together.
    """
    shapes = {name: t.shape for name, t in index.units[block_unit(0)].tensors.items()}
    widths = [shape[1] for name, shape in shapes.items() if name.endswith("o_proj.weight")]
    matrices = 2.0 * sum(prod(shape) for shape in shapes.values() if len(shape) == 2)
    return matrices, 4.0 * (widths[0] if widths else index.hidden_size)


def measure(engine: Engine, model: StoredModel, dtype: str, repeats: int, timer: Timer) -> Probe:
    """Time one block, and a few.

    Raises:
        EngineError: the engine does not have the model or the dtype.
        StoreError: a damaged model.
    """
    free = engine.free_device_bytes  # before anything of ours is there
    repeats *= timer.more
    first = engine.load_range(model, 0, 1, dtype)
    more = lever(model.index.blocks, first.weight_bytes, largest_cache_bytes())
    # The second range shares the block of the first, which is not loaded twice.
    ranges = (first, engine.load_range(model, 0, more, dtype))
    memory = Memory(engine.threads, flush_bytes())
    activation = activation_of(dtype)  # type: ignore[arg-type]  # checked by the engine, which loaded it
    frame, frame_rate = frame_times(model.index.hidden_size, activation, 2 * repeats, memory.read)
    matrices, attention = block_flops(model.index)
    one, context = _times(first, model, dtype, memory, repeats, timer)
    two, _ = _times(ranges[1], model, dtype, memory, repeats, timer, context)
    return Probe(
        model_digest=model.digest,
        dtype=dtype,
        engine=first.identity.engine,
        version=first.identity.version,
        threads=engine.threads,
        weight_bytes=first.weight_bytes,
        kv_bytes_per_token=first.kv_bytes_per_token,
        context_tokens=CONTEXT,
        # A kernel computes all of a chunk's rectangle and masks it: a token of the prompt looks at as many as one that decodes.
        prefill_flops_per_token=matrices + attention * CONTEXT,
        decode_flops_per_token=matrices + attention * CONTEXT,
        memory_bytes_per_second=memory.bytes_per_second(repeats, timer),
        frame_seconds=frame,
        frame_bytes_per_second=frame_rate,
        quota_cpus=cpu_quota(),
        free_device_bytes=free,
        times=(one, two),
    )


def _times(
    loaded: LoadedRange,
    model: StoredModel,
    dtype: str,
    memory: Memory,
    repeats: int,
    timer: Timer,
    context: KvBlob | None = None,
) -> tuple[BlockTimes, KvBlob]:
    """The times of a range, and the KV of a chunk in it.

    With the ``context`` of one block every block gets that: what is in it takes no part of the time, and a chunk through
    a large range is the dearest step of all, so that it is made no more often than it is timed.
    """
    kind = NUMPY_DTYPES[activation_of(dtype)]  # type: ignore[arg-type]  # checked by the engine, which loaded it
    rows = np.random.default_rng(0).standard_normal((CONTEXT, model.index.hidden_size)).astype(kind)
    blocks = loaded.stop - loaded.start
    chunks = min(MOST_CHUNKS, max(2, repeats // 2) + 1)

    def timed(batch: Sequence[SessionRows]) -> float:
        memory.read()
        count = sum(part.count for part in batch)
        return timer.seconds(lambda: loaded.step(rows[:count], batch))

    def prefill(sessions: Iterable[int]) -> list[float]:
        return [timed([SessionRows(session, 0, CONTEXT)]) for session in sessions]

    def decode() -> float:
        taken = [timed([SessionRows(0, loaded.length(0), 1, decode=True)]) for _ in range(repeats + 1)]
        return timer.pick(taken[1:])  # the first warms

    for session in range(chunks if context is None else 1 + timer.more):
        loaded.open(session, CONTEXT + repeats + 1)  # what is decoded below
    if context is None:
        chunk = timer.pick(prefill(range(chunks))[1:])
        return BlockTimes(blocks, decode(), chunk), loaded.export_kv(0, 0, CONTEXT)
    kv = replace(context, data=context.data * blocks)
    loaded.import_kv(0, kv)
    one = decode()
    chunk = timer.pick(prefill(range(1, 1 + timer.more)))  # the steps before have warmed
    return BlockTimes(blocks, one, chunk), kv


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="splitinfer-probe", description="Time one block of a model on this node."
    )
    p.add_argument("--model", required=True, help="name of the model in the store")
    p.add_argument("--store", type=Path, help="folder of the model store")
    p.add_argument("--dtype", default="float32")
    p.add_argument("--engine", default="auto", help="auto, onnx or torch")
    p.add_argument("--device", default="cpu", help="cpu, or cuda[:N]")
    add_thread_options(p)
    p.add_argument("--repeats", type=int, default=4, help="steps that are timed of each kind")
    return p


def main() -> int:
    """Exit code 2 for bad input."""
    args = parser().parse_args()
    try:
        if args.repeats < 1:
            raise ValueError("--repeats: must be at least 1")
        engine = create_engine(args.engine, args.device, threads_of(args))
        model = ModelStore(args.store).open(args.model)
        found = measure(engine, model, args.dtype, args.repeats, timer_of(engine.device, engine.threads))
    except (ValueError, EngineError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
