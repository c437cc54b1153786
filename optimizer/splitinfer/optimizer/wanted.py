"""What is asked for: workload, constraints, weights, and the plan that runs now with what leaving it costs."""

from __future__ import annotations

from math import ceil
from typing import Annotated

from pydantic import Field

from splitinfer.optimizer.chunking import Chunking, chunk_tokens
from splitinfer.optimizer.plan import PlanError, Segment, check_segments
from splitinfer.optimizer.values import Name, NonNegative, OptimizerInputError, Positive, Value


class Workload(Value):
    """The load that is promised room and that the plan is made for."""

    prompt_tokens: Positive = 256
    output_tokens: Positive = 128
    concurrency: Positive = 4
    max_context_tokens: Positive = 2048
    micro_batches: Positive = 1
    """Micro-batches in flight, k: each carries ``ceil(concurrency / k)`` rows."""
    prefill_chunk_tokens: Positive = 512
    """A prompt goes through the chain in chunks of at most so many tokens."""
    least_chunk_tokens: Positive = 128
    """Chunks are not made smaller than this to have one for every segment."""
    pace_seconds: Annotated[float, Field(gt=0)] = 0.1
    """A token per session each so often: the rate that utilisation is counted at."""
    host_overhead_bytes: Annotated[int, Field(ge=0)] = 0
    """Memory of a host process besides weights and KV, once per node."""
    entry_overhead_bytes: Annotated[int, Field(ge=0)] = 0
    """Memory of the entry besides embed and head."""

    @property
    def rows(self) -> int:
        """Sessions in one decode step."""
        return ceil(self.concurrency / self.micro_batches)

    def chunking(self, segments: int) -> Chunking:
        """Chunks of the typical prompt in a chain of so many segments, when it has the chain to itself."""
        tokens = chunk_tokens(
            self.prompt_tokens, segments, self.least_chunk_tokens, self.prefill_chunk_tokens
        )
        return Chunking(tokens, self.prompt_tokens / tokens)

    @property
    def kv_budget_tokens(self) -> int:
        """Tokens of KV that every block keeps room for."""
        return self.concurrency * self.max_context_tokens

    @property
    def typical_context_tokens(self) -> float:
        """Mean context of a decode step over one typical answer."""
        return self.prompt_tokens + self.output_tokens / 2


class Pin(Value):
    """Blocks ``[start, stop)`` run on ``node``."""

    start: Annotated[int, Field(ge=0)]
    stop: Annotated[int, Field(ge=1)]
    node: Name


class Constraints(Value):
    """What no plan may break."""

    sensitive_blocks: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Blocks that run on trusted nodes or nowhere."""
    pins: tuple[Pin, ...] = ()
    forbidden_nodes: tuple[Name, ...] = ()
    entry_node: Name | None = None
    max_segments: Positive = 8
    minimum_bandwidth_bytes_per_second: NonNegative = 0.0
    """A link below it carries no activations."""
    ttft_limit_seconds: Annotated[float, Field(gt=0)] | None = None
    tpot_limit_seconds: Annotated[float, Field(gt=0)] | None = None
    fixed_cuts: tuple[Positive, ...] | None = None
    """Cut exactly before these blocks, for a relocation; None leaves the cuts free."""

    def model_post_init(self, _context: object) -> None:
        """Pins hold blocks, and none holds a block that another holds. Raises OptimizerInputError."""
        owner: dict[int, tuple[int, str]] = {}
        for index, pin in enumerate(self.pins):
            if pin.stop <= pin.start:
                raise OptimizerInputError(f"pins[{index}].stop", f"[{pin.start}:{pin.stop}) holds no block")
            for block in range(pin.start, pin.stop):
                if block in owner:
                    other, node = owner[block]
                    raise OptimizerInputError(
                        f"pins[{index}]",
                        f"block {block} is pinned to {pin.node} here and to {node} in pins[{other}]; keep one",
                    )
                owner[block] = (index, pin.node)
        if self.fixed_cuts is not None and list(self.fixed_cuts) != sorted(set(self.fixed_cuts)):
            raise OptimizerInputError("fixedCuts", f"{list(self.fixed_cuts)} does not rise")

    def check_against(self, blocks: int, nodes: frozenset[str]) -> None:
        """Raise `OptimizerInputError` where a constraint names a block or a node that is not there."""
        for block in self.sensitive_blocks:
            if block >= blocks:
                raise OptimizerInputError(
                    "sensitiveBlocks", f"no block {block}; the model's {blocks} are 0 to {blocks - 1}"
                )
        for index, pin in enumerate(self.pins):
            if pin.stop > blocks:
                raise OptimizerInputError(
                    f"pins[{index}].stop",
                    f"no block {pin.stop - 1}; the model's {blocks} are 0 to {blocks - 1}",
                )
            if pin.node not in nodes:
                raise OptimizerInputError(
                    f"pins[{index}].node", f"no node {pin.node!r}; there are {_some(nodes)}"
                )
        if self.entry_node is not None and self.entry_node not in nodes:
            raise OptimizerInputError("entryNode", f"no node {self.entry_node!r}; there are {_some(nodes)}")
        for cut in self.fixed_cuts or ():
            if cut >= blocks:
                raise OptimizerInputError("fixedCuts", f"{cut} is past the last block of {blocks}")


class Weights(Value):
    """What a good plan is; see `splitinfer.optimizer.cost` for the sum they make."""

    latency: NonNegative = 100.0
    """Per second of latency per output token."""
    utilisation: NonNegative = 10.0
    """Per node that one second of service takes for one second."""
    exposure: NonNegative = 10.0
    """Per whole sensitive depth on untrusted nodes."""
    horizon_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Seconds over which a move must earn what it costs."""


class RunningPlan(Value):
    """The plan that is served, and what moving away from it would cost."""

    entry: Name
    segments: Annotated[tuple[Segment, ...], Field(min_length=1)]
    live_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens of context that live sessions hold, over all sessions: their KV moves or is replayed."""
    load_bytes_per_second: Annotated[float, Field(gt=0)] = 200e6
    """How fast a host loads weights from its store, as measured when it last did."""
    stall_seconds: NonNegative = 0.05
    """Stall of the commit, as last observed: the last delta of KV and one ring."""

    def model_post_init(self, _context: object) -> None:
        """The segments are a plan. Raises OptimizerInputError."""
        try:
            check_segments(self.segments, self.segments[-1].stop)
        except PlanError as error:
            raise OptimizerInputError(error.field, error.message) from None

    @property
    def cuts(self) -> tuple[int, ...]:
        """Where it is cut."""
        return tuple(segment.start for segment in self.segments[1:])


def _some(names: frozenset[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
