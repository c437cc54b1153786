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
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

DISTURBED = "the node was disturbed, probe again"
"""How a reason ends that the next probe need not have."""
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


@dataclass(frozen=True, slots=True)
class BlockSeconds:
    """What one more block takes: a token after the probe's context, and a chunk of so many tokens."""

    decode: float
    prefill: float


def block_seconds(probe: ProbeResult) -> BlockSeconds:
    """Of one block of the model, under the node's quota.

    Raises:
        ProbeError: two blocks were not slower than one: the machine was disturbed, nothing can be told from it.
    """
    one, two = probe.times
    more = two.blocks - one.blocks
    if more < 1:
        raise ProbeError("probe: times: a range of one block and a larger one are needed")
    decode = (two.decode_one - one.decode_one) / more
    prefill = (two.prefill - one.prefill) / more
    if decode <= 0 or prefill <= 0:
        raise ProbeError(f"probe: times: {two.blocks} blocks took no longer than {one.blocks}; {DISTURBED}")
    share = _quota_share(probe, probe.threads)
    return BlockSeconds(decode / share, prefill / share)


def speeds_of(probe: ProbeResult) -> Speeds:
    """What the cost model needs, from the times of one and two blocks.

    Raises:
        ProbeError: as `block_seconds`.
    """
    block = block_seconds(probe)
    one, _ = probe.times
    computes, serialises = _quota_share(probe, probe.threads), _quota_share(probe, 1)
    read = probe.weight_bytes + probe.context_tokens * probe.kv_bytes_per_token
    bandwidth = max(probe.memory_bytes_per_second * computes, read / block.decode)
    overhead = max(0.0, block.decode - read / bandwidth)
    # The overhead was timed elsewhere: it never takes it all.
    arithmetic = max(block.prefill - overhead, block.prefill / 2)
    step = max(0.0, one.decode_one / computes - one.blocks * block.decode)
    return Speeds(
        memory_bandwidth_bytes_per_second=bandwidth,
        flops_per_second=probe.context_tokens * probe.prefill_flops_per_token / arithmetic,
        block_overhead_seconds=overhead,
        step_overhead_seconds=step + probe.frame_seconds / serialises,
        serialisation_bytes_per_second=probe.frame_bytes_per_second * serialises,
    )


def _quota_share(probe: ProbeResult, threads: int) -> float:
    return 1.0 if probe.quota_cpus is None else min(1.0, probe.quota_cpus / threads)
