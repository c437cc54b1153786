"""``python -m benchmarks``: the runtime as users meet it, or the engine alone."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from dataclasses import replace

from benchmarks import engine, runtime


def main() -> int:
    """Exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("name", nargs="?", default="runtime", choices=["runtime", "engine"])
    parser.add_argument(
        "--repeats", type=int, default=runtime.Sizes.repeats, help="turns of each measurement"
    )
    parser.add_argument("--threads", type=int, default=runtime.Sizes.threads, help="threads of every process")
    args = parser.parse_args()
    sizes = replace(runtime.Sizes(), repeats=args.repeats, threads=args.threads)

    def note(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} CPUs\n")
    if args.name == "engine":
        report = engine.run(args.threads, args.repeats, note)
    else:
        report = runtime.run(sizes, note)
    print(report)
    return 1 if "MISSED" in report else 0


if __name__ == "__main__":
    sys.exit(main())
