"""The torch engine alone, without processes and wire, against transformers' own model. Run in a fresh process."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.report import Row, Samples, table
from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import LoadedRange, SessionRows
from splitinfer.segment_runtime.store.importer import import_model
from splitinfer.segment_runtime.store.reader import StoredModel

CONTEXT = 256
STEPS = 24
PAUSE_SECONDS = 0.05
"""What lies between two steps of a host in a chain of four."""


def milliseconds(step: Callable[[int], object], pause: float = 0.0) -> float:
    """Mean time of one step, after a few that warm; ``pause`` seconds before each are not part of it."""
    taken = 0.0
    for index in range(4 + STEPS):
        time.sleep(pause)
        began = time.perf_counter()
        step(index)
        if index >= 4:
            taken += time.perf_counter() - began
    return 1e3 * taken / STEPS


class Engine:
    """All blocks in one range, with sessions that have a context already."""

    def __init__(self, model: StoredModel, threads: int) -> None:
        """Load the blocks."""
        self.range: LoadedRange = create_engine("torch", "cpu", threads).load_range(
            model, 0, model.index.blocks, "float32"
        )
        self._hidden = model.index.hidden_size
        self._rows = np.random.default_rng(0).standard_normal((CONTEXT, self._hidden)).astype(np.float32)
        self._next = 0

    def decode(self, sessions: int, pause: float = 0.0) -> float:
        """Milliseconds of a step of one token of each of ``sessions``, ``pause`` seconds after the one before."""
        ids = [self._next + i + 1 for i in range(sessions)]
        self._next += sessions
        for session in ids:
            self.range.open(session, CONTEXT + STEPS + 4)
            self.range.step(self._rows, [SessionRows(session, 0, CONTEXT)])
        hidden = self._rows[:sessions]
        taken = milliseconds(
            lambda index: self.range.step(hidden, [SessionRows(s, CONTEXT + index, 1) for s in ids]),
            pause,
        )
        for session in ids:
            self.range.close(session)
        return taken


def transformers_decode(model: Any, config: Any) -> float:
    """Milliseconds of transformers' own blocks for one token after the same context, with its own cache."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=config)
    with torch.inference_mode():
        model(input_ids=torch.arange(100, 100 + CONTEXT)[None], past_key_values=cache, use_cache=True)
        token = torch.tensor([[100]])
        return milliseconds(lambda _: model(input_ids=token, past_key_values=cache, use_cache=True))


def run(threads: int, repeats: int, note: Callable[[str], None]) -> str:
    """One decode step: transformers, the engine, eight sessions, and beside a second team of threads."""
    model = import_model("smollm2")
    engine = Engine(model, threads)
    import torch
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(model.path)
    auto: Any = AutoModel
    reference = auto.from_config(config)  # the time of a step does not depend on the weights
    reference.train(False)
    theirs, one, paused, eight = [], [], [], []
    for turn in range(repeats):
        theirs.append(transformers_decode(reference, config))
        one.append(engine.decode(1))
        paused.append(engine.decode(1, PAUSE_SECONDS))
        eight.append(engine.decode(8))
        note(f"turn {turn + 1}: transformers {theirs[-1]:.1f}, one {one[-1]:.1f}, eight {eight[-1]:.1f} ms")

    def open_team() -> None:
        torch.set_num_threads(threads)
        torch.ones(2048, 2048) @ torch.ones(2048, 2048)

    with ThreadPoolExecutor(1) as other:
        other.submit(open_team).result()
        crowded = [engine.decode(1) for _ in range(repeats)]

    def against(numerators: list[float], denominators: list[float]) -> Samples:
        return Samples.of([a / b for a, b in zip(numerators, denominators, strict=True)])

    rows = [
        Row("transformers' blocks, one session", Samples.of(theirs).show("ms")),
        Row("this engine, one session; the ratio is the speed", Samples.of(one).show("ms"), against(theirs, one), 1.0),
        Row("this engine, after a pause of 50 ms, against none", Samples.of(paused).show("ms"), against(paused, one)),
        Row("this engine, eight sessions in a step, against one", Samples.of(eight).show("ms"), against(eight, one)),
        Row("one session, after another thread opened a team", Samples.of(crowded).show("ms"), against(crowded, one)),
    ]  # fmt: skip
    title = (
        f"One decode step of all {model.index.blocks} blocks, {CONTEXT} tokens of context, {threads} threads"
    )
    return table(title, rows)
