"""From a manifest and the command line to what shall run: nodes, plan, processes. Pure but for the model's index.

Whatever is wrong is refused here, before a process is started.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from splitinfer.operator.errors import CommandFailed, UserError
from splitinfer.operator.local.models import ModelFacts, find_model
from splitinfer.operator.local.support import check_supported, is_set
from splitinfer.operator.planning.forecast import Basis, traffic_of
from splitinfer.operator.planning.question import make_question
from splitinfer.operator.planning.ready import ready_solver
from splitinfer.operator.spec.blocks import format_blocks, parse_blocks
from splitinfer.operator.spec.resource import SplitInference
from splitinfer.optimizer.answer import answer
from splitinfer.optimizer.budget import Budget
from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.optimizer.infeasible import explain
from splitinfer.optimizer.plan import (
    FEW_BITS,
    DTypeName,
    ModelRef,
    Plan,
    PlanError,
    Segment,
    check_segments,
    cuts_at,
    equal_cuts,
)
from splitinfer.optimizer.privacy import Privacy

DEFAULT_NODES = 3
MAX_THREADS = 512
"""What the engines take; a test holds the two together."""
_PINS_MEND = "a local pipeline takes pins that cover every block once, in block order"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """The command line's part; None is "not given", and what is given wins over the manifest."""

    store: Path
    nodes: int | None = None
    cuts: tuple[int, ...] | None = None
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
    budget: Budget | None = None
    """How long the solver may take."""


@dataclass(frozen=True, slots=True)
class Request:
    """What shall run.

    Attributes:
        model: the stored model.
        plan: the wanted cut and placement; its epoch is given when it is sent.
        nodes: names of the node processes, those of the plan first.
        engine: engine of the entry, and of every host that `node_engines` does not name.
        node_engines: engines of single hosts.
        device: device of every host.
        threads: threads of every host and of the entry; None: the usable CPUs, divided by the nodes.
        memory_limit_bytes: what one host may take; None for no limit.
    """

    model: ModelFacts
    plan: Plan
    nodes: tuple[str, ...]
    engine: str
    device: str
    threads: int | None
    memory_limit_bytes: int | None
    node_engines: Mapping[str, str] = field(default_factory=dict)
    basis: Basis | None = None
    """What the plan was made with; None for one that was given."""

    def engine_of(self, node: str) -> str:
        """Engine of one host."""
        return self.node_engines.get(node, self.engine)

    @property
    def converts(self) -> bool:
        """Whether what the processes load is a conversion of the stored weights."""
        return self.plan.dtype in FEW_BITS

    def node_bytes(self, node: str) -> tuple[int, int]:
        """``(weights, KV budget)`` in bytes that the plan puts on a node."""
        segments = [segment for _, segment in self.plan.ranges_of(node)]
        weights = sum(self.model.weight_bytes(s.start, s.stop, self.plan.dtype) for s in segments)
        blocks = sum(segment.blocks for segment in segments)
        return weights, self.model.kv_bytes(blocks, self.plan.kv_budget_tokens, self.plan.dtype)


def make_request(resource: SplitInference, options: Options) -> Request:
    """Check everything and plan.

    Raises:
        UserError: every field that is wrong or cannot be honoured.
        CommandFailed: with a capacity snapshot, there is no plan.
    """
    check_options(resource, options)
    spec = resource.spec
    model = find_model(spec.model.source, options.store, "spec.model.source")
    if spec.model.served_name not in (None, model.name):
        raise UserError(
            "spec.model.servedName",
            f"{spec.model.served_name}: a local pipeline serves a model under its name in the store, {model.name}; "
            f"remove it, or import the model with --name {spec.model.served_name}",
        )
    if options.capacity is None:
        nodes, segments = _place(resource, options, model.blocks)
        privacy, basis = Privacy(), None
    else:
        nodes, segments, privacy, basis = _solve(resource, options, options.capacity, model)
    if len(segments) > spec.placement.max_segments:
        raise UserError(
            "spec.placement.maxSegments",
            f"{len(segments)} segments asked for, {spec.placement.max_segments} allowed; use fewer nodes or raise it",
        )
    context = context_tokens(resource, model)
    plan = Plan(
        epoch=1,
        model=ModelRef(name=model.name, digest=model.digest),
        dtype=options.dtype or spec.model.dtype,
        blocks=model.blocks,
        segments=segments,
        max_context_tokens=context,
        kv_budget_tokens=context * spec.workload.concurrency,
        privacy=privacy,
    )
    engine = options.engine or spec.model.engine
    request = Request(
        model=model,
        plan=plan,
        nodes=nodes,
        engine=engine,
        device=options.device,
        threads=options.threads,
        # One share is left for the entry and everything else on the machine.
        memory_limit_bytes=None if options.memory_bytes is None else options.memory_bytes // (len(nodes) + 1),
        node_engines=options.node_engines,
        basis=basis,
    )
    _check_nodes(request)
    _check_memory(request)
    return request


def check_options(resource: SplitInference, options: Options) -> None:
    """Raise UserError for what is wrong whatever the model and the plan are: it is told before anything takes time."""
    check_supported(resource, capacity=options.capacity is not None)
    if options.threads is not None and not 1 <= options.threads <= MAX_THREADS:
        raise UserError(
            "--threads", f"{options.threads}: a host needs at least 1, and takes at most {MAX_THREADS}"
        )
    if options.nodes is not None and options.nodes < 1:
        raise UserError("--nodes", f"{options.nodes}: at least 1 node runs the blocks")
    for flag, given in (("--nodes", options.nodes), ("--cuts", options.cuts)):
        if given is not None and options.capacity is not None:
            raise UserError(flag, "--capacity leaves nodes and cuts to the solver; remove one of the two")
        if given is not None and resource.spec.placement.pins:
            raise UserError(flag, "spec.placement.pins name nodes and cuts already; remove one of the two")
    model = resource.spec.model
    dtype = options.dtype or model.dtype
    for engine in (options.engine or model.engine, *options.node_engines.values()):
        if engine == "torch" and dtype in FEW_BITS:
            raise UserError(
                "spec.model.dtype", f"{dtype}: the torch engine has no such weights; use engine onnx or auto"
            )
        if engine == "onnx" and dtype in ("bfloat16", "float16"):
            raise UserError(
                "spec.model.dtype",
                f"{dtype}: the onnx engine has float32, int8 and int4; use one, or engine torch",
            )
        if engine == "onnx" and options.device != "cpu":
            raise UserError("--device", f"{options.device}: the onnx engine runs on cpu; use --engine torch")


def _place(
    resource: SplitInference, options: Options, blocks: int
) -> tuple[tuple[str, ...], tuple[Segment, ...]]:
    pins = resource.spec.placement.pins
    if pins:
        ranges = [(pin.node, *parse_blocks(pin.blocks)) for pin in pins]
        pinned = tuple(Segment(node=node, start=start, stop=stop) for node, start, stop in ranges)
        _planned("spec.placement.pins", _PINS_MEND, lambda: check_segments(pinned, blocks))
        return tuple(dict.fromkeys(segment.node for segment in pinned)), pinned
    if options.cuts is not None:
        cuts = options.cuts
        count = len(cuts) + 1 if options.nodes is None else options.nodes
        if count < len(cuts) + 1:
            raise UserError(
                "--nodes",
                f"{count} nodes for {len(cuts) + 1} segments; use --nodes {len(cuts) + 1}, or cut less",
            )
        names = _names(count)
        return names, _planned("--cuts", "", lambda: cuts_at(blocks, cuts, names[: len(cuts) + 1]))
    names = _names(min(DEFAULT_NODES, blocks) if options.nodes is None else options.nodes)
    return names, _planned("--nodes", "", lambda: equal_cuts(blocks, names))


def _solve(
    resource: SplitInference, options: Options, capacity: CapacitySnapshot, model: ModelFacts
) -> tuple[tuple[str, ...], tuple[Segment, ...], Privacy, Basis]:
    """The solver's plan, and what it was made with. Raises `CommandFailed` with the reason and what gives a plan, where there is none."""
    dtype = options.dtype or resource.spec.model.dtype
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


def _planned(field: str, mend: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except (PlanError, ValueError) as error:
        what = error.message if isinstance(error, PlanError) else f"{error}"
        raise UserError(field, f"{what}; {mend}" if mend else what) from None


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


def _check_nodes(request: Request) -> None:
    """Raise UserError for an engine of no node."""
    for node in request.node_engines:
        if node not in request.nodes:
            raise UserError("--node-engine", f"{node} is not a node; there are: {', '.join(request.nodes)}")


def _check_memory(request: Request) -> None:
    limit = request.memory_limit_bytes
    if limit is None:
        return
    for node in request.plan.nodes:
        weights, kv = request.node_bytes(node)
        if weights + kv > limit:
            raise UserError(
                "spec.workload.concurrency",
                f"{node} would hold {weights:,} bytes of weights and {kv:,} of KV cache, and its share of this "
                f"machine's free memory is {limit:,}; lower concurrency, maxContextTokens or the dtype's size",
            )


def table_rows(request: Request) -> Sequence[tuple[str, str, int]]:
    """``(node, blocks, weight bytes)`` of each segment in the order of the chain."""
    return [
        (
            segment.node,
            format_blocks(segment.start, segment.stop),
            request.model.weight_bytes(segment.start, segment.stop, request.plan.dtype),
        )
        for segment in request.plan.segments
    ]
