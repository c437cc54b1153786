"""What an agent says of its node in one JSON line, and the way back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitinfer.profiler.link_times import LinkTimes
from splitinfer.profiler.speeds import ProbeResult


class ReportError(Exception):
    """What an agent said cannot be used; the message names the field."""


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LinkReport(_Values):
    """One link from this node. Seconds and bytes per second."""

    round_trip_median_seconds: Annotated[float, Field(gt=0)]
    round_trip_p95_seconds: Annotated[float, Field(gt=0)]
    bandwidth_bytes_per_second: Annotated[float, Field(gt=0)]

    @property
    def times(self) -> LinkTimes:
        """As the rest of the profiler has it."""
        return LinkTimes(**self.model_dump())


class AgentReport(_Values):
    """One node at one time. A string where a value belongs says why it is not known."""

    node: Annotated[str, Field(min_length=1, max_length=253)]
    probe: ProbeResult | str
    links: Mapping[str, LinkReport | str] = {}
    free_memory_bytes: Annotated[int, Field(ge=0)] | None = None
    utilisation: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the machine's CPUs that others used over a short window."""
    runnable_threads: Annotated[float, Field(ge=0)] | None = None
    """Of others: those that ran or wanted to, on average over it."""
    machine_cpus: Annotated[int, Field(ge=1)] | None = None
    usable_cpus: Annotated[float, Field(gt=0)] | None = None


def link_report(times: LinkTimes) -> LinkReport:
    """For the line."""
    return LinkReport(**asdict(times))


def parse_report(line: str) -> AgentReport:
    """An agent's line. Raises ReportError naming the field."""
    try:
        return AgentReport.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "line"
        raise ReportError(f"agent: {field}: {first['msg']}") from None
