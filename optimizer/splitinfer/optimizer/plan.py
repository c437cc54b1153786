"""Plan: which node runs which blocks, as an immutable value with an epoch and a content hash.

Errors
------
PlanError                 a plan that cannot be served; `field` names what is wrong, as a path
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from splitinfer.optimizer.dtypes import FEW_BITS, ActivationName, DTypeName, activation_of, weight_bytes
from splitinfer.optimizer.privacy import Privacy

__all__ = [
    "FEW_BITS", "ActivationName", "DTypeName", "ModelRef", "Plan", "PlanError", "Segment", "activation_of",
    "check_privacy", "check_segments", "cuts_at", "equal_cuts", "weight_bytes",
]  # fmt: skip
"""With the dtypes, which a plan names."""


class PlanError(Exception):
    """A plan that breaks a rule of its own, before any host is asked.

    Not a ValueError: pydantic would wrap that, and with it hide the field's path.

    Attributes:
        field: path of the offending field, e.g. ``segments[2].start``.
        message: what is wrong and what would mend it.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class Segment(BaseModel):
    """A contiguous range of blocks ``[start, stop)`` on one node."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: Annotated[str, Field(min_length=1, max_length=253)]
    start: Annotated[int, Field(ge=0)]
    stop: Annotated[int, Field(ge=0)]

    @property
    def blocks(self) -> int:
        """How many blocks the segment holds."""
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.node}[{self.start}:{self.stop}]"


class ModelRef(BaseModel):
    """The model a plan is for: its served name and the digest of its store index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=253)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Plan(BaseModel):
    """Ordered segments that cover every block of one model exactly once.

    The entry (embed and head) is not a segment: it is always the pod that coordinates the plan.
    One node may appear in several segments (the U-shape).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: Annotated[int, Field(ge=1, lt=2**63)]
    model: ModelRef
    dtype: DTypeName = "float32"
    blocks: Annotated[int, Field(ge=1)]
    segments: tuple[Segment, ...]
    max_context_tokens: Annotated[int, Field(ge=1)]
    kv_budget_tokens: Annotated[int, Field(ge=1)]
    """Tokens of KV cache that every segment keeps room for: concurrency x maximum context."""
    privacy: Privacy = Privacy()
    """Holds for every repair of the plan too."""

    def model_post_init(self, _context: object) -> None:
        """The rules that no single field has. Raises PlanError."""
        check_segments(self.segments, self.blocks)
        check_privacy(self.segments, self.privacy)
        if self.kv_budget_tokens < self.max_context_tokens:
            raise PlanError(
                "kv_budget_tokens",
                f"{self.kv_budget_tokens} is below max_context_tokens={self.max_context_tokens}: "
                "not even one session would fit; raise the budget or lower the context",
            )

    @property
    def digest(self) -> str:
        """sha256 over everything but the epoch: equal digests serve alike."""
        content = self.model_dump(mode="json", exclude={"epoch"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def activation(self) -> ActivationName:
        """The dtype of hidden states and KV."""
        return activation_of(self.dtype)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes of the plan, each once, in the order of their first segment."""
        return tuple(dict.fromkeys(segment.node for segment in self.segments))

    def ranges_of(self, node: str) -> tuple[tuple[int, Segment], ...]:
        """``(hop, segment)`` of every segment on ``node``; hops count from 0 along the chain."""
        return tuple((hop, s) for hop, s in enumerate(self.segments) if s.node == node)

    def with_epoch(self, epoch: int) -> Plan:
        """The same cut and placement under another epoch."""
        return self.model_copy(update={"epoch": epoch})


def check_segments(segments: Sequence[Segment], blocks: int) -> None:
    """Raise `PlanError` unless the segments cover ``[0, blocks)`` once, in order, without an empty one."""
    if not segments:
        raise PlanError("segments", f"no segment; {blocks} blocks need at least one")
    expected = 0
    for index, segment in enumerate(segments):
        where = f"segments[{index}]"
        if segment.stop <= segment.start:
            raise PlanError(where, f"{segment} is empty; a segment holds at least one block (start < stop)")
        if segment.start < expected:
            raise PlanError(
                f"{where}.start",
                f"{segment} overlaps block {segment.start}, already covered up to {expected}",
            )
        if segment.start > expected:
            raise PlanError(
                f"{where}.start", f"blocks [{expected}:{segment.start}) are missing before {segment}"
            )
        expected = segment.stop
    if expected > blocks:
        raise PlanError(
            f"segments[{len(segments) - 1}].stop",
            f"block {expected - 1} is past the last one: the model's {blocks} blocks are 0 to {blocks - 1}",
        )
    if expected < blocks:
        raise PlanError(
            f"segments[{len(segments) - 1}].stop", f"blocks [{expected}:{blocks}) are missing at the end"
        )


def check_privacy(segments: Sequence[Segment], privacy: Privacy) -> None:
    """Raise `PlanError` where a sensitive block lies on a node that is not trusted."""
    for index, segment in enumerate(segments):
        for block in range(segment.start, segment.stop):
            if not privacy.may(segment.node, block):
                raise PlanError(
                    f"segments[{index}].node",
                    f"block {block} is sensitive and {segment.node} is not trusted; trusted are: "
                    f"{', '.join(privacy.trusted_nodes) or 'none'}",
                )


def equal_cuts(blocks: int, nodes: Sequence[str]) -> tuple[Segment, ...]:
    """One segment per node, sizes differing by at most one block, larger ones first.

    Raises:
        PlanError: no node, or more nodes than blocks.
    """
    if not nodes:
        raise PlanError("nodes", "no node to place blocks on")
    if len(nodes) > blocks:
        raise PlanError("nodes", f"{len(nodes)} nodes for {blocks} blocks: use at most {blocks}")
    size, larger = divmod(blocks, len(nodes))
    segments, start = [], 0
    for index, node in enumerate(nodes):
        stop = start + size + (index < larger)
        segments.append(Segment(node=node, start=start, stop=stop))
        start = stop
    return tuple(segments)


def cuts_at(blocks: int, cuts: Iterable[int], nodes: Sequence[str]) -> tuple[Segment, ...]:
    """Segments between explicit cuts: ``cuts_at(30, [10, 20], [a, b, c])`` gives 0-10, 10-20, 20-30.

    Raises:
        PlanError: a cut outside ``(0, blocks)``, cuts out of order, or not one node per segment.
    """
    cuts = tuple(cuts)
    for cut in cuts:
        if blocks == 1:
            raise PlanError("cuts", f"cut {cut}: a model of one block cannot be cut")
        if not 0 < cut < blocks:
            raise PlanError(
                "cuts", f"cut {cut} is outside 1..{blocks - 1}, the cuts of a model of {blocks} blocks"
            )
    for before, after in pairwise(cuts):
        if after <= before:
            raise PlanError("cuts", f"{after} after {before}: cuts must grow, each above the one before")
    edges = [0, *cuts, blocks]
    if len(nodes) != len(edges) - 1:
        raise PlanError("nodes", f"{len(edges) - 1} segments need as many nodes, got {len(nodes)}")
    segments = tuple(
        Segment(node=node, start=start, stop=stop)
        for node, start, stop in zip(nodes, edges, edges[1:], strict=False)
    )
    check_segments(segments, blocks)
    return segments
