"""OpenAI's parameters that are not served, each refused by name, and those that are accepted without effect.

Nothing is silently ignored: a parameter is served (a field of the request models), harmless (below: it asks nothing
of the answer), refused (below, unless its value asks for nothing), or unknown (refused too).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from splitinfer.segment_runtime.api.errors import ApiError, invalid

Neutral = Callable[[Any, Mapping[str, Any]], bool]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a parameter is refused, and with which value it asks for nothing."""

    reason: str
    neutral: Neutral


def _one_of(*values: Any) -> Neutral:
    # JSON's true equals python's 1, so the type counts too.
    return lambda value, _: any(type(value) is type(v) and value == v for v in values)


def _as_many_as_n(value: Any, body: Mapping[str, Any]) -> bool:
    n = body.get("n")
    return type(value) is int and value == (1 if n is None else n)


_TOOLS = "tool calls are not served"
_SHARED: dict[str, Refusal] = {
    "logit_bias": Refusal("logits cannot be biased", _one_of({})),
}
CHAT: Mapping[str, Refusal] = _SHARED | {
    "audio": Refusal("only text is generated", _one_of()),
    "function_call": Refusal(_TOOLS, _one_of("none", "auto")),
    "functions": Refusal(_TOOLS, _one_of([])),
    "modalities": Refusal("only text is generated", _one_of(["text"])),
    "moderation": Refusal("there is no moderation model", _one_of()),
    "parallel_tool_calls": Refusal(_TOOLS, _one_of(True)),
    "prediction": Refusal("predicted outputs are not used", _one_of()),
    "prompt_cache_options": Refusal("prompts are not cached", _one_of({})),
    "prompt_cache_retention": Refusal("prompts are not cached", _one_of("in_memory", "in-memory")),
    "reasoning_effort": Refusal("the model does not reason apart from its answer", _one_of("none")),
    "response_format": Refusal("only text is generated", _one_of({"type": "text"})),
    "service_tier": Refusal("there is one tier", _one_of("auto", "default")),
    "store": Refusal("nothing is stored", _one_of(False)),
    "tool_choice": Refusal(_TOOLS, _one_of("none", "auto")),
    "tools": Refusal(_TOOLS, _one_of([])),
    "verbosity": Refusal("the length follows the prompt", _one_of("medium")),
    "web_search_options": Refusal("nothing is searched", _one_of()),
}
COMPLETION: Mapping[str, Refusal] = _SHARED | {
    "best_of": Refusal("only as many candidates are drawn as are returned (n)", _as_many_as_n),
    "echo": Refusal("the prompt is not returned", _one_of(False)),
    "suffix": Refusal("text is not inserted before a suffix", _one_of("")),
}
MESSAGE: Mapping[str, Refusal] = {
    "audio": Refusal("only text is understood", _one_of()),
    "function_call": Refusal(_TOOLS, _one_of()),
    "refusal": Refusal("a refusal cannot be continued; put its text into content", _one_of()),
    "tool_call_id": Refusal(_TOOLS, _one_of()),
    "tool_calls": Refusal(_TOOLS, _one_of([])),
}


def without_neutral(
    body: Mapping[str, Any], refusals: Mapping[str, Refusal], prefix: str = ""
) -> dict[str, Any]:
    """The body without nulls and without refused parameters that ask for nothing.

    Raises:
        ApiError: a refused parameter that asks for something.
    """
    kept = {}
    for name, value in body.items():
        if value is None:
            continue
        refusal = refusals.get(name)
        if refusal is None:
            kept[name] = value
        elif not refusal.neutral(value, body):
            raise unsupported(prefix + name, refusal.reason)
    return kept


def unsupported(param: str, reason: str) -> ApiError:
    """A 400 for what OpenAI has and this does not."""
    return invalid(param, f"Unsupported parameter: '{param}': {reason}.", "unsupported_parameter")
