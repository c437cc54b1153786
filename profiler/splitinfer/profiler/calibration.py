"""How far live steps are from what the probe predicts: one ratio per model, dtype and engine of a node. Pure.

A step of a range, summed over steps (`splitinfer.profiler.steps.StepTotals`), takes by the cost model

    steps step_overhead + blocks block_overhead + max(read / B, FLOPs / F)

    read    blocks weight_bytes + block_context_tokens kv_bytes_per_token
    FLOPs   block_rows flops_per_token

which is `splitinfer.optimizer.cost` without the links. The larger of two sums is at most the sum of the larger ones, so
steps of one phase are predicted together, and the phases apart.

A window of live steps gives ``observed x share / predicted``, where ``share`` is the part of the CPU that contention left:
what others take is in the capacity snapshot as background utilisation already, and must not count twice. The ratio is the
median of the last windows: less than half of them, however wrong, cannot move it out of the range of the others. It is
bounded, because beyond the bound the probe is to be repeated rather than corrected; and it forgets, because a ratio that
no traffic confirms says nothing of now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from statistics import median
from typing import Protocol

from splitinfer.profiler.speeds import Speeds
from splitinfer.profiler.steps import Phase, StepTotals

WINDOWS = 9
"""The last so many windows count: an hour ago is not now."""
LEAST_WINDOWS = 3
"""With fewer, one that was disturbed would be half of what is known."""
LEAST_STEPS = 16
"""Of a phase in a window; a few steps are timed no better than a few are disturbed."""
FORGET_SECONDS = 900.0
"""A window that is older counts no more."""
BOUND = 4.0
"""The ratio is at most this, and at least one over it."""


class ProbedBlock(Protocol):
    """What the prediction needs of a probe: bytes and FLOPs of one block, and what a frame costs beside the engine."""

    @property
    def weight_bytes(self) -> int:
        """Of one block."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Of one block."""

    @property
    def frame_seconds(self) -> float:
        """What a host does with a frame of one row beside the blocks; in the speeds' step overhead."""

    @property
    def quota_cpus(self) -> float | None:
        """That the control group lets the process use; in the speeds too."""

    @property
    def prefill_flops_per_token(self) -> float:
        """Of one block, at the context of the probe."""

    @property
    def decode_flops_per_token(self) -> float:
        """Of one block, at the context of the probe."""


def predicted_seconds(totals: StepTotals, phase: Phase, speeds: Speeds, probe: ProbedBlock) -> float:
    """Seconds that the engine computes for such steps, on a node that has nothing else to do.

    Without frames and links: that is what the engine is observed at. Both are in a plan's prediction.
    """
    flops = probe.decode_flops_per_token if phase == "decode" else probe.prefill_flops_per_token
    read = totals.blocks * probe.weight_bytes + totals.block_context_tokens * probe.kv_bytes_per_token
    memory = read / speeds.memory_bandwidth_bytes_per_second
    arithmetic = totals.block_rows * flops / speeds.flops_per_second
    frame = probe.frame_seconds / min(1.0, probe.quota_cpus or 1.0)
    step = max(0.0, speeds.step_overhead_seconds - frame)
    return totals.steps * step + totals.blocks * speeds.block_overhead_seconds + max(memory, arithmetic)


def window_ratio(
    totals: Mapping[Phase, StepTotals], share: float | None, speeds: Speeds, probe: ProbedBlock
) -> float | None:
    """Observed over predicted in one window, over the phases that have enough steps; None where nothing can be told.

    Args:
        totals: what happened in the window, of all hosts of the node that serve what was probed.
        share: of the CPU that the hosts got where they wanted it, over the window, 0 to 1; None where it is not known.
        speeds: of the probe.
        probe: that they came from.
    """
    if share is None or not 0.0 < share <= 1.0:
        return None
    observed = predicted = 0.0
    for phase, steps in totals.items():
        if steps.steps >= LEAST_STEPS:
            observed += steps.seconds
            predicted += predicted_seconds(steps, phase, speeds, probe)
    if not (isfinite(observed) and isfinite(predicted) and observed > 0 and predicted > 0):
        return None
    return observed * share / predicted


@dataclass(frozen=True, slots=True)
class Sample:
    """The ratio of one window, and when it ended on the caller's monotonic clock, in seconds."""

    ratio: float
    at: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """The ratio of one probe as its windows come. A new probe begins anew: it has seen what the old one missed."""

    samples: tuple[Sample, ...] = ()

    def after(self, ratio: float | None, now: float) -> Calibration:
        """With one more window that ended ``now``; unchanged where nothing could be told from it."""
        if ratio is None or not isfinite(ratio) or ratio <= 0:
            return self
        return Calibration((*self.samples, Sample(ratio, now))[-WINDOWS:])

    def ratio(self, now: float) -> float | None:
        """Speeds are divided by it. None before enough windows, and when they are too old."""
        counted = [sample.ratio for sample in self.samples if now - sample.at <= FORGET_SECONDS]
        if len(counted) < LEAST_WINDOWS:
            return None
        return min(max(median(counted), 1 / BOUND), BOUND)

    def age_seconds(self, now: float) -> float | None:
        """Age of the newest window; None before any."""
        return now - self.samples[-1].at if self.samples else None
