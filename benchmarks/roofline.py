"""What memory allows: a decode step reads every weight once, so bandwidth over bytes bounds tokens per second.

Williams, Waterman and Patterson, "Roofline" (2009), for a kernel that is bound by memory. ``python -m
benchmarks.roofline --threads T`` prints the bandwidth; a process of its own, because numpy's BLAS must not open threads.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Row, Samples

BUFFER_BYTES = 1 << 29
"""More than the caches of any CPU that this is for."""
PASSES = 5

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes per second: ``read`` of the fastest of numpy's reductions, ``copy`` with both its directions counted."""

    read: float
    copy: float

    def better(self, other: Bandwidth) -> Bandwidth:
        """The larger of both, each way."""
        return Bandwidth(max(self.read, other.read), max(self.copy, other.copy))


def fastest(kernel: Callable[[Floats], object], buffer: Floats, threads: int) -> float:
    """Passes over ``buffer`` per second, the best of `PASSES`, its parts on ``threads`` threads."""
    parts = np.array_split(buffer, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(PASSES):
            began = time.perf_counter()
            list(pool.map(kernel, parts))
            best = max(best, 1 / (time.perf_counter() - began))
    return best


def measure(threads: int, size: int = BUFFER_BYTES) -> Bandwidth:
    """On this machine, now.

    Args:
        threads: as many as the processes under measurement have.
        size: bytes of the buffer.
    """
    buffer = np.ones(size // 4, np.float32)
    readers: tuple[Callable[[Floats], object], ...] = (np.sum, np.max, lambda part: np.dot(part, part))
    read = max(fastest(reader, buffer, threads) for reader in readers)

    def copy(part: Floats) -> None:
        half = len(part) // 2
        np.copyto(part[half : 2 * half], part[:half])

    return Bandwidth(read * buffer.nbytes, fastest(copy, buffer, threads) * buffer.nbytes)


def measure_apart(threads: int) -> Bandwidth:
    """The same in a process whose BLAS has one thread per thread of ours. Raises RuntimeError with what it said."""
    single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.roofline", "--threads", str(threads)]
    done = subprocess.run(command, env=os.environ | single, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the bandwidth could not be measured: {done.stderr[-2000:]}")
    return Bandwidth(**json.loads(done.stdout))


def roof(name: str, weight_bytes: int, bandwidth: Bandwidth, speeds: Sequence[float]) -> Row:
    """How much of what the bandwidth allows is reached.

    Args:
        name: whose speeds they are.
        weight_bytes: read per token.
        bandwidth: of memory; reading counts.
        speeds: tokens per second of a lone session, turn by turn.
    """
    most = bandwidth.read / weight_bytes
    allowed = f"{weight_bytes / 1e6:.0f} MB per token, read {bandwidth.read / 1e9:.1f} (copy {bandwidth.copy / 1e9:.1f}) GB/s"
    reached = Samples.of([speed / most for speed in speeds])
    return Row(f"{name}: part of the roofline that is reached", f"{allowed}: {most:.1f} tokens/s", reached)


def main() -> int:
    """Print it as a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    found = measure(parser.parse_args().threads)
    print(json.dumps({"read": found.read, "copy": found.copy}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
