"""``python -m tests.support.prober ADDRESS``: probe a link from where this runs, and say one line of JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import asdict

from splitinfer.profiler.links import LinkProbeError, measure


def main() -> int:
    """The readings, or ``{"error": WHY}``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--timeout", type=float, default=5.0)
    args = parser.parse_args()
    try:
        print(json.dumps(asdict(asyncio.run(measure(args.address, timeout_seconds=args.timeout)))))
    except LinkProbeError as error:
        print(json.dumps({"error": str(error)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
