"""From the times of one and two blocks to the speeds that the cost model is written in. Pure.

`splitinfer.segment_runtime.probe` times a range of one block and one of two. With ``T1`` and ``T2`` the seconds of a step,
``w`` the bytes of a block's weights, ``L kv`` its KV that a token looks at, ``f`` its FLOPs per token, ``q`` the tokens of a chunk:

    block         t = T2 - T1                        what one more block takes
    step_overhead max(0, T1 - t) + frame             what a step takes whatever its blocks
    bandwidth     B = max(memory, (w + L kv) / t)    a block is never faster than its bytes allow
    overhead      max(0, t - (w + L kv) / B)         what is left over the roofline
    FLOP/s        q f / (t_prefill - overhead)

A control group's quota of ``c`` CPUs lets ``n`` threads run for ``c / n`` of the time, and is in none of the probe's
times: every speed is ``min(1, c / n)`` of what they give, and frames, which one thread writes, ``min(1, c)``.

This is the cost model of `splitinfer.optimizer.cost` solved for its parameters, so a block that runs as it was probed is
predicted as it was timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Seconds = Annotated[float, Field(gt=0)]
BytesPerSecond = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class ProbeError(Exception):
    """What the probe said cannot be used; the message says why."""


class BlockTimes(BaseModel):
    """Seconds of one step of a range of so many blocks, medians."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    blocks: Count
    decode_one: Seconds
    decode_many: Seconds
    prefill: Seconds


class ProbeResult(BaseModel):
    """One JSON line of the probe. Fields and units are those of `splitinfer.segment_runtime.probe.Probe`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model_digest: str
    dtype: str
    engine: str
    version: str
    threads: Count
    weight_bytes: Count
    kv_bytes_per_token: Count
    context_tokens: Count
    rows: Count
    prefill_flops_per_token: Annotated[float, Field(gt=0)]
    decode_flops_per_token: Annotated[float, Field(gt=0)]
    memory_bytes_per_second: BytesPerSecond
    frame_seconds: Seconds
    frame_bytes_per_second: BytesPerSecond
    quota_cpus: Annotated[float, Field(gt=0)] | None = None
    free_device_bytes: Annotated[int, Field(ge=0)] | None = None
    times: tuple[BlockTimes, BlockTimes]


@dataclass(frozen=True, slots=True)
class Speeds:
    """Of one node, for one model, dtype and engine."""

    memory_bandwidth_bytes_per_second: float
    flops_per_second: float
    block_overhead_seconds: float
    step_overhead_seconds: float
    serialisation_bytes_per_second: float


def parse_probe(line: str) -> ProbeResult:
    """The probe's line. Raises ProbeError naming the field that is not what it should be."""
    try:
        return ProbeResult.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "line"
        raise ProbeError(f"probe: {field}: {first['msg']}") from None


def speeds_of(probe: ProbeResult) -> Speeds:
    """What the cost model needs, from the times of one and two blocks.

    Raises:
        ProbeError: two blocks were not slower than one: the machine was disturbed, nothing can be told from it.
    """
    one, two = probe.times
    more = two.blocks - one.blocks
    if more < 1:
        raise ProbeError("probe: times: a range of one block and a larger one are needed")
    block = (two.decode_one - one.decode_one) / more
    prefill = (two.prefill - one.prefill) / more
    if block <= 0 or prefill <= 0:
        raise ProbeError(
            f"probe: times: {two.blocks} blocks took no longer than {one.blocks}; the node was disturbed, probe again"
        )
    read = probe.weight_bytes + probe.context_tokens * probe.kv_bytes_per_token
    bandwidth = max(probe.memory_bytes_per_second, read / block)
    overhead = max(0.0, block - read / bandwidth)
    arithmetic = max(
        prefill - overhead, prefill / 2
    )  # the overhead was timed elsewhere: it never takes it all
    quota = inf if probe.quota_cpus is None else probe.quota_cpus
    computes, serialises = min(1.0, quota / probe.threads), min(1.0, quota)
    step = max(0.0, one.decode_one - one.blocks * block)
    return Speeds(
        memory_bandwidth_bytes_per_second=bandwidth * computes,
        flops_per_second=probe.context_tokens * probe.prefill_flops_per_token / arithmetic * computes,
        block_overhead_seconds=overhead / computes,
        step_overhead_seconds=step / computes + probe.frame_seconds / serialises,
        serialisation_bytes_per_second=probe.frame_bytes_per_second * serialises,
    )
