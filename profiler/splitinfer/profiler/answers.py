"""What Prometheus' HTTP API answers to an instant query over a range selector, as samples. Pure.

A range selector (``metric[2m]``) gives samples with the time at which they were scraped; an instant selector would give
all of them the time of the query, and with it hide how old they are. The newest sample of a series counts; of those
before it is kept what tells how a counter grew, and how often the series was scraped.

Errors
------
AnswerError               the answer cannot be used; the message says what is wrong with it, never with what value
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_SERIES = 200_000
"""Of one question. A thousand nodes with a hundred links each have half as many; more is not what was asked for."""


class AnswerError(Exception):
    """What Prometheus said cannot be used."""


@dataclass(frozen=True, slots=True)
class Span:
    """What the samples of a series before its newest one tell.

    Attributes:
        count: samples in the range, the newest too.
        first_at_seconds: when the oldest of them was scraped.
        first_value: of the oldest.
        fell: a value was below the one before, or one of them is no number: as a counter, it was started anew.
    """

    count: int
    first_at_seconds: float
    first_value: float
    fell: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """The newest sample of one series.

    Attributes:
        name: of the metric.
        labels: without the name.
        value: may be NaN or infinite, as Prometheus has it.
        at_seconds: when it was scraped, by Prometheus' clock.
        span: of the range; None where this is the only sample in it.
    """

    name: str
    labels: Mapping[str, str]
    value: float
    at_seconds: float
    span: Span | None = None


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)  # later versions may say more


Time = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Point = tuple[Time, str]


class _Series(_Model):
    metric: dict[str, str]
    values: Annotated[list[Point], Field(min_length=1)]


class _Matrix(_Model):
    result_type: Annotated[Literal["matrix"], Field(alias="resultType")]
    result: Annotated[list[_Series], Field(max_length=MAX_SERIES)]


class _Scalar(_Model):
    result_type: Annotated[Literal["scalar"], Field(alias="resultType")]
    result: Point


class _Answer(_Model):
    status: Literal["success", "error"]
    error: str = ""
    error_type: Annotated[str, Field(alias="errorType")] = ""


class _Samples(_Answer):
    data: _Matrix


class _Time(_Answer):
    data: _Scalar


A = TypeVar("A", bound=_Answer)


def parse_samples(body: bytes) -> tuple[Sample, ...]:
    """The newest sample of every series of an answer to a range selector. Raises AnswerError."""
    samples = []
    seen: set[frozenset[tuple[str, str]]] = set()
    for series in _validated(_Samples, body).data.result:
        key = frozenset(series.metric.items())
        if key in seen:
            raise AnswerError("data.result: a series is there twice")
        seen.add(key)
        labels = dict(series.metric)
        name = labels.pop("__name__", "")
        if not name:
            raise AnswerError("data.result: a series has no name; the query must select, not calculate")
        points = sorted(((at, _number(text)) for at, text in series.values), key=lambda point: point[0])
        at, value = points[-1]
        samples.append(Sample(name, labels, value, at, _span(points)))
    return tuple(samples)


def _span(points: Sequence[tuple[float, float]]) -> Span | None:
    if len(points) == 1:
        return None
    grew = all(after >= before for (_, before), (_, after) in itertools.pairwise(points))
    return Span(len(points), points[0][0], points[0][1], not grew)


def parse_time(body: bytes) -> float:
    """The answer to ``time()``: Prometheus' clock, in seconds since the epoch. Raises AnswerError."""
    _, text = _validated(_Time, body).data.result
    now = _number(text)
    if not math.isfinite(now) or now < 0:
        raise AnswerError("data.result: not a time")
    return now


def _validated(kind: type[A], body: bytes) -> A:
    try:
        answer = kind.model_validate_json(body)
    except ValidationError as error:
        wrong = _first(error)
        # An answer of tens of megabytes is read once; only one that is none is looked at again, for what it says.
        with suppress(ValidationError):
            refused = _Answer.model_validate_json(body)
            if refused.status == "error":
                wrong = f"Prometheus refuses the query: {refused.error_type}: {refused.error}"[:300]
        raise AnswerError(wrong) from None
    if answer.status == "error":
        raise AnswerError(f"Prometheus refuses the query: {answer.error_type}: {answer.error}"[:300])
    return answer


def _first(error: ValidationError) -> str:
    """Where and what, without the value: an answer may be of any size, and need not be Prometheus' at all."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "answer"
    return f"{where}: {first['msg']}"[:300]


def _number(text: str) -> float:
    """A sample's value, as Prometheus writes it. Python would take ``1_000`` and spaces too."""
    if "_" in text or text != text.strip():
        raise AnswerError("data.result: a value is not a number")
    try:
        return float(text)
    except ValueError:
        raise AnswerError("data.result: a value is not a number") from None
