"""A prepare request, checked before anything is loaded. Pure.

Errors
------
PrepareError              a request that is refused; `field` names what in it cannot be met
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from splitinfer.optimizer.plan import DTypeName, activation_of, weight_bytes
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.store.reader import StoredModel
from splitinfer.segment_runtime.wire import DTYPES, WEIGHT_DTYPE_NAMES

BlockKey = tuple[str, str, int]
"""Model digest, dtype, block: what makes two blocks the same in memory."""


class PrepareError(Exception):
    """A request that is refused, before anything is loaded or after what was loaded is dropped again."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


@dataclass(frozen=True, slots=True)
class Held:
    """What a host holds already: weight bytes of each block, and KV that the largest of its epochs may fill."""

    blocks: Mapping[BlockKey, int]
    budget_bytes: int


def check_request(request: pb.PrepareRequest, model: StoredModel) -> DTypeName:
    """Every field of a request against the model. Returns the dtype's name. Raises PrepareError."""
    dtype = WEIGHT_DTYPE_NAMES.get(request.dtype)
    if dtype is None:
        raise PrepareError("dtype", f"{request.dtype} is not a dtype")
    if not request.ranges:
        raise PrepareError("ranges", "a host of the plan has at least one range")
    if not 0 < request.max_context_tokens <= request.kv_budget_tokens:
        raise PrepareError(
            "max_context_tokens",
            f"{request.max_context_tokens} must be at least 1 and at most kv_budget_tokens, "
            f"{request.kv_budget_tokens}",
        )
    blocks = model.index.blocks
    for i, spec in enumerate(request.ranges):
        if not spec.start < spec.stop <= blocks:
            raise PrepareError(
                f"ranges[{i}]", f"[{spec.start}:{spec.stop}) is not within the {blocks} blocks"
            )
        if spec.hop >= request.hops:
            raise PrepareError(f"ranges[{i}].hop", f"{spec.hop}, the plan has {request.hops} hops")
        if not spec.next:
            raise PrepareError(f"ranges[{i}].next", "the address of the next hop is missing")
    if len({spec.hop for spec in request.ranges}) != len(request.ranges):
        raise PrepareError("ranges", "a hop stands twice")
    return dtype


def check_memory(
    request: pb.PrepareRequest, model: StoredModel, dtype: DTypeName, held: Held, limit_bytes: int, node: str
) -> None:
    """The union of the weights of all epochs, and the KV of the larger: the older is freed at commit.

    Raises:
        PrepareError: with the numbers.
    """
    needed = {**held.blocks, **blocks_of(request, model, dtype)}
    per_token = model.index.kv_bytes_per_token(DTYPES[activation_of(dtype)][1].itemsize)
    rows = sum(spec.stop - spec.start for spec in request.ranges)
    kv = max(held.budget_bytes, rows * per_token * request.kv_budget_tokens)
    weights = sum(needed.values())
    if weights + kv > limit_bytes:
        raise PrepareError(
            "ranges",
            f"{node} would need {weights + kv} bytes ({weights} of weights for {len(needed)} blocks, {kv} "
            f"of KV), its limit is {limit_bytes}; give it fewer blocks, or lower kv_budget_tokens",
        )


def blocks_of(request: pb.PrepareRequest, model: StoredModel, dtype: DTypeName) -> dict[BlockKey, int]:
    """Weight bytes of each block that a request names."""
    wanted = {block for spec in request.ranges for block in range(spec.start, spec.stop)}
    return {
        (model.digest, dtype, b): weight_bytes(model.index.block_values(b), dtype) for b in sorted(wanted)
    }
