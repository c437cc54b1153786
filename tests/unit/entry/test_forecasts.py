"""Predictions that came with plans, as metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from splitinfer.optimizer.forecast import Forecast, Traffic
from splitinfer.optimizer.plan import ModelRef, Plan, Segment
from splitinfer.segment_runtime.entry.forecasts import KEPT, Forecasts


def plan(cut: int, epoch: int = 1) -> Plan:
    """Two segments of 100 blocks."""
    return Plan(
        epoch=epoch,
        model=ModelRef(name="m", digest="0" * 64),
        dtype="float32",
        blocks=100,
        segments=(Segment(node="a", start=0, stop=cut), Segment(node="b", start=cut, stop=100)),
        max_context_tokens=10,
        kv_budget_tokens=10,
    )


def forecast(tpot: float) -> Forecast:
    """Of two segments."""
    return Forecast(
        traffic=Traffic(sessions=1, context_tokens=10, prompt_tokens=10),
        tpot_seconds=tpot,
        ttft_seconds=2.0,
        tokens_per_second=4.0,
        segment_seconds=(0.25, 0.5),
    )


class Served:
    """What serves, as a test sets it, and what is exported then."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.registry = CollectorRegistry()
        self.forecasts = Forecasts(self.registry, lambda: self.plan)

    def value(self, what: str, hop: str = "") -> float | None:
        """Seconds."""
        return self.registry.get_sample_value(
            "splitinfer_entry_predicted_seconds", {"what": what, "hop": hop}
        )


def test_the_forecast_of_the_plan_that_serves_is_exported() -> None:
    """End to end and per hop; under any epoch, for the digest has none; nothing before a plan serves."""
    served = Served()
    served.forecasts.take(plan(30), forecast(0.125))
    assert served.value("tpot") is None
    served.plan = plan(30, epoch=7)
    assert (served.value("tpot"), served.value("ttft")) == (0.125, 2.0)
    assert (served.value("segment", "0"), served.value("segment", "1")) == (0.25, 0.5)
    assert served.registry.get_sample_value("splitinfer_entry_predicted_tokens_per_second") == 4.0


def test_a_plan_without_a_forecast_exports_none() -> None:
    """One that was given, or that the entry found by itself; also where an older message of the same plan had one."""
    served = Served()
    served.forecasts.take(plan(30), forecast(0.125))
    served.plan = plan(40)
    assert served.value("tpot") is None
    served.plan = plan(30)
    served.forecasts.take(plan(30), None)
    assert served.value("tpot") is None


def test_few_are_kept_the_newest() -> None:
    """An entry lives for months, and plans come and go."""
    served = Served()
    for cut in range(1, KEPT + 2):
        served.forecasts.take(plan(cut), forecast(cut / 8))
    served.plan = plan(1)
    assert served.value("tpot") is None
    served.plan = plan(2)
    assert served.value("tpot") == 0.25
