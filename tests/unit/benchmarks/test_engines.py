"""What the benchmark of engines makes of its measurements."""

from __future__ import annotations

import pytest

from benchmarks.engines import MEASURES, PARTS, RIVALS, TARGETS, Group
from benchmarks.report import Row
from benchmarks.roofline import Bandwidth, measure, roof


class Fake:
    """A contender with a name, which nobody asks for a measurement."""

    def __init__(self, name: str) -> None:
        self.name = name

    def decode(self, batch: int) -> float:
        """Tokens per second."""
        return float(batch)

    def prefill(self) -> float:
        """Tokens per second."""
        return 1.0


def group(dtype: str, hosts: int, delay_ms: float = 0.0) -> Group:
    """One whose contenders are fakes."""
    made = Group(dtype, hosts, delay_ms)
    made.ours["onnx"] = Fake("ours")  # type: ignore[assignment]
    rivals = (*RIVALS[dtype], "transformers") if dtype == "float32" else RIVALS[dtype]
    made.rivals.update({kind: Fake(kind) for kind in rivals})
    return made


def speeds(made: Group, ours: float, theirs: float) -> dict[str, list[float]]:
    """One turn in which all rivals were as fast."""
    return {"onnx": [ours], **{kind: [theirs] for kind in made.rivals}}


def against(rows: list[Row], rival: str) -> Row:
    """The row that compares ours with ``rival``."""
    return next(row for row in rows if row.name == f"ours, against {rival}")


@pytest.mark.parametrize(
    ("dtype", "hosts", "rival", "least"),
    [
        ("float32", 0, "transformers", 2.0),
        ("float32", 2, "transformers", 1.6),
        ("int4", 0, "Q4_1", 1.0),
        ("int4", 2, "Q4_1", 1.3),
    ],
)
def test_speeds_are_held_against_their_target(dtype: str, hosts: int, rival: str, least: float) -> None:
    """Just below is missed, at it is met, and other rivals have no target."""
    made = group(dtype, hosts)
    for ours, verdict in ((least, "met"), (least * 0.99, "MISSED")):
        found = speeds(made, ours, 1.0)
        rows = made.rows(found, "1 session", judged=True)
        assert (against(rows, rival).target, against(rows, rival).verdict) == (least, verdict)
        assert [row.name for row in rows if row.target is not None] == [f"ours, against {rival}"]


def test_with_a_delay_the_time_per_token_is_held_against_its_target() -> None:
    """Three quarters of the rival's time is met, more is missed; other delays are printed without a verdict."""
    for ours, verdict in ((4.0, "met"), (3.9, "MISSED")):
        made = group("int4", 2, 10.0)
        row = against(made.rows(speeds(made, ours, 3.0), "10 ms", judged=True), "Q4_1")
        assert (row.target, row.better, row.verdict) == (0.75, "lower", verdict)
    made = group("int4", 2, 5.0)
    rows = made.rows(speeds(made, 1.0, 1.0), "5 ms", judged=True)
    assert all(row.target is None for row in rows)


def test_targets_are_for_one_session_that_decodes() -> None:
    """Batches and prompts are printed and not judged."""
    made = group("int4", 0)
    rows = made.rows(speeds(made, 0.1, 1.0), "4 sessions")
    assert all(row.verdict == "" for row in rows)


def test_every_part_and_every_target_can_be_measured() -> None:
    """A part that has no measure, or a target on a rival that never runs, would be lost without a word."""
    assert list(MEASURES) == list(PARTS)
    assert {t.rival for t in TARGETS} <= {
        "transformers",
        *(kind for kinds in RIVALS.values() for kind in kinds),
    }


def test_the_roofline_is_bandwidth_over_bytes() -> None:
    """10 GB/s and 100 MB per token allow 100 tokens/s; 50 of them are half."""
    row = roof("ours", 100_000_000, Bandwidth(10e9, 12e9), [50.0, 25.0, 75.0])
    assert row.ratio is not None
    assert row.ratio.median == 0.5
    assert "100 MB per token" in row.measured
    assert "100.0 tokens/s" in row.measured


def test_the_roofline_takes_the_best_bandwidth_that_was_seen() -> None:
    """A look at a busy machine must not lower what memory can do, and so flatter the engines."""
    assert Bandwidth(10.0, 5.0).better(Bandwidth(8.0, 6.0)) == Bandwidth(10.0, 6.0)


def test_the_bandwidth_of_this_machine_is_measured_in_both_directions() -> None:
    """Every kernel runs, on more than one thread, and gives bytes per second."""
    found = measure(2, size=1 << 20)
    assert found.read > 0
    assert found.copy > 0
