"""What one block of the actual model takes on this node, measured: one JSON line on stdout, then the process ends.

``python -m splitinfer.segment_runtime.probe --model NAME --dtype D --engine E --threads T``

The profiler's agent runs it at low priority, in a process of its own: the profiler knows no engine, and what a probe
takes goes back to the system with it. One and two blocks are timed, so that what a step takes whatever its blocks can
be told from what a block takes. Before each step the caches are emptied: in a host, a block's weights were last
touched a whole step ago.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from splitinfer.optimizer.plan import activation_of
from splitinfer.segment_runtime.cpu_options import add_thread_options, threads_of
from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import Engine, EngineError, LoadedRange, SessionRows
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.store.errors import StoreError
from splitinfer.segment_runtime.store.reader import NUMPY_DTYPES, ModelStore, StoredModel
from splitinfer.segment_runtime.wire import array_of, put_array

CONTEXT = 128
"""Tokens in the cache of a session that decodes."""
ROWS = 8
"""Sessions of the larger decode step."""
FLUSH_BYTES = 96 << 20
"""More than the last-level cache of an edge node; it is also what the memory's bandwidth is measured over."""

FRAME_ROWS = 512
"""Rows of a large frame: a prefill chunk."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class BlockTimes:
    """Seconds of one step of a range, medians.

    Attributes:
        blocks: of the range.
        decode_one: one session's token after `CONTEXT` others.
        decode_many: `ROWS` sessions' tokens.
        prefill: a chunk of `CONTEXT` tokens.
    """

    blocks: int
    decode_one: float
    decode_many: float
    prefill: float


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe found. Bytes per second are achieved, with ``threads`` threads.

    ``frame_seconds`` is what a frame of one row takes to be written and read again, ``frame_bytes_per_second`` how fast
    the activations of a larger one are.
    """

    model_digest: str
    dtype: str
    engine: str
    version: str
    threads: int
    weight_bytes: int
    kv_bytes_per_token: int
    context_tokens: int
    rows: int
    memory_bytes_per_second: float
    frame_seconds: float
    frame_bytes_per_second: float
    times: tuple[BlockTimes, BlockTimes]


class Memory:
    """A buffer larger than the caches."""

    def __init__(self, threads: int, nbytes: int = FLUSH_BYTES) -> None:
        """Touch it, so that its pages are there."""
        self._parts: Sequence[NDArray[np.float32]] = np.array_split(np.ones(nbytes // 4, np.float32), threads)
        self._nbytes = nbytes
        self._pool = ThreadPoolExecutor(threads)

    def read(self) -> None:
        """All of it, by all threads; numpy lets go of the interpreter while it sums."""
        for _ in self._pool.map(np.sum, self._parts):
            pass

    def bytes_per_second(self, repeats: int, clock: Clock) -> float:
        """Achieved when it is read; the best of some, because whatever disturbs only slows."""
        return self._nbytes / min(_seconds(self.read, clock) for _ in range(repeats))


def frame_times(hidden_size: int, dtype: str, repeats: int, clock: Clock) -> tuple[float, float]:
    """Seconds of a frame of one row through both ends, and bytes per second of the rows of a larger one."""

    def through(rows: int) -> tuple[float, int]:
        array = np.zeros((rows, hidden_size), NUMPY_DTYPES[activation_of(dtype)])  # type: ignore[arg-type]

        def work() -> None:
            frame = pb.Frame()
            put_array(frame, array, activation_of(dtype))  # type: ignore[arg-type]
            array_of(pb.Frame.FromString(frame.SerializeToString()))

        return min(_seconds(work, clock) for _ in range(repeats + 1)), array.nbytes

    (one, small), (many, large) = through(1), through(FRAME_ROWS)
    return one, (large - small) / max(many - one, one / 10)  # too fast to tell: a lower bound


def _seconds(work: Callable[[], object], clock: Clock) -> float:
    began = clock()
    work()
    return clock() - began


def measure(engine: Engine, model: StoredModel, dtype: str, repeats: int, clock: Clock) -> Probe:
    """Time the first two blocks.

    Raises:
        EngineError: the engine does not have the model or the dtype.
        StoreError: a damaged model.
    """
    memory = Memory(engine.threads)
    rate = memory.bytes_per_second(repeats, clock)
    frame, frame_rate = frame_times(model.index.hidden_size, dtype, repeats, clock)
    found = []
    for blocks in (1, min(2, model.index.blocks)):
        loaded = engine.load_range(model, 0, blocks, dtype)
        weights, kv = loaded.weight_bytes, loaded.kv_bytes_per_token
        name, version = loaded.identity.engine, loaded.identity.version
        found.append((weights, kv, _times(loaded, blocks, model, dtype, memory, repeats, clock)))
        loaded.drop()
    (weights, kv, one), (_, _, two) = found
    return Probe(
        model.digest,
        dtype,
        name,
        version,
        engine.threads,
        weights,
        kv,
        CONTEXT,
        ROWS,
        rate,
        frame,
        frame_rate,
        (one, two),
    )


def _times(
    loaded: LoadedRange,
    blocks: int,
    model: StoredModel,
    dtype: str,
    memory: Memory,
    repeats: int,
    clock: Clock,
) -> BlockTimes:
    kind = NUMPY_DTYPES[activation_of(dtype)]  # type: ignore[arg-type]  # checked by the engine, which loaded it
    rows = np.random.default_rng(0).standard_normal((CONTEXT, model.index.hidden_size)).astype(kind)
    prefill = []
    for session in range(ROWS):
        loaded.open(session, CONTEXT + 2 * (repeats + 1))
        memory.read()
        prefill.append(
            _seconds(lambda s=session: loaded.step(rows, [SessionRows(s, 0, CONTEXT)]), clock)  # type: ignore[misc]
        )

    def decode(sessions: int, position: Callable[[int], int]) -> float:
        taken = []
        for _ in range(repeats + 1):
            memory.read()
            batch = [SessionRows(s, position(s), 1, decode=True) for s in range(sessions)]
            taken.append(_seconds(lambda b=batch: loaded.step(rows[:sessions], b), clock))  # type: ignore[misc]
        return median(taken[1:])  # the first warms

    one = decode(1, loaded.length)
    many = decode(ROWS, loaded.length)
    return BlockTimes(blocks, one, many, median(prefill[1:]))


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
    p.add_argument("--repeats", type=int, default=5)
    return p


def main() -> int:
    """Exit code 2 for bad input."""
    args = parser().parse_args()
    try:
        if args.repeats < 1:
            raise ValueError("--repeats: must be at least 1")
        engine = create_engine(args.engine, args.device, threads_of(args))
        model = ModelStore(args.store).open(args.model)
        found = measure(engine, model, args.dtype, args.repeats, time.perf_counter)
    except (ValueError, EngineError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
