"""Token embedding with numpy: bit for bit what transformers' own embedding gives, without torch.

The tables stay on disk, mapped; only the rows that are asked for are copied and cast. In ``int8`` and ``int4`` the token
table is the one in 8 bits that a tied head reads too, so that the entry has one set of its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinfer.segment_runtime.store.converted import BITS, converted, is_matrix
from splitinfer.segment_runtime.store.reader import NUMPY_DTYPES, StoredModel


class Embedder:
    """Token ids to hidden states of one model."""

    def __init__(self, model: StoredModel, dtype: str) -> None:
        """Map the embedding tables.

        Args:
            model: the stored model; its ``embed`` unit is verified here.
            dtype: of the plan: float32, bfloat16, float16, int8 or int4.

        Raises:
            StoreError: a damaged or missing unit.
            ValueError: a dtype that is none of those.
        """
        if dtype not in (*NUMPY_DTYPES, *BITS):
            raise ValueError(f"dtype: {dtype!r} is not one of {', '.join((*NUMPY_DTYPES, *BITS))}")
        few = converted(model, "embed", dtype, is_matrix).matrices["tokens"] if dtype in BITS else None
        unit = model.read_unit("embed")
        architecture = model.architecture
        self._dtype = NUMPY_DTYPES["float32" if few is not None else dtype]
        self._few = few
        self._tokens = unit["tokens"]  # [vocab, hidden]
        self._positions = unit.get("positions")  # [positions + offset, hidden]
        self._offset = architecture.position_offset
        # transformers rounds the factor to float32 and then to the dtype, before it multiplies (Gemma).
        scale = np.float32(math.sqrt(model.index.hidden_size)).astype(self._dtype)
        self._scale: NDArray[Any] | None = scale if architecture.embed_scale else None

    @property
    def hidden_size(self) -> int:
        """Width of a row."""
        return int(self._tokens.shape[1])

    def embed(self, tokens: Sequence[int], position: int) -> NDArray[Any]:
        """Hidden states ``[len(tokens), hidden_size]`` of tokens ``[position, position + len(tokens))``.

        Raises:
            ValueError: a token that is not in the vocabulary, or a position past a learned table.
        """
        ids = np.asarray(tokens, dtype=np.int64).reshape(-1)
        vocab = self._tokens.shape[0]
        outside = ids[(ids < 0) | (ids >= vocab)]
        if outside.size:
            raise ValueError(f"token {int(outside[0])}: the vocabulary has ids 0 to {vocab - 1}")
        hidden: NDArray[Any] = (
            self._few.values(ids) if self._few is not None else self._tokens[ids].astype(self._dtype)
        )
        if self._scale is not None:
            hidden = (hidden * self._scale).astype(self._dtype, copy=False)
        if self._positions is not None:
            first = position + self._offset
            if position < 0 or first + len(ids) > self._positions.shape[0]:
                raise ValueError(
                    f"positions [{position}, {position + len(ids)}): the model has learned "
                    f"{self._positions.shape[0] - self._offset}"
                )
            learned = self._positions[first : first + len(ids)].astype(self._dtype)
            hidden = (hidden + learned).astype(self._dtype, copy=False)
        assert hidden.shape == (len(ids), self.hidden_size)
        return hidden
