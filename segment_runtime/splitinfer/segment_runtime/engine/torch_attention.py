"""Attention of one step: each session over its own KV, under the mask transformers would have built for it.

A step runs all its rows as one ragged batch ``[1, rows, hidden]``, so that every linear layer is one matrix
product. Attention is where sessions must not meet. transformers' blocks hand their new keys and values to a
cache and what the cache returns to an attention function, so that is where the batch is taken apart:

- a step of one session gets from `StepCache.update` exactly what transformers' own cache would return, and
  transformers' own function computes it: the bits of the unsplit model;
- a step of several gets a `Ragged` of keys and values, and the attention function runs transformers'
  function once per session on that session's rows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_utils import AttentionInterface

from splitinfer.segment_runtime.engine.torch_recipes import Config

NAMES = {"sdpa": "splitinfer-sdpa", "eager": "splitinfer-eager"}
"""The name under which a config selects our attention, by the function of transformers' that it ends in."""


class Ragged(NamedTuple):
    """One pair per session of a step, in order: (keys, values), or (row count, mask)."""

    parts: tuple[tuple[Any, Any], ...]


def windows_of(config: Config) -> list[int | None]:
    """Per layer: the sliding window, None for full attention; as transformers' own cache decides it."""
    layers: list[Any] = DynamicCache(config=config).layers
    return [int(layer.sliding_window) if layer.is_sliding else None for layer in layers]


def first_visible(past: int, window: int | None) -> int:
    """The first cached token that a layer attends to: a sliding cache keeps the last ``window - 1``."""
    return 0 if window is None else max(0, past - window + 1)


class _PastOfOneSession:
    """What transformers' mask functions ask of a cache."""

    def __init__(self, past: int, window: int | None) -> None:
        self.past = past
        self.window = window
        self.is_sliding = [window is not None]

    def get_query_offset(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - transformers' signature
        return self.past

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - transformers' signature
        return self.past

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002
        """Length of the keys, and the token that the first of them is."""
        begin = first_visible(self.past, self.window)
        return self.past - begin + query_length, begin


def session_mask(config: Config, rows: torch.Tensor, past: int, window: int | None) -> torch.Tensor | None:
    """Transformers' own mask for ``rows`` new tokens after ``past`` cached ones; None where it passes None.

    Args:
        config: with ``_attn_implementation`` as transformers would run it, not ours.
        rows: ``[1, count, hidden]``, for its length, dtype and device.
        past: tokens in the cache.
        window: of the layer; None for full attention.
    """
    create = create_causal_mask if window is None else create_sliding_window_causal_mask
    mask = create(
        config=config,
        inputs_embeds=rows,
        attention_mask=None,
        past_key_values=_PastOfOneSession(past, window),  # type: ignore[arg-type]  # duck-typed, as there
    )
    assert mask is None or isinstance(mask, torch.Tensor)
    return mask


class StepCache:
    """The cache that the blocks see during one step: new rows go into the sessions' buffers.

    Made per step and never shared, so a load or another range's step may run beside it.
    """

    __slots__ = ("_counts", "_first_layer", "_reads", "_writes")

    def __init__(
        self,
        first_layer: int,
        writes: Sequence[Sequence[torch.Tensor]],
        reads: Sequence[Sequence[torch.Tensor]],
        counts: list[int],
    ) -> None:
        """Views per session and local layer: keys at ``2 * i``, values at ``2 * i + 1``.

        Args:
            first_layer: the model's index of local layer 0.
            writes: ``[1, kv_heads, count, head_dim]`` where the session's new rows go.
            reads: ``[1, kv_heads, visible, head_dim]`` what it attends to, new rows included.
            counts: rows per session.
        """
        self._first_layer = first_layer
        self._writes = writes
        self._reads = reads
        self._counts = counts

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: object) -> tuple[Any, Any]:
        """Append the step's ``[1, kv_heads, rows, head_dim]``; give what each session attends to."""
        at = 2 * (layer_idx - self._first_layer)
        if len(self._counts) == 1:
            writes, reads = self._writes[0], self._reads[0]
            writes[at].copy_(keys)
            writes[at + 1].copy_(values)
            return reads[at], reads[at + 1]
        parts, begin = [], 0
        for writes, reads, count in zip(self._writes, self._reads, self._counts, strict=True):
            writes[at].copy_(keys.narrow(2, begin, count))
            writes[at + 1].copy_(values.narrow(2, begin, count))
            parts.append((reads[at], reads[at + 1]))
            begin += count
        batch = Ragged(tuple(parts))
        return batch, batch


def _per_session(
    function: Any,
    module: torch.nn.Module,
    query: torch.Tensor,
    batch: Ragged,
    masks: Ragged,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, None]:
    """Run transformers' ``function`` session by session; query ``[1, heads, rows, head_dim]``."""
    outputs, begin = [], 0
    for (keys, values), (count, mask) in zip(batch.parts, masks.parts, strict=True):
        part = query.narrow(2, begin, count)  # [1, heads, count, head_dim]
        begin += count
        outputs.append(function(module, part, keys, values, mask, **kwargs)[0])  # [1, count, heads, head_dim]
    return torch.cat(outputs, dim=1), None  # [1, rows, heads, head_dim]


def _sdpa(
    module: torch.nn.Module, query: torch.Tensor, key: Any, value: Any, attention_mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    if isinstance(key, Ragged):
        return _per_session(sdpa_attention_forward, module, query, key, attention_mask, kwargs)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _eager(
    module: torch.nn.Module, query: torch.Tensor, key: Any, value: Any, attention_mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    function = sys.modules[type(module).__module__].eager_attention_forward  # the architecture's own
    if isinstance(key, Ragged):
        return _per_session(function, module, query, key, attention_mask, kwargs)
    output: tuple[torch.Tensor, torch.Tensor | None] = function(
        module, query, key, value, attention_mask, **kwargs
    )
    return output


AttentionInterface.register(NAMES["sdpa"], _sdpa)
AttentionInterface.register(NAMES["eager"], _eager)
