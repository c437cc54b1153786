"""Where the blocks of a local pipeline run: cuts that are given, or the solver's on a capacity snapshot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from splitinfer.operator.errors import CommandFailed, UserError
from splitinfer.operator.local.models import ModelFacts
from splitinfer.operator.local.support import is_set
from splitinfer.operator.planning.forecast import Basis, traffic_of
from splitinfer.operator.planning.question import make_question
from splitinfer.operator.planning.ready import ready_solver
from splitinfer.operator.spec.blocks import format_blocks
from splitinfer.operator.spec.resource import Pin, SplitInference
from splitinfer.optimizer.answer import answer
from splitinfer.optimizer.budget import Budget
from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.optimizer.infeasible import explain
from splitinfer.optimizer.plan import DTypeName, PlanError, Segment, cuts_at, equal_cuts
from splitinfer.optimizer.privacy import Privacy

DEFAULT_NODES = 3

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """The command line's part; None is "not given", and what is given wins over the manifest."""

    store: Path
    nodes: int | None = None
    cuts: tuple[int, ...] | Literal["equal"] | None = None
    """Given cuts leave nothing to solve; else a plan needs `capacity`."""
    dtype: DTypeName | None = None
    engine: str | None = None
    node_engines: Mapping[str, str] = field(default_factory=dict)
    """Engines of single nodes, over the one for all."""
    device: str = "cpu"
    threads: int | None = None
    memory_bytes: int | None = None
    """Free memory of this machine, shared by the nodes; None where it is not known."""
    capacity: CapacitySnapshot | None = None
    """What nodes and links can do; the solver then decides the cuts, and processes stand for the nodes of the plan."""
    measured: bool = False
    """Whether `capacity` is of this machine: its nodes are those that were asked for, and each gets a process."""
    spread: bool = False
    """Whether each of them shall run something: what a number of nodes means where no manifest says what is wanted."""
    budget: Budget | None = None
    """How long the solver may take."""


def local_nodes(resource: SplitInference, options: Options, blocks: int) -> tuple[str, ...]:
    """Names of the node processes on this machine: those that pins name, then as many as are asked for.

    Raises:
        UserError: fewer than the pins name, or more than can all have blocks.
    """
    pinned = tuple(dict.fromkeys(pin.node for pin in resource.spec.placement.pins))
    wanted = max(len(pinned), min(DEFAULT_NODES, blocks)) if options.nodes is None else options.nodes
    if wanted < len(pinned):
        raise UserError("--nodes", f"{wanted}: spec.placement.pins name {len(pinned)} nodes; allow as many")
    if wanted > blocks:
        raise UserError("--nodes", f"{wanted} nodes for {blocks} blocks; use at most {blocks}")
    others = (name for name in _names(wanted + len(pinned)) if name not in pinned)
    return (*pinned, *others)[:wanted]


def given_cuts(options: Options, blocks: int) -> tuple[tuple[str, ...], tuple[Segment, ...]]:
    """Node processes, and segments as ``--cuts`` has them. Raises UserError."""
    if isinstance(options.cuts, tuple):
        cuts = options.cuts
        count = len(cuts) + 1 if options.nodes is None else options.nodes
        if count < len(cuts) + 1:
            raise UserError(
                "--nodes",
                f"{count} nodes for {len(cuts) + 1} segments; use --nodes {len(cuts) + 1}, or cut less",
            )
        names = _names(count)
        return names, _planned("--cuts", lambda: cuts_at(blocks, cuts, names[: len(cuts) + 1]))
    if options.cuts is None:
        raise ValueError("neither cuts nor capacity: there is nothing to make a plan of")
    names = _names(min(DEFAULT_NODES, blocks) if options.nodes is None else options.nodes)
    return names, _planned("--nodes", lambda: equal_cuts(blocks, names))


def solved(
    resource: SplitInference, options: Options, capacity: CapacitySnapshot, model: ModelFacts
) -> tuple[tuple[str, ...], tuple[Segment, ...], Privacy, Basis]:
    """The solver's plan, and what it was made with. Raises `CommandFailed` with the reason and what gives a plan, where there is none."""
    dtype = options.dtype or resource.spec.model.dtype
    if options.spread:
        resource = _spread(resource, tuple(node.name for node in capacity.nodes), model.blocks)
    question = make_question(resource, model, capacity, context_tokens(resource, model), dtype)
    ready_solver()
    found = answer(question, options.budget)
    if found.prediction is None:
        if found.status == "infeasible":
            raise CommandFailed(explain(question, options.budget).sentence)
        raise CommandFailed("no plan was found in the time given, and none was ruled out")
    privacy = Privacy(
        sensitive_blocks=question.constraints.sensitive_blocks,
        trusted_nodes=tuple(node.name for node in question.snapshot.nodes if node.trusted),
    )
    nodes = tuple(dict.fromkeys(segment.node for segment in found.segments))
    basis = Basis(snapshot=question.snapshot, entry=found.entry, traffic=traffic_of(question.workload))
    return nodes, found.segments, privacy, basis


def _spread(resource: SplitInference, nodes: tuple[str, ...], blocks: int) -> SplitInference:
    """Pins that leave no node without blocks: the middle of each one's equal share stays with it."""
    middles = [
        (segment.start + (segment.stop - segment.start) // 2, segment.node)
        for segment in equal_cuts(blocks, nodes)
    ]
    pins = tuple(Pin(blocks=format_blocks(at, at + 1), node=node) for at, node in middles)
    placement = resource.spec.placement.model_copy(update={"pins": pins})
    return resource.model_copy(update={"spec": resource.spec.model_copy(update={"placement": placement})})


def _planned(field: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except (PlanError, ValueError) as error:
        what = error.message if isinstance(error, PlanError) else f"{error}"
        raise UserError(field, what) from None


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"node-{index}" for index in range(count))


def context_tokens(resource: SplitInference, model: ModelFacts) -> int:
    """The longest context: as asked, as the model allows. Raises UserError."""
    wanted = resource.spec.workload.max_context_tokens
    if wanted <= model.max_context_tokens:
        return wanted
    if is_set(resource.spec, "workload.maxContextTokens"):
        raise UserError(
            "spec.workload.maxContextTokens",
            f"{wanted} is above the {model.max_context_tokens} that {model.name} was made for; lower it",
        )
    return model.max_context_tokens
