"""Which fields of a manifest the local substrate honours. The rest is refused by name, never ignored."""

from __future__ import annotations

from pydantic import BaseModel

from splitinfer.operator.errors import UserError
from splitinfer.operator.spec.resource import SplitInference

_NO_DECISIONS = "this version serves equal or pinned cuts and does not decide; remove it"
_NO_LABELS = "local nodes are processes of one machine and carry no labels; remove it"

REFUSED: tuple[tuple[str, str], ...] = (
    ("workload.promptTokens", "equal and pinned cuts do not depend on the typical request; remove it"),
    ("workload.outputTokens", "equal and pinned cuts do not depend on the typical request; remove it"),
    ("slo", "a local pipeline reports its latencies and does not act on them yet; remove it"),
    (
        "privacy.sensitiveBlocks",
        "local nodes have no trust, so no block can be kept on trusted ones; remove it",
    ),
    ("privacy.trustedNodes", _NO_LABELS),
    ("placement.nodes", _NO_LABELS),
    ("placement.tolerations", _NO_LABELS),
    ("objective", _NO_DECISIONS),
    ("reconfiguration.cooldownSeconds", _NO_DECISIONS),
    ("reconfiguration.minimumGainPercent", _NO_DECISIONS),
)
"""Fields that are refused when a manifest sets them, with the reason and the mend."""


def check_supported(resource: SplitInference) -> None:
    """Raise `UserError`, naming every field that is set and that a local pipeline cannot honour."""
    problems = [(f"spec.{path}", reason) for path, reason in REFUSED if is_set(resource.spec, path)]
    spec = resource.spec
    if spec.reconfiguration.mode != "Manual" and is_set(spec, "reconfiguration.mode"):
        problems.append(
            ("spec.reconfiguration.mode", f"{spec.reconfiguration.mode}: {_NO_DECISIONS}, or use Manual")
        )
    if problems:
        raise UserError.of(problems)


def is_set(part: BaseModel, path: str) -> bool:
    """Whether the manifest gives the field at ``path`` (manifest spelling), defaults not counted."""
    head, _, rest = path.partition(".")
    name = next(name for name, field in type(part).model_fields.items() if field.alias == head)
    if name not in part.model_fields_set:
        return False
    child = getattr(part, name)
    return is_set(child, rest) if rest and isinstance(child, BaseModel) else True
