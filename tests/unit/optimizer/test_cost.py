"""The cost model, number by number: the worked example of docs/optimizer.md, and the parts that it leaves out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from splitinfer.optimizer.answer import answer
from splitinfer.optimizer.chunked import judged
from splitinfer.optimizer.compile import compile_problem
from splitinfer.optimizer.example import tiny_question
from splitinfer.optimizer.graph import ModelGraph
from splitinfer.optimizer.plan import Segment
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.values import Known, OptimizerInputError
from splitinfer.optimizer.wanted import Constraints, Pin, RunningPlan, Weights, Workload

DOCS = Path(__file__).resolve().parents[3] / "docs" / "optimizer.md"


def segments(*parts: tuple[str, int, int]) -> tuple[Segment, ...]:
    """Segments from ``(node, start, stop)``."""
    return tuple(Segment(node=n, start=a, stop=b) for n, a, b in parts)


def priced(question: Question, *parts: tuple[str, int, int]) -> float:
    """Cost of a plan with the entry on the box."""
    found = judged(compile_problem(question), "box", segments(*parts))
    assert found is not None
    return found.cost


def test_the_worked_example_is_what_the_document_says() -> None:
    """Each number of the table stands in docs/optimizer.md and comes out of the code."""
    text = DOCS.read_text("utf-8")
    question = tiny_question()
    plans = {
        "box 0-3": [("box", 0, 4)],
        "box 0-1, gpu 2-3": [("box", 0, 2), ("gpu", 2, 4)],
        "box 0, gpu 1-2, box 3": [("box", 0, 1), ("gpu", 1, 3), ("box", 3, 4)],
    }
    for name, parts in plans.items():
        assert f"| {name} | {priced(question, *parts):.4f} |" in text, name
    found = answer(question)
    assert found.status == "optimal"
    assert found.segments == segments(("box", 0, 2), ("gpu", 2, 4))
    assert found.prediction is not None
    assert found.prediction.tpot_seconds == pytest.approx(0.036006)


def test_decode_reads_weights_and_kv_or_computes_whichever_is_longer() -> None:
    """The roofline per block: memory-bound here, compute-bound with few FLOP/s; overhead and background on top."""
    question = tiny_question()
    problem = compile_problem(question)
    box = problem.nodes.index("box")
    assert problem.ring[1, box] == pytest.approx(100e6 / 10e9)
    slow = [
        node.model_copy(
            update={
                "flops_per_second": {"float32": Known(value=1e9)},
                "block_overhead_seconds": Known(value=0.002),
                "background_utilisation": Known(value=0.5),
            }
        )
        for node in question.snapshot.nodes
    ]
    changed = replace(question, snapshot=question.snapshot.model_copy(update={"nodes": tuple(slow)}))
    problem = compile_problem(changed)
    box = problem.nodes.index("box")
    assert problem.ring[1, box] == pytest.approx((50e6 / 1e9 + 0.002) / 0.5)


def test_a_second_range_on_a_node_counts_its_memory_once_with_the_first() -> None:
    """Two ranges of two blocks fill 400 MB; with 399 they break memory."""
    question = tiny_question()
    for room, fits in ((250, True), (199, False)):
        nodes = tuple(
            node.model_copy(update={"free_memory_bytes": Known(value=room * 1e6)})
            if node.name == "gpu"
            else node
            for node in question.snapshot.nodes
        )
        changed = replace(question, snapshot=question.snapshot.model_copy(update={"nodes": nodes}))
        found = judged(
            compile_problem(changed),
            "box",
            segments(("box", 0, 1), ("gpu", 1, 2), ("box", 2, 3), ("gpu", 3, 4)),
        )
        assert found is not None
        assert ("memory" not in found.broken) == fits


def test_with_micro_batches_the_slowest_node_sets_the_pace() -> None:
    """TPOT is the ring or k times the busiest node, whichever is longer; throughput is its inverse."""
    problem = compile_problem(tiny_question(micro_batches=8))
    found = judged(problem, "box", segments(("box", 0, 4)))
    assert found is not None
    busiest = max(found.busy_seconds.values())
    assert found.tpot_seconds == pytest.approx(8 * busiest)
    assert found.tpot_seconds > found.ring_seconds


def test_a_prompt_in_chunks_waits_for_the_slowest_stage() -> None:
    """TTFT grows by the slowest stage or link per further chunk."""
    question = tiny_question()
    one = judged(compile_problem(question), "box", segments(("box", 0, 2), ("gpu", 2, 4)))
    work = question.workload.model_copy(update={"prompt_tokens": 3, "prefill_chunk_tokens": 1})
    three = judged(
        compile_problem(replace(question, workload=work)), "box", segments(("box", 0, 2), ("gpu", 2, 4))
    )
    assert one is not None
    assert three is not None
    entry_and_blocks = 0.006 + 0.021
    assert three.ttft_seconds == pytest.approx(one.ttft_seconds + 2 * entry_and_blocks)


def test_moving_costs_weights_and_the_faster_of_copy_and_replay() -> None:
    """A block that stays costs nothing; one that moves its bytes, and KV over the link or by computing again."""
    question = tiny_question()
    running = RunningPlan(
        entry="box", segments=segments(("box", 0, 4)), live_tokens=0, load_bytes_per_second=100e6
    )
    problem = compile_problem(replace(question, running=running))
    gpu, box = problem.nodes.index("gpu"), problem.nodes.index("box")
    assert problem.move[1, box] == 0
    assert problem.move[1, gpu] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (
            lambda: Constraints(pins=(Pin(start=0, stop=2, node="a"), Pin(start=1, stop=3, node="b"))),
            "pins[1]",
        ),
        (
            lambda: Constraints(
                pins=(
                    Pin(start=0, stop=1, node="a"),
                    Pin(start=1, stop=2, node="b"),
                    Pin(start=0, stop=1, node="c"),
                )
            ),
            "pins[2]",
        ),
        (lambda: Constraints(pins=(Pin(start=2, stop=1, node="a"),)), "pins[0].stop"),
        (lambda: Constraints(fixed_cuts=(2, 2)), "fixedCuts"),
        (lambda: RunningPlan(entry="a", segments=segments(("a", 1, 2))), "segments[0].start"),
        (
            lambda: ModelGraph(
                name="m",
                dtype="float32",
                units=(*tiny_question().graph.units[:2], *tiny_question().graph.units[1:]),
            ),
            "units[2].name",
        ),
        (
            lambda: ModelGraph(name="m", dtype="int4", units=tiny_question().graph.units),
            "units[0].parameterBytes",
        ),
        (
            lambda: compile_problem(replace(tiny_question(), constraints=Constraints(sensitive_blocks=(4,)))),
            "sensitiveBlocks",
        ),
        (
            lambda: compile_problem(replace(tiny_question(), constraints=Constraints(entry_node="x"))),
            "entryNode",
        ),
    ],
)
def test_a_rule_between_fields_names_the_field(make: Callable[[], object], field: str) -> None:
    """Pins in a circle over one block, a block twice, cuts that do not rise, what is not there."""
    with pytest.raises(OptimizerInputError) as refused:
        make()
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Workload(concurrency=0), "concurrency"),
        (lambda: Weights(latency=float("nan")), "latency"),
        (lambda: Weights(exposure=-1), "exposure"),
        (lambda: Constraints(max_segments=0), "maxSegments"),
        (lambda: Workload(pace_seconds=0), "paceSeconds"),
    ],
)
def test_a_number_that_makes_no_sense_names_its_field(make: Callable[[], object], field: str) -> None:
    """Zero, negative and NaN where they cannot be."""
    with pytest.raises(ValidationError) as refused:
        make()
    where = str(refused.value.errors()[0]["loc"][0])
    assert where in (field, "".join("_" + c.lower() if c.isupper() else c for c in field))
