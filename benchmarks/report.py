"""Medians with their range, ratios against targets, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal


@dataclass(frozen=True, slots=True)
class Samples:
    """Repeated measurements of one thing."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Samples:
        """At least one value."""
        assert values
        return cls(tuple(values))

    @property
    def median(self) -> float:
        """The middle one."""
        return median(self.values)

    def show(self, unit: str, digits: int = 1) -> str:
        """``median (smallest to largest) unit``."""
        low, high = min(self.values), max(self.values)
        return f"{self.median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f}) {unit}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report: what was measured, and the ratios of its turns, which a target is set on, if one is."""

    name: str
    measured: str
    ratio: Samples | None = None
    target: float | None = None
    better: Literal["higher", "lower"] = "higher"

    @property
    def verdict(self) -> str:
        """``met`` or ``MISSED``; empty where no target is set."""
        if self.ratio is None or self.target is None:
            return ""
        ratio = self.ratio.median
        met = ratio >= self.target if self.better == "higher" else ratio <= self.target
        return "met" if met else "MISSED"


def table(title: str, rows: Sequence[Row]) -> str:
    """Markdown, so that a run can be put into the documentation as it is."""
    lines = [f"### {title}", "", "| what | measured | ratio | target | |", "|---|---|---|---|---|"]
    for row in rows:
        ratio = "" if row.ratio is None else row.ratio.show("x", 2)
        sign = ">=" if row.better == "higher" else "<="
        target = "" if row.target is None else f"{sign} {row.target:.2f}"
        lines.append(f"| {row.name} | {row.measured} | {ratio} | {target} | {row.verdict} |")
    return "\n".join(lines)
