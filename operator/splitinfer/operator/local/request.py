"""From a manifest and the command line to what shall run: nodes, plan, processes. Pure but for the model's index.

Whatever is wrong is refused here, before a process is started.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from splitinfer.operator.errors import UserError
from splitinfer.operator.local.models import ModelFacts, find_model
from splitinfer.operator.local.placing import Options, context_tokens, given_cuts, local_nodes, solved
from splitinfer.operator.local.support import check_supported
from splitinfer.operator.planning.forecast import Basis
from splitinfer.operator.spec.blocks import format_blocks
from splitinfer.operator.spec.resource import SplitInference
from splitinfer.optimizer.plan import FEW_BITS, ModelRef, Plan
from splitinfer.optimizer.privacy import Privacy

MAX_THREADS = 512
"""What the engines take; a test holds the two together."""


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


def check_request(resource: SplitInference, options: Options) -> ModelFacts:
    """Everything that can be known to be wrong before anything is measured or planned; the model.

    Raises:
        UserError: every field that is wrong or cannot be honoured.
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
    context_tokens(resource, model)
    if options.cuts is not None:
        nodes, segments = given_cuts(options, model.blocks)
        _check_nodes(options, nodes)
        if len(segments) > spec.placement.max_segments:
            raise UserError(
                "spec.placement.maxSegments",
                f"{len(segments)} segments asked for, {spec.placement.max_segments} allowed; "
                "use fewer nodes or raise it",
            )
    elif options.capacity is None:
        _check_nodes(options, local_nodes(resource, options, model.blocks))
    return model


def make_request(resource: SplitInference, options: Options) -> Request:
    """Check everything and plan: as the cuts are given, or else with a capacity snapshot.

    Raises:
        UserError: every field that is wrong or cannot be honoured.
        CommandFailed: with a capacity snapshot, there is no plan.
    """
    model = check_request(resource, options)
    spec = resource.spec
    if options.capacity is None:
        nodes, segments = given_cuts(options, model.blocks)
        privacy, basis = Privacy(), None
    else:
        nodes, segments, privacy, basis = solved(resource, options, options.capacity, model)
        if options.measured:
            nodes = (*nodes, *(n.name for n in options.capacity.nodes if n.name not in nodes))
        _check_nodes(options, nodes)
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
    request = Request(
        model=model,
        plan=plan,
        nodes=nodes,
        engine=options.engine or spec.model.engine,
        device=options.device,
        threads=options.threads,
        memory_limit_bytes=_memory_limit(options, len(nodes)),
        node_engines=options.node_engines,
        basis=basis,
    )
    _check_memory(request)
    return request


def _memory_limit(options: Options, nodes: int) -> int | None:
    """A host's share of this machine."""
    if options.memory_bytes is None:
        return None
    # The solver counts the entry on one of the nodes; else one share is left for it and the rest of the machine.
    return options.memory_bytes // (nodes if options.measured else nodes + 1)


def check_options(resource: SplitInference, options: Options) -> None:
    """Raise UserError for what is wrong whatever the model and the plan are: it is told before anything takes time."""
    check_supported(resource, solved=options.cuts is None)
    if options.threads is not None and not 1 <= options.threads <= MAX_THREADS:
        raise UserError(
            "--threads", f"{options.threads}: a host needs at least 1, and takes at most {MAX_THREADS}"
        )
    if options.nodes is not None and options.nodes < 1:
        raise UserError("--nodes", f"{options.nodes}: at least 1 node runs the blocks")
    if options.cuts is not None and resource.spec.placement.pins:
        raise UserError("--cuts", "spec.placement.pins say where blocks run; remove one of the two")
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


def _check_nodes(options: Options, nodes: Sequence[str]) -> None:
    """Raise UserError for an engine of no node."""
    for node in options.node_engines:
        if node not in nodes:
            raise UserError("--node-engine", f"{node} is not a node; there are: {', '.join(nodes)}")


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
