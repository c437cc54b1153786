"""Which fields of a manifest the local substrate honours. The rest is refused by name, never ignored."""

from __future__ import annotations

from pydantic import BaseModel

from splitinfer.operator.errors import UserError
from splitinfer.operator.spec.resource import SplitInference

_NO_DECISIONS = "this version plans once, at the start, and does not change a plan by itself; remove it"
_NOT_SOLVED = "is for the solver, and --cuts leaves it nothing to decide; remove one of the two"

NEEDS_SOLVER: tuple[tuple[str, str], ...] = (
    ("workload.promptTokens", f"the typical request {_NOT_SOLVED}"),
    ("workload.outputTokens", f"the typical request {_NOT_SOLVED}"),
    ("slo.ttftMilliseconds", f"an objective {_NOT_SOLVED}"),
    ("slo.tpotMilliseconds", f"an objective {_NOT_SOLVED}"),
    ("privacy.sensitiveBlocks", f"trust {_NOT_SOLVED}"),
    ("privacy.trustedNodes", f"a selection by labels {_NOT_SOLVED}"),
    ("placement.nodes", f"a selection by labels {_NOT_SOLVED}"),
    ("objective.latency", f"a weight {_NOT_SOLVED}"),
    ("objective.utilization", f"a weight {_NOT_SOLVED}"),
    ("objective.exposure", f"a weight {_NOT_SOLVED}"),
)
"""Fields that are refused where cuts are given."""

REFUSED: tuple[tuple[str, str], ...] = (
    ("slo.windowSeconds", "a local pipeline reports its latencies and does not act on them yet; remove it"),
    ("placement.tolerations", "capacity snapshots and local nodes carry no taints; remove it"),
    ("objective.horizonSeconds", _NO_DECISIONS),
    ("reconfiguration.cooldownSeconds", _NO_DECISIONS),
    ("reconfiguration.minimumGainPercent", _NO_DECISIONS),
)
"""Fields that are refused when a manifest sets them, with the reason and the mend."""


def check_supported(resource: SplitInference, solved: bool = True) -> None:
    """Raise `UserError`, naming every field that is set and that a local pipeline cannot honour.

    With ``solved`` the solver decides; else cuts are given.
    """
    rules = REFUSED if solved else (*NEEDS_SOLVER, *REFUSED)
    problems = [(f"spec.{path}", reason) for path, reason in rules if is_set(resource.spec, path)]
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
