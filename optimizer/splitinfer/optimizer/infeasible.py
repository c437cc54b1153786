"""Why there is no plan, and the nearest change that gives one: computed, and each solved again before it is offered.

An *irreducible* set of clashing constraints is found by a deletion filter (Chinneck and Dravnieks, 1991): constraints are lifted
one after the other, and one that can be lifted while the rest still clashes is left out for good. What remains clashes, and no
part of it does. Then each constraint of the set is moved as little as makes a plan possible, by bisection, and a change
is offered only after the question with it was solved.

A question may clash twice, as with a TTFT and a TPOT that are each out of reach. Then no single change gives a plan, and
one of each clash is offered together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from splitinfer.optimizer.budget import Budget
from splitinfer.optimizer.chunked import ChunkedProblem, solve_chunked
from splitinfer.optimizer.compile import compile_problem, entry_bytes
from splitinfer.optimizer.mends import (
    MEGA,
    MENDS,
    Asker,
    Mend,
    block_words,
    with_constraints,
    with_memory,
    with_trust,
)
from splitinfer.optimizer.question import Question

PLENTY = 2**50
"""Bytes: a node's memory when memory is lifted."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why there is no plan.

    Attributes:
        clash: the constraints that clash, in words; none can be left out.
        names: the same by name.
        mends: changes that give a plan, each verified; nearest first.
        complete: False where the budget ended before everything was tried.
        also: the words of further clashes, each by itself, where no single change gives a plan.
    """

    clash: tuple[str, ...]
    names: tuple[str, ...]
    mends: tuple[Mend, ...]
    complete: bool = True
    also: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """For status and stderr."""
        mends = "; or ".join(mend.text for mend in self.mends[:4])
        if not mends and not self.complete:
            mends = "no change that gives one was found in the time given"
        end = f": {mends}" if mends else ""
        also = "".join(f"; and by itself {clash}" for clash in self.also)
        return f"No plan: {', and '.join(self.clash)}{also}{end}."


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
        names = _irreducible(question, names, feasible)
    except _Undecided:
        return Explanation(("the budget ended before the reason was found",), (), (), complete=False)
    mends: list[Mend] = []
    complete = True
    for name in reversed(names):
        try:
            # One by one, so that those found before the budget ends are kept.
            mends.extend(MENDS[name](question, feasible))
        except _Undecided:
            complete = False
    words = tuple(_words(question, name) for name in reversed(names))
    also: list[str] = []
    if complete and not mends:
        try:
            further, joint = _together(question, names, feasible)
        except _Undecided:
            complete = False
        else:
            also = [", and ".join(_words(question, n) for n in reversed(clash)) for clash in further]
            mends = [] if joint is None else [joint]
    return Explanation(words, tuple(reversed(names)), tuple(mends), complete, tuple(also))


def _irreducible(question: Question, names: list[str], feasible: Asker) -> list[str]:
    """Of constraints that clash, those that remain when every one that can be lifted is."""
    for name in list(names):
        rest = [other for other in names if other != name]
        # Lifted are all but `rest`: those that were left out before, and this one.
        if not feasible(_lifted(question, [n for n in _LIFTS if n not in rest])):
            names = rest
    return names


def _together(question: Question, first: list[str], feasible: Asker) -> tuple[list[list[str]], Mend | None]:
    """The clashes that remain when ``first`` is lifted, and a change of each that together give a plan, if there are.

    Each change is found with the clashes before it mended and those after it lifted, so that it is as small as those
    before it allow.
    """
    clashes = [first]
    while not feasible(_lifted(question, gone := [name for clash in clashes for name in clash])):
        left = [name for name in _LIFTS if name not in gone and _present(question, name)]
        clashes.append(_irreducible(_lifted(question, gone), left, feasible))
    now = _lifted(question, [name for clash in clashes for name in clash])
    done: list[Mend] = []
    for clash in clashes:
        for name in clash:
            now = _RESTORES[name](now, question)
        if feasible(now):
            continue
        mend = next((m for name in reversed(clash) for m in MENDS[name](now, feasible)), None)
        if mend is None:
            return clashes[1:], None
        done.append(mend)
        now = mend.question
    fields, texts = ", ".join(mend.field for mend in done), ", and ".join(mend.text for mend in done)
    return clashes[1:], Mend(fields, texts, now)


def _asker(budget: Budget | None) -> Asker:
    def feasible(question: Question) -> bool:
        _, solution = solve_chunked(ChunkedProblem(question), budget, any_plan=True)
        if solution.status == "unknown":
            raise _Undecided
        return solution.evaluation is not None

    return feasible


# In the order in which they are tried to be left out: what people part with last comes last.
_LIFTS: dict[str, Callable[[Question], Question]] = {
    "minimum_bandwidth": lambda q: with_constraints(q, minimum_bandwidth_bytes_per_second=0.0),
    "fixed_cuts": lambda q: with_constraints(q, fixed_cuts=None),
    "ttft_limit": lambda q: with_constraints(q, ttft_limit_seconds=None),
    "tpot_limit": lambda q: with_constraints(q, tpot_limit_seconds=None),
    "max_segments": lambda q: with_constraints(q, max_segments=len(q.graph.blocks)),
    "forbidden_nodes": lambda q: with_constraints(q, forbidden_nodes=()),
    "pins": lambda q: with_constraints(q, pins=()),
    "entry_node": lambda q: with_constraints(q, entry_node=None),
    "privacy": lambda q: with_trust(q, {node.name for node in q.snapshot.nodes}),
    "memory": lambda q: with_memory(q, {node.name: float(PLENTY) for node in q.snapshot.nodes}),
}

_FIELDS = {
    "minimum_bandwidth": "minimum_bandwidth_bytes_per_second",
    "ttft_limit": "ttft_limit_seconds",
    "tpot_limit": "tpot_limit_seconds",
}
"""Constraints whose field is called otherwise."""


def _restored(name: str) -> Callable[[Question, Question], Question]:
    """Takes back the lift of a constraint, and nothing else."""
    field = _FIELDS.get(name, name)
    return lambda now, before: with_constraints(now, **{field: getattr(before.constraints, field)})


def _nodes_restored(field: str) -> Callable[[Question, Question], Question]:
    def restore(now: Question, before: Question) -> Question:
        nodes = tuple(
            node.model_copy(update={field: getattr(old, field)})
            for node, old in zip(now.snapshot.nodes, before.snapshot.nodes, strict=True)
        )
        return replace(now, snapshot=now.snapshot.model_copy(update={"nodes": nodes}))

    return restore


_RESTORES: dict[str, Callable[[Question, Question], Question]] = {
    **{name: _restored(name) for name in _LIFTS},
    "privacy": _nodes_restored("trusted"),
    "memory": _nodes_restored("free_memory_bytes"),
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
                f"blocks {block_words(c.sensitive_blocks)} are sensitive"
                if c.sensitive_blocks
                else "the entry"
            )
            return f"privacy ({what}, trusted: {', '.join(trusted[:5]) or 'none'})"
        case "max_segments":
            return f"at most {c.max_segments} segments"
        case "ttft_limit":
            return f"TTFT of at most {(c.ttft_limit_seconds or 0) * 1000:.0f} ms"
        case "tpot_limit":
            return f"TPOT of at most {(c.tpot_limit_seconds or 0) * 1000:.0f} ms"
        case "pins":
            pins = ", ".join(f"{block_words(tuple(range(p.start, p.stop)))} on {p.node}" for p in c.pins[:4])
            return f"pins ({pins})"
        case "forbidden_nodes":
            return f"forbidden nodes ({', '.join(c.forbidden_nodes[:5])})"
        case "entry_node":
            return f"the entry on {c.entry_node}"
        case "minimum_bandwidth":
            return f"links of at least {c.minimum_bandwidth_bytes_per_second / MEGA:,.1f} MB/s"
        case _:
            return f"cuts fixed at {list(c.fixed_cuts or ())}"
