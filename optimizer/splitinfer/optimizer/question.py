"""The question that a decision answers."""

from __future__ import annotations

from dataclasses import dataclass

from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.optimizer.graph import ModelGraph
from splitinfer.optimizer.wanted import Constraints, RunningPlan, Weights, Workload

_WORKLOAD, _CONSTRAINTS, _WEIGHTS = Workload(), Constraints(), Weights()


@dataclass(frozen=True, slots=True)
class Question:
    """Everything that a decision depends on; equal questions have equal answers."""

    graph: ModelGraph
    snapshot: CapacitySnapshot
    workload: Workload = _WORKLOAD
    constraints: Constraints = _CONSTRAINTS
    weights: Weights = _WEIGHTS
    running: RunningPlan | None = None
    now_seconds: float | None = None
    """Time of the decision, to age the snapshot; None takes the time it was taken at."""

    @property
    def now(self) -> float:
        """Seconds since the epoch."""
        return self.snapshot.taken_at_seconds if self.now_seconds is None else self.now_seconds
