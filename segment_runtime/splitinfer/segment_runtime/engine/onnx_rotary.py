"""Rotary embeddings with numpy: the cosines and sines that transformers computes, as tables by position."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinfer.segment_runtime.engine.port import UnsupportedModel
from splitinfer.segment_runtime.store.dimensions import Dimensions

Floats = NDArray[np.float32]

KINDS = ("default", "linear", "llama3")
# What transformers takes where a config.json names no base.
_BASES: Mapping[tuple[str, str], float] = {("gemma3_text", "full_attention"): 1_000_000.0}


@dataclass(frozen=True, slots=True)
class Rotary:
    """Frequencies ``[head_dim / 2]`` of one kind of layer, as bytes so that equal ones are equal."""

    frequencies: bytes

    def table(self, begin: int, end: int) -> tuple[Floats, Floats]:
        """Cosines and sines ``[end - begin, head_dim / 2]`` of positions ``[begin, end)``."""
        frequencies = np.frombuffer(self.frequencies, np.float32)
        angles = np.arange(begin, end, dtype=np.float32)[:, None] * frequencies
        return np.cos(angles), np.sin(angles)


def rotary_of(config: Mapping[str, Any], dims: Dimensions, layer_type: str) -> Rotary:
    """The rotary embedding of one kind of layer.

    Raises:
        UnsupportedModel: a kind whose frequencies depend on the length of the sequence, or that is not known.
    """
    kind = str(config.get("model_type"))
    parameters = _parameters(config, kind, layer_type)
    rope_type = parameters.get("rope_type", parameters.get("type", "default"))
    if rope_type not in KINDS:
        raise UnsupportedModel(
            f"config.json: rope_type={rope_type!r}: the onnx engine has {', '.join(KINDS)}; a table by position "
            "cannot hold frequencies that change with the length of a sequence"
        )
    if float(parameters.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UnsupportedModel("config.json: partial_rotary_factor: the onnx engine rotates whole heads only")
    base = float(parameters.get("rope_theta") or _BASES.get((kind, layer_type), 10000.0))
    powers = np.arange(0, dims.head_dim, 2, dtype=np.int64).astype(np.float32) / np.float32(dims.head_dim)
    frequencies = (np.float32(1.0) / np.float32(base) ** powers).astype(np.float32)
    if rope_type == "linear":
        frequencies = (frequencies / np.float32(parameters["factor"])).astype(np.float32)
    elif rope_type == "llama3":
        frequencies = _llama3(frequencies, parameters)
    return Rotary(frequencies.tobytes())


def _parameters(config: Mapping[str, Any], kind: str, layer_type: str) -> Mapping[str, Any]:
    """Of this kind of layer, whether the config has them in today's form or in that of older checkpoints."""
    found = config.get("rope_parameters")
    if isinstance(found, Mapping):
        return found.get(layer_type, {}) if kind == "gemma3_text" and layer_type in found else found
    scaling = dict(config.get("rope_scaling") or {})
    theta = config.get("rope_theta")
    if kind == "gemma3_text" and layer_type == "sliding_attention":
        return {"rope_theta": config.get("rope_local_base_freq", 10000.0)}  # never scaled
    return scaling | ({} if theta is None else {"rope_theta": theta})


def _llama3(frequencies: Floats, parameters: Mapping[str, Any]) -> Floats:
    """Llama 3.1's scaling: long waves are stretched, short ones stay, those between are blended."""
    factor = float(parameters["factor"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    original = float(parameters["original_max_position_embeddings"])
    waves = np.float32(2 * math.pi) / frequencies
    stretched = np.where(waves > np.float32(original / low), frequencies / np.float32(factor), frequencies)
    smooth = (np.float32(original) / waves - np.float32(low)) / np.float32(high - low)
    blended = (1 - smooth) * stretched / np.float32(factor) + smooth * stretched
    between = ~(waves < np.float32(original / high)) & ~(waves > np.float32(original / low))
    return np.where(between, blended, stretched).astype(np.float32)
