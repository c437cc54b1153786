"""``python -m benchmarks``: what is measured, and against what.

The runtime as users meet it, engines alone or against rivals, few bits, the optimizer, links of many nodes, predictions
beside observations, what profiling costs.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
from dataclasses import replace

from benchmarks import engine, quality, runtime
from splitinfer.segment_runtime.engine.threads import usable_cpus


def main() -> int:
    """Exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument(
        "name",
        nargs="?",
        default="runtime",
        choices=["runtime", "engine", "engines", "quality", "optimizer", "links", "predictions", "overhead"],
    )
    parser.add_argument(
        "--repeats", type=int, default=runtime.Sizes.repeats, help="turns of each measurement"
    )
    parser.add_argument(
        "--threads",
        type=int,
        help="threads of every process; runtime: the CPUs divided by the segments, engines: 1, else: the CPUs",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=["unsplit", "split", "batch", "prefill", "delay"],
        help="engines: this part, and others that are named so",
    )
    parser.add_argument("--seeds", type=int, default=3, help="optimizer, links: instances of each kind")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="optimizer: time that each rival gets, links: each plan"
    )
    parser.add_argument("--engine", default=runtime.Sizes.engine, help="runtime: onnx or torch")
    parser.add_argument("--dtype", default=runtime.Sizes.dtype, help="runtime: float32, int8, int4, ...")
    args = parser.parse_args()
    for option, least in (("repeats", args.repeats), ("threads", args.threads)):
        if least is not None and least < 1:
            parser.error(f"--{option}: must be at least 1, not {least}")
    defaults = {"runtime": runtime.Sizes.threads, "overhead": runtime.Sizes.threads, "engines": 1}
    threads = args.threads or defaults.get(args.name, usable_cpus())
    sizes = replace(
        runtime.Sizes(), repeats=args.repeats, threads=threads, engine=args.engine, dtype=args.dtype
    )

    def note(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} CPUs\n")
    if args.name == "engine":
        report = engine.run(threads, args.repeats, note)
    elif args.name == "quality":
        report = quality.run(threads, args.repeats, note)
    elif args.name == "engines":
        from benchmarks import engines
        from benchmarks.llama import RivalFailed
        from benchmarks.llama_build import CannotBuild

        # llama.cpp's servers do not end with their parent: SIGTERM must unwind the stack that ends them.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            missed = False
            for paragraph in engines.run(threads, args.repeats, args.only, note):
                print(paragraph + "\n", flush=True)  # what is measured is kept when a later part fails
                missed = missed or "MISSED" in paragraph
            return int(missed)
        except (CannotBuild, RivalFailed) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    elif args.name == "optimizer":
        # The rivals' solvers are an extra; the other benchmarks do not need them.
        from benchmarks import optimizer

        report = optimizer.run(args.seeds, args.seconds, note)
    elif args.name == "predictions":
        from benchmarks import predictions

        report = predictions.run(args.repeats, note)
    elif args.name == "links":
        from benchmarks import links

        report = links.run(args.seeds, args.seconds, note)
    elif args.name == "overhead":
        from benchmarks import overhead

        report = overhead.run(sizes, note)
    else:
        report = runtime.run(sizes, note)
    print(report)
    return 1 if "MISSED" in report else 0


if __name__ == "__main__":
    sys.exit(main())
