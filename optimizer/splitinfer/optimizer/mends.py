"""Changes that give a plan where there is none, each moved as little as does it, and solved again before it is offered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from splitinfer.optimizer.evaluate import TOLERANCE
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.values import Known

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


Asker = Callable[[Question], bool]
"""Whether a question has a plan."""


def with_constraints(question: Question, **changes: object) -> Question:
    """Other constraints, all else as it is."""
    return replace(question, constraints=question.constraints.model_copy(update=changes))


def with_memory(question: Question, rooms: dict[str, float]) -> Question:
    """Free memory of some nodes, in bytes."""
    nodes = tuple(
        node.model_copy(update={"free_memory_bytes": Known(value=rooms[node.name], source="what if")})
        if node.name in rooms and isinstance(node.free_memory_bytes, Known)
        else node
        for node in question.snapshot.nodes
    )
    return replace(question, snapshot=question.snapshot.model_copy(update={"nodes": nodes}))


def with_trust(question: Question, names: set[str]) -> Question:
    """Some nodes more are trusted."""
    nodes = tuple(
        node.model_copy(update={"trusted": True}) if node.name in names else node
        for node in question.snapshot.nodes
    )
    return replace(question, snapshot=question.snapshot.model_copy(update={"nodes": nodes}))


def block_words(blocks: tuple[int, ...]) -> str:
    """Blocks as people write them: ``0-2, 7``."""
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
            return feasible(with_memory(q, {name: free + more * MEGA}))

        more = _least(0, best[0] - 1 if best else 1 << 20, works)
        if more is not None:
            best = (more, node.name, free)
    if best is not None:
        more, name, free = best
        yield Mend(
            f"nodes[{name}].freeMemoryBytes",
            f"free {more:,} MB on {name}",
            with_memory(q, {name: free + more * MEGA}),
        )


def _mend_privacy(q: Question, feasible: Asker) -> Iterator[Mend]:
    """One more node trusted."""
    untrusted = [node.name for node in q.snapshot.nodes if not node.trusted]
    works = [name for name in untrusted[:MOST_TRIED] if feasible(with_trust(q, {name}))]
    if works:
        others = f" (or {', '.join(works[1:4])})" if len(works) > 1 else ""
        yield Mend("privacy.trustedNodes", f"label {works[0]}{others} trusted", with_trust(q, {works[0]}))


def _mend_segments(q: Question, feasible: Asker) -> Iterator[Mend]:
    now = q.constraints.max_segments
    most = _least(now, len(q.graph.blocks), lambda n: feasible(with_constraints(q, max_segments=n)))
    if most is not None:
        yield Mend(
            "placement.maxSegments",
            f"raise maxSegments from {now} to {most}",
            with_constraints(q, max_segments=most),
        )


def _mend_limit(field: str, name: str, words: str) -> Callable[[Question, Asker], Iterator[Mend]]:
    def mend(q: Question, feasible: Asker) -> Iterator[Mend]:
        limit = float(getattr(q.constraints, name))
        now = int(limit * 1000 * (1 + TOLERANCE))
        most = _least(now, 1 << 22, lambda n: feasible(with_constraints(q, **{name: n / 1000})))
        if most is not None:
            yield Mend(
                field,
                f"allow {words} of {most} ms instead of {now}",
                with_constraints(q, **{name: most / 1000}),
            )

    return mend


def _mend_pins(q: Question, feasible: Asker) -> Iterator[Mend]:
    pins = q.constraints.pins
    for index, pin in enumerate(pins):
        changed = with_constraints(q, pins=(*pins[:index], *pins[index + 1 :]))
        if feasible(changed):
            blocks = block_words(tuple(range(pin.start, pin.stop)))
            yield Mend(f"placement.pins[{index}]", f"do not pin {blocks} to {pin.node}", changed)
            return


def _mend_forbidden(q: Question, feasible: Asker) -> Iterator[Mend]:
    names = q.constraints.forbidden_nodes
    for name in names[:MOST_TRIED]:
        changed = with_constraints(q, forbidden_nodes=tuple(other for other in names if other != name))
        if feasible(changed):
            yield Mend("placement.nodes", f"allow node {name}", changed)
            return


def _mend_bandwidth(q: Question, feasible: Asker) -> Iterator[Mend]:
    """The largest minimum that has a plan is the bandwidth of some link."""
    readings = [link.bandwidth_bytes_per_second for link in q.snapshot.links]
    readings += [link.bandwidth_bytes_per_second for link in q.snapshot.site_links]
    for access in q.snapshot.access:  # which limits the links that nobody measured
        readings += [access.upload_bytes_per_second, access.download_bytes_per_second]
    known = {reading.value for reading in readings if isinstance(reading, Known)}
    now = q.constraints.minimum_bandwidth_bytes_per_second
    lower = sorted((value for value in known if value < now), reverse=True)

    def made(index: int) -> Question:
        return with_constraints(q, minimum_bandwidth_bytes_per_second=lower[index])

    index = _least(-1, len(lower) - 1, lambda n: feasible(made(n)))
    if index is not None:
        text = f"allow links of {lower[index] / MEGA:,.2f} MB/s instead of {now / MEGA:,.2f}"
        yield Mend("minimumBandwidthBytesPerSecond", text, made(index))


def _mend_entry(q: Question, feasible: Asker) -> Iterator[Mend]:
    changed = with_constraints(q, entry_node=None)
    if feasible(changed):
        yield Mend("entryNode", "let the entry run elsewhere", changed)


def _mend_cuts(q: Question, feasible: Asker) -> Iterator[Mend]:
    changed = with_constraints(q, fixed_cuts=None)
    if feasible(changed):
        yield Mend("fixedCuts", "let the cuts move", changed)


MENDS: dict[str, Callable[[Question, Asker], Iterator[Mend]]] = {
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
