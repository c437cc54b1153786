"""From probed times to the cost model's parameters."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinfer.profiler.speeds import BlockTimes, ProbeError, ProbeResult, parse_probe, speeds_of

WEIGHTS, KV, CONTEXT, ROWS = 14_000_000, 1536, 128, 8
FLOPS = 7.5e6
FRAME = 1e-5


def probe(
    memory: float,
    one: tuple[float, float],
    two: tuple[float, float],
    quota: float | None = None,
    threads: int = 1,
) -> ProbeResult:
    """Times ``(decode, prefill)`` of one and of two blocks."""
    return ProbeResult(
        model_digest="d",
        dtype="float32",
        engine="onnx",
        version="1",
        threads=threads,
        weight_bytes=WEIGHTS,
        kv_bytes_per_token=KV,
        context_tokens=CONTEXT,
        prefill_flops_per_token=FLOPS,
        decode_flops_per_token=FLOPS,
        quota_cpus=quota,
        memory_bytes_per_second=memory,
        frame_seconds=FRAME,
        frame_bytes_per_second=2e9,
        times=(
            BlockTimes(blocks=1, decode_one=one[0], prefill=one[1]),
            BlockTimes(blocks=2, decode_one=two[0], prefill=two[1]),
        ),
    )


@given(
    bandwidth=st.floats(1e9, 3e11),
    flops=st.floats(1e9, 1e13),
    overhead=st.floats(0, 1e-3),
    step=st.floats(0, 5e-3),
)
def test_a_node_that_obeys_the_cost_model_is_found_again(
    bandwidth: float, flops: float, overhead: float, step: float
) -> None:
    """Times made by the cost model's own formulas give back what they were made with, so a prediction is what was timed."""
    decode = (WEIGHTS + CONTEXT * KV) / bandwidth + overhead
    arithmetic = CONTEXT * FLOPS / flops
    prefill = arithmetic + overhead
    found = speeds_of(
        probe(bandwidth, (step + decode, step + prefill), (step + 2 * decode, step + 2 * prefill))
    )
    read = (WEIGHTS + CONTEXT * KV) / found.memory_bandwidth_bytes_per_second
    assert read + found.block_overhead_seconds == pytest.approx(decode, rel=1e-6)
    assert found.step_overhead_seconds == pytest.approx(step + FRAME, rel=1e-3, abs=1e-9)
    if arithmetic > 1.01 * overhead:  # else half of a chunk's time is the least that counts as arithmetic
        assert CONTEXT * FLOPS / found.flops_per_second + found.block_overhead_seconds == pytest.approx(
            prefill, rel=1e-3
        )


def test_a_block_that_beats_the_measured_memory_sets_the_bandwidth() -> None:
    """A block out of a cache, or a probe of memory that was disturbed: no negative overhead comes of it."""
    read = WEIGHTS + CONTEXT * KV
    found = speeds_of(probe(1e9, (0.001, 0.01), (0.002, 0.02)))
    assert found.memory_bandwidth_bytes_per_second == pytest.approx(read / 0.001)
    assert found.block_overhead_seconds == 0


@pytest.mark.parametrize(
    ("quota", "threads", "share"), [(0.5, 1, 0.5), (1.5, 2, 0.75), (4, 2, 1.0), (None, 2, 1.0)]
)
def test_a_quota_below_the_threads_slows_everything(quota: float | None, threads: int, share: float) -> None:
    """The probe's clock stands while the quota holds it back, so it is counted here: once, and for frames per thread."""
    times = ((0.003, 0.012), (0.005, 0.022))  # a step of 1 ms, blocks of 2 and 10 ms
    free = speeds_of(probe(1e10, *times, threads=threads))
    held = speeds_of(probe(1e10, *times, quota=quota, threads=threads))
    for name in ("memory_bandwidth_bytes_per_second", "flops_per_second"):
        assert getattr(held, name) == pytest.approx(getattr(free, name) * share)
    assert held.block_overhead_seconds == pytest.approx(free.block_overhead_seconds / share)
    frames = min(1.0, quota or 1.0)
    assert held.serialisation_bytes_per_second == pytest.approx(2e9 * frames)
    assert held.step_overhead_seconds == pytest.approx(0.001 / share + FRAME / frames)


@pytest.mark.parametrize("two", [(0.001, 0.02), (0.0005, 0.02), (0.002, 0.01)])
def test_two_blocks_that_take_no_longer_than_one_are_refused(two: tuple[float, float]) -> None:
    """Nothing is made up from a disturbed probe."""
    with pytest.raises(ProbeError, match="took no longer"):
        speeds_of(probe(1e10, (0.001, 0.01), two))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory_bytes_per_second", float("nan")),
        ("memory_bytes_per_second", 0),
        ("threads", 0),
        ("quota_cpus", 0),
        ("prefill_flops_per_token", 0),
        ("times", []),
        ("dtype", None),
        ("more", 1),
    ],
)
def test_what_a_probe_may_not_say_is_refused_by_field(field: str, value: object) -> None:
    """NaN, zero, a missing or an unknown field."""
    said = probe(1e10, (0.001, 0.01), (0.002, 0.02)).model_dump(mode="json") | {field: value}
    with pytest.raises(ProbeError, match=field):
        parse_probe(json.dumps(said))


@given(st.text(max_size=200))
def test_no_line_breaks_the_parser(line: str) -> None:
    """A random text on stdout is a ProbeError, and nothing else."""
    with pytest.raises(ProbeError, match=r"^probe: "):
        parse_probe(line)
