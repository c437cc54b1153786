"""An engine of ours in one process without wire and endpoint: the counterpart of `llama-batched-bench`.

Driven by lines of JSON as `benchmarks.reference` is. ``python -m benchmarks.unsplit --engine E --dtype D --threads T``
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import SessionRows
from splitinfer.segment_runtime.entry.embed import Embedder
from splitinfer.segment_runtime.store.importer import import_model


class KernelClock:
    """Seconds inside ONNX Runtime, by a watch around the two calls that enter it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self) -> None:
        """From now on, for the whole process."""
        from onnxruntime import InferenceSession

        for name in ("run", "run_with_iobinding"):
            setattr(InferenceSession, name, self._timed(getattr(InferenceSession, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


class Unsplit:
    """Embedding, all blocks and the head; greedy."""

    def __init__(self, engine: str, dtype: str, threads: int) -> None:
        """Load the default model."""
        model = import_model("smollm2")
        self._clock = KernelClock()
        if engine == "onnx":
            self._clock.watch()  # a microsecond per call, of some thirty calls per step
        made = create_engine(engine, "cpu", threads)
        self._embedder = Embedder(model, "float32")
        self._range = made.load_range(model, 0, model.index.blocks, dtype)
        self._head = made.load_head(model, dtype)
        self._next = 0

    @property
    def weight_bytes(self) -> int:
        """Bytes that a step reads: all blocks and the head, and of the embedding only a row per token."""
        return self._range.weight_bytes + self._head.weight_bytes

    def generate(self, prompt: Sequence[int], batch: int, new_tokens: int) -> dict[str, float]:
        """Seconds of the prompts, to the first token of each, and of the ``new_tokens - 1`` steps after them.

        ``kernel_seconds`` is what of the steps was inside ONNX Runtime.

        Args:
            prompt: token ids, the same for each session.
            batch: sessions in each step.
            new_tokens: of each session, at least one.
        """
        sessions = [self._next + i + 1 for i in range(batch)]
        self._next += batch
        for session in sessions:
            self._range.open(session, len(prompt) + new_tokens)
        began = time.perf_counter()
        tokens = []
        for session in sessions:
            hidden = self._embedder.embed(prompt, 0)
            last = self._range.step(hidden, [SessionRows(session, 0, len(prompt))])[-1:]
            tokens.append(int(self._head.logits(last).argmax()))
        first, kernels = time.perf_counter(), self._clock.seconds
        for position in range(len(prompt), len(prompt) + new_tokens - 1):
            hidden = self._embedder.embed(tokens, position)
            rows = [SessionRows(session, position, 1, decode=True) for session in sessions]
            logits = self._head.logits(self._range.step(hidden, rows))
            tokens = [int(token) for token in np.argmax(logits, axis=1)]
        done, kernels = time.perf_counter(), self._clock.seconds - kernels
        for session in sessions:
            self._range.close(session)
        return {
            "prompt_seconds": first - began,
            "decode_seconds": done - first,
            "kernel_seconds": kernels,
        }


def main() -> int:
    """Answer each request line ``{"prompt": [...], "batch": B, "new_tokens": N}`` with seconds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    engine = Unsplit(args.engine, args.dtype, args.threads)
    print(json.dumps({"event": "listening", "weight_bytes": engine.weight_bytes}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(engine.generate(**request)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
