"""What the onnx engine must know of an architecture to write its graphs: numbers and switches, from the config alone.

Pure: no tensor library, no file. A recipe is here when its graph was held against transformers' own blocks, and not
before; what has none is refused by name, and `engine: auto` takes torch for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from splitinfer.segment_runtime.engine.onnx_rotary import Rotary, rotary_of
from splitinfer.segment_runtime.engine.port import UnsupportedModel
from splitinfer.segment_runtime.store.dimensions import Dimensions, dimensions_of

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class Family:
    """How the blocks of one model type differ from Llama's.

    Attributes:
        activation: of the gate.
        activation_field: the config's name for it.
        activations: the config's values that mean ``activation``.
        norm_offset: added to the weight of every RMS norm (Gemma stores it less one).
        qk_norm: queries and keys pass an RMS norm per head.
        packed: queries, keys and values are one matrix, gate and up another (Phi-3).
        sandwich: norms after attention and after the MLP as well (Gemma).
        must_be: config fields with the only values that the graph is right for.
    """

    activation: Activation = "silu"
    activation_field: str = "hidden_act"
    activations: tuple[str, ...] = ("silu", "swish")
    norm_offset: float = 0.0
    qk_norm: bool = False
    packed: bool = False
    sandwich: bool = False
    must_be: tuple[tuple[str, object], ...] = ()


_GEMMA: Mapping[str, Any] = {
    "activation": "gelu_tanh",
    "activation_field": "hidden_activation",
    "activations": ("gelu_pytorch_tanh",),
    "norm_offset": 1.0,
    "sandwich": True,
    "must_be": (("use_bidirectional_attention", None),),
}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(qk_norm=True),
    "phi3": Family(packed=True, must_be=(("partial_rotary_factor", 1.0),)),
    "gemma2": Family(**_GEMMA),
    "gemma3_text": Family(**_GEMMA, qk_norm=True),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """One model. Per layer: ``windows`` (tokens that a row attends to, itself included; None: all) and ``rotaries``.

    Attributes:
        scale: of queries times keys.
        softcap: of attention scores, 0 for none.
        final_softcap: of logits, 0 for none.
    """

    model_type: str
    family: Family
    dims: Dimensions
    epsilon: float
    scale: float
    softcap: float
    final_softcap: float
    windows: tuple[int | None, ...]
    rotaries: tuple[Rotary, ...] = field(repr=False)


def unsupported(config: Mapping[str, Any]) -> str | None:
    """Why the onnx engine cannot run a model, by name; None if it can."""
    try:
        recipe_of(config)
    except UnsupportedModel as error:
        return str(error)
    return None


def recipe_of(config: Mapping[str, Any]) -> Recipe:
    """The recipe of a ``config.json``.

    Raises:
        UnsupportedModel: the architecture or an option of it, by name.
        DamagedSource: sizes that are missing or wrong.
    """
    kind = str(config.get("model_type"))
    family = FAMILIES.get(kind)
    if family is None:
        raise UnsupportedModel(
            f"model_type: the onnx engine has no recipe for {kind!r}; it has {', '.join(sorted(FAMILIES))}"
        )
    for name, value in family.must_be:
        found = config.get(name)
        if found not in (None, False, value):
            raise UnsupportedModel(f"config.json: {name}={found!r}: the onnx engine supports {value!r} only")
    activation = config.get(family.activation_field) or family.activations[0]
    if activation not in family.activations:
        raise UnsupportedModel(
            f"config.json: {family.activation_field}={activation!r}: the onnx engine has {family.activations[0]!r} "
            f"for {kind}"
        )
    dims = dimensions_of(config)
    if dims.head_dim % 8:
        raise UnsupportedModel(
            f"config.json: heads of {dims.head_dim} values: the onnx engine's attention takes multiples of 8"
        )
    windows, kinds = _windows(kind, config, dims)
    heads = float(config.get("query_pre_attn_scalar") or (256 if family.sandwich else dims.head_dim))
    return Recipe(
        model_type=kind,
        family=family,
        dims=dims,
        epsilon=float(config.get("rms_norm_eps", 1e-5 if kind == "phi3" else 1e-6)),
        scale=1.0 / math.sqrt(heads),
        softcap=float(_softcap(kind, config, "attn_logit_softcapping", 50.0)),
        final_softcap=float(_softcap(kind, config, "final_logit_softcapping", 30.0)),
        windows=windows,
        rotaries=tuple(rotary_of(config, dims, layer) for layer in kinds),
    )


def _softcap(kind: str, config: Mapping[str, Any], name: str, default: float) -> float:
    """Gemma 2 caps unless the config says null; the others only where it says a number."""
    value = config.get(name, default if kind == "gemma2" else None)
    return value or 0.0


def _windows(
    kind: str, config: Mapping[str, Any], dims: Dimensions
) -> tuple[tuple[int | None, ...], tuple[str, ...]]:
    """Per layer: its window, and ``sliding_attention`` or ``full_attention``."""
    window = config.get("sliding_window", {"mistral": 4096, "gemma2": 4096, "gemma3_text": 4096}.get(kind))
    if kind in ("qwen2", "qwen3") and not config.get("use_sliding_window", False):
        window = None
    layers = config.get("layer_types") or _default_layers(kind, config, dims.blocks, sliding=bool(window))
    if len(layers) != dims.blocks or not set(layers) <= {"sliding_attention", "full_attention"}:
        raise UnsupportedModel(f"config.json: layer_types={layers!r}: not one known kind per layer")
    found = tuple(int(window) if layer == "sliding_attention" and window else None for layer in layers)
    return found, tuple(layers)


def _default_layers(kind: str, config: Mapping[str, Any], blocks: int, *, sliding: bool) -> list[str]:
    """What transformers takes where a config.json has no ``layer_types``."""
    if kind in ("gemma2", "gemma3_text"):
        every = int(config.get("sliding_window_pattern", 6)) if kind == "gemma3_text" else 2
        full = [(index + 1) % every == 0 for index in range(blocks)]
    elif kind in ("qwen2", "qwen3"):
        full = [not sliding or index < int(config.get("max_window_layers", 28)) for index in range(blocks)]
    else:
        full = [not sliding] * blocks
    return ["full_attention" if whole else "sliding_attention" for whole in full]
