"""What all ranges of one model share on one device: its configuration, rotary embedding and layer kinds."""

from __future__ import annotations

import copy

import torch
from torch import nn

from splitinfer.segment_runtime.engine.port import Identity, LoadError
from splitinfer.segment_runtime.engine.torch_attention import NAMES, windows_of
from splitinfer.segment_runtime.engine.torch_recipes import config_of, recipe_of
from splitinfer.segment_runtime.store.reader import StoredModel

# Rotary embeddings whose frequencies depend on how long the sequence is: one session's must not set another's.
_LENGTH_DEPENDENT = ("dynamic", "longrope")


class TorchModel:
    """One model on one device, without weights.

    Attributes:
        recipe: how its blocks are built.
        config: selects our attention; blocks are built from it.
        mask_config: selects transformers' attention; masks are built from it.
        windows: per layer, the sliding window or None.
        layer_types: per layer, the key of its rotary embedding.
    """

    def __init__(self, model: StoredModel, device: torch.device, identity: Identity) -> None:
        """Read the configuration; no weights.

        Raises:
            UnsupportedModel: no recipe.
            LoadError: a configuration that does not fit the index.
            StoreError: a damaged or refused ``config.json``.
        """
        index = model.index
        self.name = model.name
        self.device = device
        self.identity = identity
        self.architecture = model.architecture
        self.recipe = recipe_of(index.model_type)
        self.mask_config = config_of(self.recipe, model.config)
        self.mask_config._attn_implementation = self.recipe.attention
        self.config = copy.deepcopy(self.mask_config)
        self.config._attn_implementation = NAMES[self.recipe.attention]
        heads = self.config.num_attention_heads
        self.hidden_size: int = self.config.hidden_size
        self.kv_heads: int = getattr(self.config, "num_key_value_heads", None) or heads
        self.head_dim: int = getattr(self.config, "head_dim", None) or self.hidden_size // heads
        for field, found, indexed in (
            ("blocks", self.config.num_hidden_layers, index.blocks),
            ("hidden_size", self.hidden_size, index.hidden_size),
            ("vocab_size", self.config.vocab_size, index.vocab_size),
            ("kv_heads", self.kv_heads, index.kv_heads),
            ("head_dim", self.head_dim, index.head_dim),
        ):
            if found != indexed:
                raise LoadError(f"{model.name}: {field} is {indexed} in the index and {found} in config.json")
        self.blocks: int = index.blocks
        self.windows = windows_of(self.config)
        per_type = self.recipe.rotary_per_layer_type
        self.layer_types: list[str] = list(self.config.layer_types) if per_type else [""] * self.blocks
        self._rotary = self._build_rotary()
        self._length_dependent = self._rotary is not None and any(
            kind in rope_type for rope_type in self._rope_types() for kind in _LENGTH_DEPENDENT
        )

    def _build_rotary(self) -> nn.Module | None:
        with torch.device("cpu"):  # computed where transformers computes it, in float32, then moved
            rotary = self.recipe.rotary(self.config)
        return None if rotary is None else rotary.requires_grad_(False).eval().to(self.device)

    def _rope_types(self) -> list[str]:
        assert self._rotary is not None
        found = self._rotary.rope_type
        return [str(kind) for kind in found.values()] if isinstance(found, dict) else [str(found)]

    def rotary(
        self, rows: torch.Tensor, positions: torch.Tensor, counts: list[int], layer_types: set[str]
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]] | None:
        """The cosines and sines ``[1, rows, rotary_dim]`` per layer type, in the dtype of ``rows``; None without rotary.

        Args:
            rows: ``[1, rows, hidden]``.
            positions: ``[1, rows]`` of each row in its own session.
            counts: rows per session.
            layer_types: those that are asked for.
        """
        if self._rotary is None:
            return None
        assert positions.shape == rows.shape[:2]
        return {kind: self._cos_sin(rows, positions, counts, kind) for kind in layer_types}

    def _cos_sin(
        self, rows: torch.Tensor, positions: torch.Tensor, counts: list[int], kind: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        extra = (kind,) if kind else ()
        if not self._length_dependent:
            cos, sin = self._rotary(rows, positions, *extra)  # type: ignore[misc]  # not None here
            return cos, sin
        # A copy for each session, because transformers' module remembers the longest sequence it has seen.
        parts = [
            copy.deepcopy(self._rotary)(rows, part, *extra)  # type: ignore[misc]  # not None here
            for part in torch.split(positions, counts, dim=1)
        ]
        return torch.cat([cos for cos, _ in parts], dim=1), torch.cat([sin for _, sin in parts], dim=1)
