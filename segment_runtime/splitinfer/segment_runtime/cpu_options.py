"""How many threads a process computes with, as its command line says it."""

from __future__ import annotations

import argparse

from splitinfer.segment_runtime.engine.threads import MAX_THREADS, usable_cpus


def add_thread_options(parser: argparse.ArgumentParser) -> None:
    """``--threads`` and ``--cpu-share``: one or the other."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--threads", type=int, help="compute threads; default: the CPUs this process may use")
    group.add_argument(
        "--cpu-share",
        type=int,
        default=1,
        metavar="N",
        help="take one N-th of those CPUs, at least one, because N processes share them",
    )


def threads_of(arguments: argparse.Namespace) -> int:
    """Threads to compute with; what is wrong with ``--threads`` is for the engine to say. Raises ValueError."""
    if arguments.cpu_share < 1:
        raise ValueError(f"--cpu-share: {arguments.cpu_share}: at least 1 process shares the CPUs")
    if arguments.threads is not None:
        return int(arguments.threads)
    # Rounded down: threads that wait for one another at the end of every matrix product, on a CPU that another
    # process uses, cost more than the CPU that is left over gives.
    return max(1, min(MAX_THREADS, usable_cpus() // int(arguments.cpu_share)))
