"""The predictions that came with plans, exported beside what is observed while the plan that they are of serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from splitinfer.optimizer.forecast import Forecast
from splitinfer.optimizer.plan import Plan

KEPT = 4
"""Forecasts by plan: of the plan that serves, of the one to come, and of those it may go back to."""


class Forecasts(Collector):
    """By plan digest, newest last. A plan without one, such as one that the entry found by itself, exports none."""

    def __init__(self, registry: CollectorRegistry, serving: Callable[[], Plan | None]) -> None:
        self._of: dict[str, Forecast] = {}
        self._serving = serving
        registry.register(self)

    def take(self, plan: Plan, forecast: Forecast | None) -> None:
        """What came with a plan; without one, an older one of the same plan counts no more."""
        self._of.pop(plan.digest, None)
        if forecast is not None:
            self._of[plan.digest] = forecast
        for digest in list(self._of)[:-KEPT]:
            del self._of[digest]

    @property
    def now(self) -> Forecast | None:
        """Of the plan that serves."""
        plan = self._serving()
        return self._of.get(plan.digest) if plan else None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """For Prometheus."""
        seconds = GaugeMetricFamily(
            "splitinfer_entry_predicted_seconds",
            "What the optimizer predicts for the plan that serves and the load that it was made for: tpot, ttft, and "
            "per hop the time of a decode step (segment); absent for a plan that was given",
            labels=["what", "hop"],
        )
        rate = GaugeMetricFamily(
            "splitinfer_entry_predicted_tokens_per_second",
            "Tokens of all sessions together, predicted for the plan that serves and the load that it was made for",
        )
        if (found := self.now) is not None:
            seconds.add_metric(["tpot", ""], found.tpot_seconds)
            seconds.add_metric(["ttft", ""], found.ttft_seconds)
            for hop, value in enumerate(found.segment_seconds):
                seconds.add_metric(["segment", str(hop)], value)
            rate.add_metric([], found.tokens_per_second)
        yield seconds
        yield rate
