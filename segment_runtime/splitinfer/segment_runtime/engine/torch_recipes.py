"""How transformers builds a block, its rotary embedding and its final norm, per architecture.

Everything that computes is a class of transformers; a recipe only names them and the arguments that differ.
A recipe is added when the partition-invariance gate holds for it, and not before.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from splitinfer.segment_runtime.engine.port import LoadError, UnsupportedModel

Config = Any
"""A transformers configuration; its attributes depend on the architecture."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One architecture.

    Attributes:
        package: transformers' ``models.<package>``.
        block_class: decoder layer class, built as ``cls(config, layer_idx=i)``.
        norm: builds the final norm from the modelling module and the config.
        rotary_class: rotary embedding, built as ``cls(config)``; None where positions are learned.
        rotary_per_layer_type: the rotary embedding takes the layer type (Gemma 3: other bases for local layers).
        attention: what transformers runs by default, ``eager`` where it says that sdpa is not supported.
        cache_argument: the block's name for its KV cache.
        must_be: config fields with the only values that the block is right for.
    """

    package: str
    block_class: str
    norm: Callable[[ModuleType, Config], nn.Module]
    rotary_class: str | None
    rotary_per_layer_type: bool = False
    attention: Literal["sdpa", "eager"] = "sdpa"
    cache_argument: str = "past_key_values"
    must_be: tuple[tuple[str, object], ...] = ()

    def module(self) -> ModuleType:
        """Transformers' modelling module, imported on first use."""
        return importlib.import_module(f"transformers.models.{self.package}.modeling_{self.package}")

    def block(self, config: Config, index: int) -> nn.Module:
        """Block ``index``, with whatever device is the default (the meta device while loading)."""
        block = getattr(self.module(), self.block_class)(config, layer_idx=index)
        assert isinstance(block, nn.Module)
        return block

    def rotary(self, config: Config) -> nn.Module | None:
        """The rotary embedding, computed for real; None where there is none."""
        if self.rotary_class is None:
            return None
        rotary = getattr(self.module(), self.rotary_class)(config)
        assert isinstance(rotary, nn.Module)
        return rotary


def _rms_norm(prefix: str) -> Callable[[ModuleType, Config], nn.Module]:
    def build(module: ModuleType, config: Config) -> nn.Module:
        norm = getattr(module, f"{prefix}RMSNorm")(config.hidden_size, eps=config.rms_norm_eps)
        assert isinstance(norm, nn.Module)
        return norm

    return build


def _llama_like(package: str, prefix: str, must_be: tuple[tuple[str, object], ...] = ()) -> Recipe:
    return Recipe(
        package=package,
        block_class=f"{prefix}DecoderLayer",
        norm=_rms_norm(prefix),
        rotary_class=f"{prefix}RotaryEmbedding",
        must_be=must_be,
    )


RECIPES: Mapping[str, Recipe] = {
    "llama": _llama_like("llama", "Llama"),
    "mistral": _llama_like("mistral", "Mistral"),
    "qwen2": _llama_like("qwen2", "Qwen2"),
    "qwen3": _llama_like("qwen3", "Qwen3"),
    "phi3": _llama_like("phi3", "Phi3"),
    "gemma2": Recipe(
        package="gemma2",
        block_class="Gemma2DecoderLayer",
        norm=_rms_norm("Gemma2"),
        rotary_class="Gemma2RotaryEmbedding",
        attention="eager",
        must_be=(("use_bidirectional_attention", None),),
    ),
    "gemma3_text": Recipe(
        package="gemma3",
        block_class="Gemma3DecoderLayer",
        norm=_rms_norm("Gemma3"),
        rotary_class="Gemma3RotaryEmbedding",
        rotary_per_layer_type=True,
        must_be=(("use_bidirectional_attention", None),),
    ),
    "gpt_neox": Recipe(
        package="gpt_neox",
        block_class="GPTNeoXLayer",
        norm=lambda _, config: nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
        rotary_class="GPTNeoXRotaryEmbedding",
        cache_argument="layer_past",
    ),
    "gpt2": Recipe(
        package="gpt2",
        block_class="GPT2Block",
        norm=lambda _, config: nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon),
        rotary_class=None,
        must_be=(("add_cross_attention", False),),
    ),
    "opt": Recipe(
        package="opt",
        block_class="OPTDecoderLayer",
        norm=lambda _, config: nn.LayerNorm(
            config.hidden_size, elementwise_affine=config.layer_norm_elementwise_affine
        ),
        rotary_class=None,
        must_be=(("do_layer_norm_before", True), ("_remove_final_layer_norm", False)),
    ),
}


def recipe_of(model_type: str) -> Recipe:
    """The recipe of a model type. Raises UnsupportedModel, naming those there are."""
    recipe = RECIPES.get(model_type)
    if recipe is None:
        raise UnsupportedModel(
            f"model_type: the torch engine has no recipe for {model_type!r}; it has {', '.join(sorted(RECIPES))}"
        )
    return recipe


def config_of(recipe: Recipe, raw: Mapping[str, Any]) -> Config:
    """Transformers' configuration of a ``config.json``.

    Raises:
        LoadError: values that transformers refuses.
        UnsupportedModel: a variant that the recipe is not right for, by field.
    """
    try:
        config: Config = CONFIG_MAPPING[raw["model_type"]].from_dict(dict(raw))
    except Exception as error:  # whatever transformers' validators raise says which field
        raise LoadError(f"config.json: transformers refuses it: {error}") from error
    for name, value in recipe.must_be:
        found = getattr(config, name, value)
        if bool(found) != bool(value):
            raise UnsupportedModel(f"config.json: {name}={found!r}: the torch engine supports {value!r} only")
    return config
