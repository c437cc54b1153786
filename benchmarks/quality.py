"""What few bits cost: perplexity on a fixed text and greedy agreement with float32, beside the speed.

By the onnx engine through its port: all blocks and the head, the text in chunks, and every position's next token
predicted from the true ones before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Samples
from benchmarks.text import TEXT
from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import Engine, LoadedHead, LoadedRange, SessionRows
from splitinfer.segment_runtime.entry.embed import Embedder
from splitinfer.segment_runtime.store.importer import import_model
from splitinfer.segment_runtime.store.reader import StoredModel
from splitinfer.segment_runtime.text.codec import TextCodec

DTYPES = ("float32", "int8", "int4")
CHUNK = 128
DECODE_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Quality:
    """One dtype on the text.

    Attributes:
        perplexity: exp of the mean negative log likelihood of each token given those before it.
        best: the most likely token at every position.
        weight_bytes: of all blocks and the head.
        tokens_per_second: of one stream that decodes, blocks and head, without wire or sampling.
    """

    perplexity: float
    best: NDArray[np.int64]
    weight_bytes: int
    tokens_per_second: Samples


def text_tokens(model: StoredModel) -> list[int]:
    """The fixed text in the model's tokens."""
    return list(TextCodec.from_model(model).encode(TEXT))


def nats(logits: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float64]:
    """Negative log likelihood of each token under its row ``[rows, vocab]``, in float64."""
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    chosen: NDArray[np.float64] = rows[np.arange(len(tokens)), list(tokens)]
    total: NDArray[np.float64] = np.log(np.exp(rows).sum(axis=1))
    return total - chosen


def measure(engine: Engine, model: StoredModel, dtype: str, tokens: Sequence[int], repeats: int) -> Quality:
    """Perplexity over ``tokens``, and the speed of decoding after the first of them."""
    blocks = engine.load_range(model, 0, model.index.blocks, dtype)
    head, embedder = engine.load_head(model, dtype), Embedder(model, dtype)
    blocks.open(0, len(tokens))
    losses, best = [], []
    for at in range(0, len(tokens) - 1, CHUNK):
        chunk = tokens[at : min(at + CHUNK, len(tokens) - 1)]
        hidden = blocks.step(embedder.embed(chunk, at), [SessionRows(0, at, len(chunk))])
        logits = head.logits(hidden)
        losses.append(nats(logits, tokens[at + 1 : at + 1 + len(chunk)]))
        best.append(logits.argmax(axis=1))
    blocks.close(0)
    speeds = [_decode(blocks, head, embedder, tokens, session) for session in range(1, repeats + 2)]
    weights = blocks.weight_bytes + head.weight_bytes
    blocks.drop()
    perplexity = float(np.exp(np.concatenate(losses).mean()))
    return Quality(perplexity, np.concatenate(best), weights, Samples.of(speeds[1:]))


def _decode(
    blocks: LoadedRange, head: LoadedHead, embedder: Embedder, tokens: Sequence[int], session: int
) -> float:
    """Tokens per second of one stream after a chunk of the text."""
    blocks.open(session, CHUNK + DECODE_TOKENS)
    blocks.step(embedder.embed(tokens[:CHUNK], 0), [SessionRows(session, 0, CHUNK)])
    began = time.perf_counter()
    for position in range(CHUNK, CHUNK + DECODE_TOKENS):
        row = blocks.step(
            embedder.embed([tokens[position]], position), [SessionRows(session, position, 1, decode=True)]
        )
        head.logits(row)
    taken = time.perf_counter() - began
    blocks.close(session)
    return DECODE_TOKENS / taken


def run(threads: int, repeats: int, note: Callable[[str], None]) -> str:
    """The table, as Markdown."""
    model = import_model("smollm2")
    tokens = text_tokens(model)
    found: dict[str, Quality] = {}
    for dtype in DTYPES:
        found[dtype] = measure(create_engine("onnx", "cpu", threads), model, dtype, tokens, repeats)
        note(f"{dtype}: perplexity {found[dtype].perplexity:.3f}")
    true = found["float32"]
    lines = [
        f"### Quality of few bits, {len(tokens)} tokens of text, onnx engine, {threads} threads",
        "",
        "| dtype | MB of weights | perplexity | against float32 | same greedy token | tokens/s |",
        "|---|---|---|---|---|---|",
    ]
    for dtype, one in found.items():
        lines.append(
            f"| {dtype} | {one.weight_bytes / 1e6:.0f} | {one.perplexity:.3f} | "
            f"{one.perplexity / true.perplexity:.4f} x | {100 * float(np.mean(one.best == true.best)):.1f} % | "
            f"{one.tokens_per_second.show('')} |"
        )
    return "\n".join(lines)
