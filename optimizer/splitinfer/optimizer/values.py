"""What every value of the optimizer is made of: frozen models, readings that may be unknown, errors that name the field.

Errors
------
OptimizerInputError       a value that cannot be planned with; `field` is a path such as ``nodes[3].freeMemoryBytes``
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic.alias_generators import to_camel


class OptimizerInputError(Exception):
    """Input that breaks a rule no single field has.

    Not a ValueError: pydantic would wrap that, and with it hide the field's path.

    Attributes:
        field: path of the offending field.
        message: what is wrong and what mends it.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class Value(BaseModel):
    """A frozen model: unknown fields are errors, NaN and infinity are not numbers here."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
    )


class Known(Value):
    """A measured number with its age and where it comes from."""

    value: Annotated[float, Field(ge=0)]
    age_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Age when the snapshot was taken."""
    source: Annotated[str, Field(min_length=1, max_length=200)] = "given"


class Unknown(Value):
    """A number that nobody measured, or that cannot be trusted. Never zero, never a default."""

    unknown: Annotated[str, Field(min_length=1, max_length=200)] = "never measured"
    """Why it is not known."""


def _as_mapping(given: object) -> object:
    """A bare number becomes a known value; the word ``unknown`` and null become an unknown one."""
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return {"value": given}
    if isinstance(given, str) and given != "unknown":
        try:
            return {"value": float(given)}  # YAML 1.1 reads 8e-05, without a dot, as text
        except ValueError:
            return given
    return {} if given is None or given == "unknown" else given


def _tag(given: object) -> str:
    known = isinstance(given, Known) or (isinstance(given, dict) and "value" in given)
    return "Known" if known else "Unknown"


Reading = Annotated[
    Annotated[Known, Tag("Known")] | Annotated[Unknown, Tag("Unknown")],
    Discriminator(_tag),
    BeforeValidator(_as_mapping),
]
"""A number with age and source, or unknown. Written as a number, ``unknown``, or ``{value, ageSeconds, source}``."""

UNKNOWN = Unknown()
Name = Annotated[str, Field(min_length=1, max_length=253)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def explain(error: ValidationError) -> list[tuple[str, str]]:
    """``(field path, what is wrong)`` of every problem that pydantic found."""
    return [(path_of(detail["loc"]), _words(dict(detail))) for detail in error.errors()]


def path_of(loc: tuple[int | str, ...]) -> str:
    """``("nodes", 3, "site")`` as ``nodes[3].site``; the parts that pydantic adds for unions are left out."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in ("Known", "Unknown") and not part.startswith("function-"):
            path += f".{part}"
    return path.removeprefix(".") or "value"


def _words(detail: dict[str, Any]) -> str:
    given = detail.get("input")
    match detail["type"]:
        case "missing":
            return "is missing; it has no default"
        case "extra_forbidden":
            return "no such field; remove it or mend its name"
        case "finite_number":
            return f"{given!r} is not a number to plan with; leave it out or write unknown"
        case "greater_than_equal" | "greater_than":
            bound = detail["ctx"].get("ge", detail["ctx"].get("gt"))
            return f"{given!r} is below the least that makes sense, {bound}; mend it or write unknown"
        case "model_type" | "model_attributes_type":
            return f"must be a number, unknown, or a mapping of fields, got {given!r}"[:400]
        case _:
            return f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, got {given!r}"[:400]
