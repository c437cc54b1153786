"""The long run: plans changed and hosts killed under running streams, and no stream may notice.

``python -m tests.chaos.soak --model smollm2 --changes 50 --kills 20 --streams 4 --seed 1``

Then, unless ``--only-churn``, the tests that take a sample in ``make test`` run in full: 10,000 damaged frames
against a real host, and resident memory over 1,000 requests.

Ends with a line of figures and exit code 0, or with the streams that went wrong and 1. The order of changes and
kills, their plans and the requests come from the seed; their exact moments do not, as the machine has its own.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import structlog
import torch

from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.store.reader import StoredModel
from splitinfer.segment_runtime.text.codec import TextCodec
from tests.support.churn import Churn
from tests.support.fleet import Fleet, Load, assert_no_leak, random_plan
from tests.support.models import random_case, smollm2_stored
from tests.support.pipelines import running_entry
from tests.support.twins import Twin, TwinMaker, make_twins, random_prompts

NODES = ("node-0", "node-1", "node-2", "node-3")
MARGINS = {"tiny": 2e-3, "smollm2": 2e-2}
"""Over a hundred times what rounding moves the logits by, which tests/runtime/engine/test_replay.py measures."""

TEXTS = (
    "Once upon a time, in a small village by the sea, there lived",
    "The three laws of thermodynamics are",
    "def fibonacci(n):\n    ",
    "The capital of France is Paris. The capital of Italy is",
    "Water boils at 100 degrees Celsius because",
    "1, 2, 3, 4, 5, 6, 7,",
    "To make a cup of tea, first",
    "The quick brown fox jumps over the lazy dog. The quick brown fox",
)


def model_and_prompts(name: str, root: Path) -> tuple[StoredModel, Path, list[list[int]]]:
    """The model, the folder of its store, and prompts that suit it."""
    if name == "tiny":
        case = random_case("llama", root)
        return case.stored, root / "models", random_prompts(case.stored.index.vocab_size, 40, (2, 40), seed=3)
    model = smollm2_stored()
    codec = TextCodec.from_model(model)
    prompts = [list(codec.encode(text)) for text in TEXTS]
    prompts += [ids[:cut] for ids in prompts for cut in range(3, len(ids))]
    return model, model.path.parent, prompts


async def soak(args: argparse.Namespace, root: Path) -> int:
    """Run it; gives the exit code."""
    torch.set_num_threads(1)
    engine = create_engine("torch", "cpu", 1)
    model, store, prompts = model_and_prompts(args.model, root)
    fleet = Fleet(store, root)
    rng = Random(args.seed)
    began = time.monotonic()
    try:
        twins: list[Twin] = make_twins(
            TwinMaker(model, engine),
            prompts,
            count=args.twins,
            output=(16, 40),
            margin=MARGINS[args.model],
            seed=args.seed,
        )
        prepared = time.monotonic()
        hosts = fleet.ensure(NODES)
        async with running_entry(model, engine=engine) as entry:
            await entry.serve(random_plan(rng, entry, NODES, context=96), hosts)
            churn = Churn(entry, fleet, NODES, rng, 96)
            events = ["change"] * args.changes + ["kill"] * args.kills
            rng.shuffle(events)
            async with Load(entry, twins, args.streams, args.seed) as load:
                for number, event in enumerate(events):
                    if load.wrong:
                        break
                    await (churn.change(load) if event == "change" else churn.kill(load))
                    print(
                        f"{number + 1}/{len(events)} {event}, epoch {entry.pipeline.epoch}", file=sys.stderr
                    )
                await load.more_tokens(20)
            if not load.wrong:
                await assert_no_leak(entry, fleet.ensure(NODES))
        print(
            f"{args.model} seed {args.seed}: {churn.changes} changes, {churn.kills} kills, {args.streams} streams, "
            f"{load.finished} requests, {entry.pipeline.observed.tokens_total} tokens, {len(load.wrong)} wrong; twins in "
            f"{prepared - began:.0f} s, run in {time.monotonic() - prepared:.0f} s"
        )
        for line in load.wrong:
            print(line)
        return 1 if load.wrong else 0
    finally:
        fleet.stop()


def whole_tests(seed: int) -> int:
    """The sampled tests, in full."""
    full = {"SPLITINFER_TEST_MUTATIONS": "10000", "SPLITINFER_TEST_REQUESTS": "1000"}
    tests = [
        "tests/runtime/host/test_frames.py::test_damaged_frames_are_answered_one_by_one",
        "tests/runtime/pipeline/test_storms.py::test_memory_is_flat_over_many_requests",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "--timeout", "1800", *tests]
    return subprocess.run(command, env=os.environ | full | {"SPLITINFER_TEST_SEED": str(seed)}).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 when a stream went wrong."""
    p = argparse.ArgumentParser(prog="soak", description=__doc__.splitlines()[0])
    p.add_argument("--model", choices=sorted(MARGINS), default="smollm2")
    p.add_argument("--changes", type=int, default=50)
    p.add_argument("--kills", type=int, default=20)
    p.add_argument("--streams", type=int, default=4)
    p.add_argument("--twins", type=int, default=12, help="different requests")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--only-churn", action="store_true", help="not the tests that run in full afterwards")
    p.add_argument("--log-level", default="error")
    args = p.parse_args(arguments)
    level = getattr(logging, args.log_level.upper())
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        code = asyncio.run(soak(args, root))
    except BaseException:
        print(f"logs of the hosts: {root}", file=sys.stderr)
        raise
    if code:
        print(f"logs of the hosts: {root}", file=sys.stderr)
    else:
        shutil.rmtree(root)
    return code or (0 if args.only_churn else whole_tests(args.seed))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
