"""Running a model cut into ranges, and transformers' unsplit model, in the same chunks."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Sequence

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from splitinfer.segment_runtime.engine.port import Array, Engine, LoadedHead, LoadedRange, SessionRows
from splitinfer.segment_runtime.entry.embed import Embedder
from splitinfer.segment_runtime.store.reader import StoredModel


class Chain:
    """Ranges in order, an embedder and a head: the data plane without wires."""

    def __init__(self, ranges: Sequence[LoadedRange], head: LoadedHead, embedder: Embedder) -> None:
        self.ranges = ranges
        self.head = head
        self.embedder = embedder

    @classmethod
    def load(cls, engine: Engine, model: StoredModel, cuts: Iterable[int], dtype: str) -> Chain:
        """Cut the model at ``cuts``."""
        edges = [0, *cuts, model.index.blocks]
        ranges = [engine.load_range(model, start, stop, dtype) for start, stop in itertools.pairwise(edges)]
        return cls(ranges, engine.load_head(model, dtype), Embedder(model, dtype))

    def open(self, session: int, capacity: int) -> None:
        """Open a session in every range."""
        for part in self.ranges:
            part.open(session, capacity)

    def close(self, session: int) -> None:
        """Close it in every range."""
        for part in self.ranges:
            part.close(session)

    def step(self, chunks: Sequence[tuple[int, int, Sequence[int]]], decode: Container[int] = ()) -> Array:
        """Run (session, position, tokens) of several sessions as one batch: ``[rows, hidden]``.

        The sessions in ``decode`` feed a generated token.
        """
        hidden = np.concatenate([self.embedder.embed(tokens, position) for _, position, tokens in chunks])
        batch = [SessionRows(s, position, len(tokens), s in decode) for s, position, tokens in chunks]
        for part in self.ranges:
            hidden = part.step(hidden, batch)
        return hidden

    def logits(self, session: int, chunks: Iterable[Sequence[int]]) -> list[torch.Tensor]:
        """Logits after each chunk of a fresh session."""
        chunks = list(chunks)
        self.open(session, sum(len(chunk) for chunk in chunks))
        position, found = 0, []
        for chunk in chunks:
            hidden = self.step([(session, position, chunk)])
            position += len(chunk)
            found.append(torch.from_numpy(self.head.logits(hidden[-1:])[0]))
        self.close(session)
        return found


def reference_logits(model: PreTrainedModel, chunks: Iterable[Sequence[int]]) -> list[torch.Tensor]:
    """Transformers' own logits after each chunk, with its own cache, as ``generate`` asks for them."""
    cache, found = DynamicCache(config=model.config), []
    with torch.inference_mode():
        for chunk in chunks:
            tokens = torch.tensor([list(chunk)], device=model.device)
            out = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            found.append(out.logits[0, -1].float().cpu())
    return found
