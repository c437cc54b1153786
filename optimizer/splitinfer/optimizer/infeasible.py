"""Why there is no plan, and the nearest change that gives one: computed, and each solved again before it is offered.

An *irreducible* set of clashing constraints is found by a deletion filter (Chinneck and Dravnieks, 1991): constraints are lifted
one after the other, and one that can be lifted while the rest still clashes is left out for good. What remains clashes, and no
part of it does. Then each constraint of the set is moved as little as makes a plan possible, by bisection, and a change
is offered only after the question with it was solved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from splitinfer.optimizer.budget import Budget
from splitinfer.optimizer.compile import Question, compile_problem, entry_bytes
from splitinfer.optimizer.evaluate import TOLERANCE
from splitinfer.optimizer.solver import solve
from splitinfer.optimizer.values import Known

PLENTY = 2**50
"""Bytes: a node's memory when memory is lifted."""
MOST_TRIED = 40
"""Nodes that a change is tried on, one by one."""
MEGA = 1_000_000


@dataclass(frozen=True, slots=True)
class Mend:
    """A change that gives a plan.

    Attributes:
        field: what to change, in the words of the manifest or of the snapshot.
        text: the change, for a person.
        question: with the change made; it has a plan.
    """

    field: str
    text: str
    question: Question


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why there is no plan.

    Attributes:
        clash: the constraints that clash, in words; none can be left out.
        names: the same by name.
        mends: changes that give a plan, each verified; nearest first.
        complete: False where the budget ended before everything was tried.
    """

    clash: tuple[str, ...]
    names: tuple[str, ...]
    mends: tuple[Mend, ...]
    complete: bool = True

    @property
    def sentence(self) -> str:
        """For status and stderr."""
        mends = "; or ".join(mend.text for mend in self.mends[:4])
        end = f": {mends}" if mends else ""
        return f"No plan: {', and '.join(self.clash)}{end}."


class _Undecided(Exception):
    """The budget ended before a question was answered."""


def explain(question: Question, budget: Budget | None = None) -> Explanation:
    """Why a question that has no plan has none, and what gives it one.

    Args:
        question: one that `solve` found infeasible.
        budget: for each question that is tried along the way.
    """
    feasible = _asker(budget)
    names = [name for name in _LIFTS if _present(question, name)]
    try:
        if not feasible(_lifted(question, names)):
            return Explanation((_nothing_left(question),), ("capacity",), ())
        for name in list(names):
            rest = [other for other in names if other != name]
            # Lifted are all but `rest`: those that were left out before, and this one.
            if not feasible(_lifted(question, [n for n in _LIFTS if n not in rest])):
                names = rest
    except _Undecided:
        return Explanation(("the budget ended before the reason was found",), (), (), complete=False)
    mends: list[Mend] = []
    complete = True
    for name in reversed(names):
        try:
            # One by one, so that those found before the budget ends are kept.
            mends.extend(_MENDS[name](question, feasible))
        except _Undecided:
            complete = False
    words = tuple(_words(question, name) for name in reversed(names))
    return Explanation(words, tuple(reversed(names)), tuple(mends), complete)


Asker = Callable[[Question], bool]


def _asker(budget: Budget | None) -> Asker:
    def feasible(question: Question) -> bool:
        solution = solve(compile_problem(question), budget, any_plan=True)
        if solution.status == "unknown":
            raise _Undecided
        return solution.evaluation is not None

    return feasible


def _with(question: Question, **changes: object) -> Question:
    return replace(question, constraints=question.constraints.model_copy(update=changes))


def _with_memory(question: Question, rooms: dict[str, float]) -> Question:
    nodes = tuple(
        node.model_copy(update={"free_memory_bytes": Known(value=rooms[node.name], source="what if")})
        if node.name in rooms and isinstance(node.free_memory_bytes, Known)
        else node
        for node in question.snapshot.nodes
    )
    return replace(question, snapshot=question.snapshot.model_copy(update={"nodes": nodes}))


def _with_trust(question: Question, names: set[str]) -> Question:
    nodes = tuple(
        node.model_copy(update={"trusted": True}) if node.name in names else node
        for node in question.snapshot.nodes
    )
    return replace(question, snapshot=question.snapshot.model_copy(update={"nodes": nodes}))


# In the order in which they are tried to be left out: what people part with last comes last.
_LIFTS: dict[str, Callable[[Question], Question]] = {
    "minimum_bandwidth": lambda q: _with(q, minimum_bandwidth_bytes_per_second=0.0),
    "fixed_cuts": lambda q: _with(q, fixed_cuts=None),
    "ttft_limit": lambda q: _with(q, ttft_limit_seconds=None),
    "tpot_limit": lambda q: _with(q, tpot_limit_seconds=None),
    "max_segments": lambda q: _with(q, max_segments=len(q.graph.blocks)),
    "forbidden_nodes": lambda q: _with(q, forbidden_nodes=()),
    "pins": lambda q: _with(q, pins=()),
    "entry_node": lambda q: _with(q, entry_node=None),
    "privacy": lambda q: _with_trust(q, {node.name for node in q.snapshot.nodes}),
    "memory": lambda q: _with_memory(q, {node.name: float(PLENTY) for node in q.snapshot.nodes}),
}


def _present(question: Question, name: str) -> bool:
    """Whether a constraint is there at all."""
    c = question.constraints
    return {
        "minimum_bandwidth": c.minimum_bandwidth_bytes_per_second > 0,
        "fixed_cuts": c.fixed_cuts is not None,
        "ttft_limit": c.ttft_limit_seconds is not None,
        "tpot_limit": c.tpot_limit_seconds is not None,
        "max_segments": c.max_segments < len(question.graph.blocks),
        "forbidden_nodes": bool(c.forbidden_nodes),
        "pins": bool(c.pins),
        "entry_node": c.entry_node is not None,
        "privacy": any(not node.trusted for node in question.snapshot.nodes),
        "memory": True,
    }[name]


def _lifted(question: Question, names: list[str]) -> Question:
    for name in names:
        question = _LIFTS[name](question)
    return question


def _nothing_left(question: Question) -> str:
    problem = compile_problem(_lifted(question, list(_LIFTS)))
    if problem.node_count == 0:
        first = problem.ineligible[0]
        more = f" (and {len(problem.ineligible) - 1} more)" if len(problem.ineligible) > 1 else ""
        return f"no node is known well enough: {first.node} is {first.reason}{more}"
    return "no chain of known links leads through the model, whatever the constraints"


def _words(question: Question, name: str) -> str:
    c, q = question.constraints, question
    blocks = q.graph.blocks
    need = max(q.graph.bytes_of(u) + q.workload.kv_budget_tokens * u.kv_bytes_per_token for u in blocks)
    match name:
        case "memory":
            total = sum(
                q.graph.bytes_of(u) + q.workload.kv_budget_tokens * u.kv_bytes_per_token for u in blocks
            )
            return (
                f"memory (a block takes up to {need / MEGA:,.0f} MB with the KV of {q.workload.concurrency} sessions of "
                f"{q.workload.max_context_tokens} tokens, all blocks {total / MEGA:,.0f} MB, the entry "
                f"{entry_bytes(q.graph, q.workload) / MEGA:,.0f} MB)"
            )
        case "privacy":
            trusted = [node.name for node in q.snapshot.nodes if node.trusted]
            what = (
                f"blocks {_ranges(c.sensitive_blocks)} are sensitive" if c.sensitive_blocks else "the entry"
            )
            return f"privacy ({what}, trusted are {', '.join(trusted[:5]) or 'no nodes'})"
        case "max_segments":
            return f"at most {c.max_segments} segments"
        case "ttft_limit":
            return f"TTFT of at most {(c.ttft_limit_seconds or 0) * 1000:.0f} ms"
        case "tpot_limit":
            return f"TPOT of at most {(c.tpot_limit_seconds or 0) * 1000:.0f} ms"
        case "pins":
            pins = ", ".join(f"{_ranges(tuple(range(p.start, p.stop)))} on {p.node}" for p in c.pins[:4])
            return f"pins ({pins})"
        case "forbidden_nodes":
            return f"forbidden nodes ({', '.join(c.forbidden_nodes[:5])})"
        case "entry_node":
            return f"the entry on {c.entry_node}"
        case "minimum_bandwidth":
            return f"links of at least {c.minimum_bandwidth_bytes_per_second / MEGA:,.1f} MB/s"
        case _:
            return f"cuts fixed at {list(c.fixed_cuts or ())}"


def _ranges(blocks: tuple[int, ...]) -> str:
    parts: list[list[int]] = []
    for block in sorted(set(blocks)):
        if parts and parts[-1][1] == block - 1:
            parts[-1][1] = block
        else:
            parts.append([block, block])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _least(low: int, high: int, works: Callable[[int], bool]) -> int | None:
    """The least whole number in ``(low, high]`` that works, if ``high`` does; what works stays so above it."""
    if high <= low or not works(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if works(middle):
            high = middle
        else:
            low = middle
    return high


def _mend_memory(q: Question, feasible: Asker) -> Iterator[Mend]:
    yield from _less_work(q, feasible)
    yield from _more_room(q, feasible)


def _less_work(q: Question, feasible: Asker) -> Iterator[Mend]:
    """Lower concurrency, or a shorter context: the largest that has a plan."""
    work = q.workload
    limits = (
        ("workload.concurrency", "concurrency", work.concurrency, 1, "lower concurrency"),
        (
            "workload.maxContextTokens",
            "max_context_tokens",
            work.max_context_tokens,
            min(work.max_context_tokens, work.prompt_tokens + work.output_tokens),
            "lower maxContextTokens",
        ),
    )
    for field, name, value, least, words in limits:

        def works(less: int, name: str = name, value: int = value) -> bool:
            return feasible(_with_work(q, name, value - less))

        less = _least(0, value - least, works)
        if less is not None:
            yield Mend(field, f"{words} from {value} to {value - less}", _with_work(q, name, value - less))


def _with_work(q: Question, name: str, value: int) -> Question:
    return replace(q, workload=q.workload.model_copy(update={name: value}))


def _more_room(q: Question, feasible: Asker) -> Iterator[Mend]:
    """The node on which the fewest megabytes more are enough."""
    best: tuple[int, str, float] | None = None
    for node in sorted(q.snapshot.nodes, key=lambda n: (not n.trusted, n.name))[:MOST_TRIED]:
        if not isinstance(node.free_memory_bytes, Known):
            continue
        free = node.free_memory_bytes.value

        def works(more: int, name: str = node.name, free: float = free) -> bool:
            return feasible(_with_memory(q, {name: free + more * MEGA}))

        more = _least(0, best[0] - 1 if best else 1 << 20, works)
        if more is not None:
            best = (more, node.name, free)
    if best is not None:
        more, name, free = best
        yield Mend(
            f"nodes[{name}].freeMemoryBytes",
            f"free {more:,} MB on {name}",
            _with_memory(q, {name: free + more * MEGA}),
        )


def _mend_privacy(q: Question, feasible: Asker) -> Iterator[Mend]:
    """One more node trusted."""
    untrusted = [node.name for node in q.snapshot.nodes if not node.trusted]
    works = [name for name in untrusted[:MOST_TRIED] if feasible(_with_trust(q, {name}))]
    if works:
        others = f" (or {', '.join(works[1:4])})" if len(works) > 1 else ""
        yield Mend("privacy.trustedNodes", f"label {works[0]}{others} trusted", _with_trust(q, {works[0]}))


def _mend_segments(q: Question, feasible: Asker) -> Iterator[Mend]:
    now = q.constraints.max_segments
    most = _least(now, len(q.graph.blocks), lambda n: feasible(_with(q, max_segments=n)))
    if most is not None:
        yield Mend(
            "placement.maxSegments", f"raise maxSegments from {now} to {most}", _with(q, max_segments=most)
        )


def _mend_limit(field: str, name: str, words: str) -> Callable[[Question, Asker], Iterator[Mend]]:
    def mend(q: Question, feasible: Asker) -> Iterator[Mend]:
        limit = float(getattr(q.constraints, name))
        now = int(limit * 1000 * (1 + TOLERANCE))
        most = _least(now, 1 << 22, lambda n: feasible(_with(q, **{name: n / 1000})))
        if most is not None:
            yield Mend(field, f"allow {words} of {most} ms instead of {now}", _with(q, **{name: most / 1000}))

    return mend


def _mend_pins(q: Question, feasible: Asker) -> Iterator[Mend]:
    pins = q.constraints.pins
    for index, pin in enumerate(pins):
        changed = _with(q, pins=(*pins[:index], *pins[index + 1 :]))
        if feasible(changed):
            blocks = _ranges(tuple(range(pin.start, pin.stop)))
            yield Mend(f"placement.pins[{index}]", f"do not pin {blocks} to {pin.node}", changed)
            return


def _mend_forbidden(q: Question, feasible: Asker) -> Iterator[Mend]:
    names = q.constraints.forbidden_nodes
    for name in names[:MOST_TRIED]:
        changed = _with(q, forbidden_nodes=tuple(other for other in names if other != name))
        if feasible(changed):
            yield Mend("placement.nodes", f"allow node {name}", changed)
            return


def _mend_bandwidth(q: Question, feasible: Asker) -> Iterator[Mend]:
    """The largest minimum that has a plan is the bandwidth of some link."""
    readings = [link.bandwidth_bytes_per_second for link in q.snapshot.links]
    readings += [link.bandwidth_bytes_per_second for link in q.snapshot.site_links]
    known = {reading.value for reading in readings if isinstance(reading, Known)}
    now = q.constraints.minimum_bandwidth_bytes_per_second
    lower = sorted((value for value in known if value < now), reverse=True)

    def made(index: int) -> Question:
        return _with(q, minimum_bandwidth_bytes_per_second=lower[index])

    index = _least(-1, len(lower) - 1, lambda n: feasible(made(n)))
    if index is not None:
        text = f"allow links of {lower[index] / MEGA:,.2f} MB/s instead of {now / MEGA:,.2f}"
        yield Mend("minimumBandwidthBytesPerSecond", text, made(index))


def _mend_entry(q: Question, feasible: Asker) -> Iterator[Mend]:
    changed = _with(q, entry_node=None)
    if feasible(changed):
        yield Mend("entryNode", "let the entry run elsewhere", changed)


def _mend_cuts(q: Question, feasible: Asker) -> Iterator[Mend]:
    changed = _with(q, fixed_cuts=None)
    if feasible(changed):
        yield Mend("fixedCuts", "let the cuts move", changed)


_MENDS: dict[str, Callable[[Question, Asker], Iterator[Mend]]] = {
    "memory": _mend_memory,
    "privacy": _mend_privacy,
    "max_segments": _mend_segments,
    "ttft_limit": _mend_limit("slo.ttftMilliseconds", "ttft_limit_seconds", "a TTFT"),
    "tpot_limit": _mend_limit("slo.tpotMilliseconds", "tpot_limit_seconds", "a TPOT"),
    "pins": _mend_pins,
    "forbidden_nodes": _mend_forbidden,
    "minimum_bandwidth": _mend_bandwidth,
    "entry_node": _mend_entry,
    "fixed_cuts": _mend_cuts,
}
