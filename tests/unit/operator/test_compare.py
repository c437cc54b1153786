"""Observed beside predicted: which figures, for which traffic, and what is said where there is none."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from splitinfer.operator.local.compare import NO_BASIS, Comparison, Figure, traffic_of
from splitinfer.operator.local.control import Prompts, Recent, Steps, Tokens
from splitinfer.operator.local.models import find_model
from splitinfer.operator.planning.forecast import Basis, NoForecast, forecast
from splitinfer.operator.planning.snapshot import parse_snapshot
from splitinfer.optimizer.forecast import Forecast, Traffic
from splitinfer.optimizer.plan import Segment
from splitinfer.optimizer.values import Unknown
from tests.support.stored import write_index

RECENT = Recent(
    window_seconds=60,
    decode=Steps(
        steps=40,
        sessions_mean=1.5,
        rows_mean=1.5,
        context_tokens_mean=220.0,
        in_flight_mean=1.2,
        hop_p50_seconds=(0.01, 0.02),
    ),
    tokens=Tokens(count=60, tpot_p50_seconds=0.04, tpot_p95_seconds=0.05, per_second=30.0),
    prompts=Prompts(count=2, ttft_p50_seconds=0.5, ttft_p95_seconds=0.6, tokens_p50=192),
)
TRAFFIC = Traffic(sessions=1.5, in_flight=1, context_tokens=220.0, prompt_tokens=192)
EXPECTED = Forecast(
    traffic=TRAFFIC,
    tpot_seconds=0.05,
    ttft_seconds=0.4,
    tokens_per_second=25.0,
    segment_seconds=(0.02, 0.02),
)


def test_the_traffic_is_that_of_the_window() -> None:
    """Sessions per step, their context, the prompts; without a first token, the context is all that is known of them."""
    assert traffic_of(RECENT) == TRAFFIC
    later = traffic_of(RECENT.model_copy(update={"prompts": None}))
    assert later == TRAFFIC.model_copy(update={"prompt_tokens": 220})
    assert traffic_of(Recent(window_seconds=60)) is None


def test_each_figure_stands_beside_its_prediction() -> None:
    """Over one is slower, or more tokens, than predicted."""
    found = Comparison(RECENT, TRAFFIC, EXPECTED, 2, None)
    assert found.figures == (
        Figure("ttft", 0.5, 0.4),
        Figure("tpot", 0.04, 0.05),
        Figure("tokens_per_second", 30.0, 25.0),
        Figure("segment[0]", 0.01, 0.02),
        Figure("segment[1]", 0.02, 0.02),
    )
    assert [figure.ratio for figure in found.figures] == pytest.approx([1.25, 0.8, 1.2, 0.5, 1.0])
    assert found.cells(0) == ("10.00", "20.00")
    assert found.lines == [
        "last 60 s: 1.5 sessions per step, 1 steps in flight, 220 tokens of context, prompts of 192",
        "TTFT: observed 500.00 ms, predicted 400.00 ms (x 1.25)",
        "TPOT: observed 40.00 ms, predicted 50.00 ms (x 0.80)",
        "tokens/s: observed 30.00, predicted 25.00 (x 1.20)",
    ]
    assert found.data["figures"]["segment[0]"] == {"observed": 0.01, "predicted": 0.02, "ratio": 0.5}


def test_without_traffic_that_is_said_and_the_promise_is_shown() -> None:
    """What was predicted for the load that the plan was made for; nothing that was observed."""
    found = Comparison(Recent(window_seconds=60), None, EXPECTED, 2, None)
    assert found.lines[0] == "no traffic in the last 60 s"
    assert found.lines[2] == "TPOT: observed unknown, predicted 50.00 ms"
    assert found.cells(1) == ("unknown", "20.00")
    assert found.data["observed_traffic"] is None


def test_a_plan_that_was_given_has_no_prediction_and_says_so() -> None:
    """Observed alone."""
    found = Comparison(RECENT, TRAFFIC, None, 2, NO_BASIS)
    assert f"no prediction: {NO_BASIS}" in found.lines
    assert "TPOT: observed 40.00 ms, predicted unknown" in found.lines
    assert found.cells(0) == ("10.00", "unknown")
    assert found.data["no_prediction"] == NO_BASIS
    assert Comparison(Recent(window_seconds=60), None, None, 2, NO_BASIS).lines == [
        "no traffic in the last 60 s",
        f"no prediction: {NO_BASIS}",
    ]


NODE = """
  trusted: true
  freeMemoryBytes: 8e9
  memoryBandwidthBytesPerSecond: 1e9
  flopsPerSecond: {float32: 1e10}
  blockOverheadSeconds: 0
  stepOverheadSeconds: 0.001
  serialisationBytesPerSecond: 1e9
  backgroundUtilisation: 0
"""
SNAPSHOT = f"""
takenAtSeconds: 0
nodes:
- name: a{NODE}
- name: b{NODE}
links:
- {{fromNode: a, toNode: b, roundTripSeconds: 0.01, bandwidthBytesPerSecond: 1e9}}
- {{fromNode: b, toNode: a, roundTripSeconds: 0.01, bandwidthBytesPerSecond: 1e9}}
"""
SEGMENTS = (Segment(node="a", start=0, stop=1), Segment(node="b", start=1, stop=3))


def basis() -> Basis:
    """Two nodes that are alike."""
    return Basis(snapshot=parse_snapshot(SNAPSHOT), entry="a", traffic=TRAFFIC)


def test_the_same_plan_is_predicted_for_each_traffic(tmp_path: Path) -> None:
    """Longer contexts and more sessions take longer steps; longer prompts a later first token, and nothing else."""
    write_index(tmp_path, "m", blocks=3)
    model = find_model("store://m", tmp_path, "model")

    def of(**changes: float) -> Forecast:
        return forecast(model, "float32", SEGMENTS, basis(), TRAFFIC.model_copy(update=changes))

    usual = of()
    assert len(usual.segment_seconds) == 2
    assert usual.segment_seconds[1] > usual.segment_seconds[0]
    assert usual.tokens_per_second == pytest.approx(1.5 / usual.tpot_seconds)
    assert of(context_tokens=2200.0).segment_seconds > usual.segment_seconds
    assert of(sessions=8.0).tpot_seconds > usual.tpot_seconds
    longer = of(prompt_tokens=1920)
    assert longer.ttft_seconds > usual.ttft_seconds
    assert math.isclose(longer.tpot_seconds, usual.tpot_seconds)


def test_what_the_basis_does_not_know_is_named(tmp_path: Path) -> None:
    """A node without a reading, a node that is not in it, a link."""
    write_index(tmp_path, "m", blocks=3)
    model = find_model("store://m", tmp_path, "model")
    known = basis()
    one, other = known.snapshot.nodes
    blind = one.model_copy(update={"memory_bandwidth_bytes_per_second": Unknown(unknown="not probed")})
    for nodes, links, why in (
        ((blind, other), known.snapshot.links, "a: unknown: .*not probed"),
        ((one,), (), "does not have the nodes"),
        ((one, other), (), "link"),
    ):
        snapshot = known.snapshot.model_copy(update={"nodes": nodes, "links": links})
        with pytest.raises(NoForecast, match=why):
            forecast(model, "float32", SEGMENTS, known.model_copy(update={"snapshot": snapshot}), TRAFFIC)
