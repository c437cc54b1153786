"""Keep, relocate, re-split or refuse: one solver with the cuts fixed or free, and what leaving the plan costs.

The running plan is judged on the new snapshot, and two questions are solved: with its cuts (relocate) and with free cuts
(re-split). Both know what moving costs, so a plan that moves two blocks beats one that moves twenty for the same gain.

    gain = cost(keep) - cost(option without its move)            per second of the horizon
    move = alpha move_seconds / horizon                          the same unit
    act  if  gain - move > minimum_gain x cost(keep), for hold_seconds on end, and cooldown_seconds after the last change

A plan that breaks a hard constraint is left at once, whatever it costs; if there is nowhere to go, the decision is refuse.
Time and history come in as values: nothing here reads a clock or remembers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from splitinfer.optimizer.answer import Prediction, in_names, predicted
from splitinfer.optimizer.budget import Budget
from splitinfer.optimizer.chunked import ChunkedProblem, located, solve_chunked
from splitinfer.optimizer.evaluate import Evaluation
from splitinfer.optimizer.plan import Segment
from splitinfer.optimizer.problem import Problem
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.values import Fraction, NonNegative, Value
from splitinfer.optimizer.wanted import Constraints, RunningPlan

Action = Literal["keep", "relocate", "re-split", "refuse"]


class Policy(Value):
    """When a plan may change."""

    cooldown_seconds: NonNegative = 60.0
    """Least time between two changes."""
    minimum_gain: Fraction = 0.1
    """Net gain that a change must bring, as a fraction of what keeping costs."""
    hold_seconds: NonNegative = 10.0
    """How long a change must have paid without a break: noise does not last."""


class History(Value):
    """What decisions before this one left behind."""

    changed_at_seconds: Annotated[float, Field(ge=0)] | None = None
    better_since_seconds: Annotated[float, Field(ge=0)] | None = None
    """Since when a change has paid without a break."""


class Drift(Value):
    """What is observed of the running plan; absent is not known."""

    tpot_p95_seconds: NonNegative | None = None
    ttft_p95_seconds: NonNegative | None = None
    tpot_slo_seconds: Annotated[float, Field(gt=0)] | None = None
    ttft_slo_seconds: Annotated[float, Field(gt=0)] | None = None

    @property
    def missed(self) -> str:
        """Which objective is missed, in words; empty if none is known to be."""
        for name, seen, slo in (
            ("TPOT", self.tpot_p95_seconds, self.tpot_slo_seconds),
            ("TTFT", self.ttft_p95_seconds, self.ttft_slo_seconds),
        ):
            if seen is not None and slo is not None and seen > slo:
                return f"p95 {name} is {seen * 1000:.0f} ms, the objective {slo * 1000:.0f} ms"
        return ""


@dataclass(frozen=True, slots=True)
class Option:
    """One thing that could be done.

    Attributes:
        action: keep, relocate or re-split.
        entry, segments, prediction: the plan.
        gain: cost saved against keeping, the move not counted; infinite where the running plan may not be kept.
        move: what moving costs, in the same unit.
        weight_bytes, kv_bytes: bytes that move; ``kv_bytes`` is copied, or replayed where that is faster.
        move_seconds: time to bring them, while the old plan serves.
        stall_seconds: time that no token comes.
        bound: no plan of this kind costs less, its move counted.
    """

    action: Action
    entry: str
    segments: tuple[Segment, ...]
    prediction: Prediction
    gain: float
    move: float
    weight_bytes: int
    kv_bytes: int
    move_seconds: float
    stall_seconds: float
    bound: float

    @property
    def net(self) -> float:
        """What is left of the gain."""
        return self.gain - self.move


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, why in one sentence, what else there was, and the history for the next time."""

    action: Action
    sentence: str
    chosen: Option | None
    options: tuple[Option, ...]
    history: History
    broken: tuple[str, ...] = ()


def decide(
    question: Question,
    drift: Drift,
    policy: Policy,
    history: History,
    now_seconds: float,
    budget: Budget | None = None,
) -> Decision:
    """What to do with the plan that runs (``question.running``) at ``now_seconds``.

    Args:
        question: with the running plan and the snapshot of now.
        drift: what is observed.
        policy: margins.
        history: what the last decision gave.
        now_seconds: seconds since the epoch; it also ages the snapshot.
        budget: for each of the two questions.
    """
    running = question.running
    if running is None:
        raise ValueError("question.running: there is no plan to decide about; solve the question instead")
    question = replace(question, now_seconds=now_seconds)
    problems = ChunkedProblem(question)
    problem = problems.of(len(running.segments))
    kept = problems.judged(running.entry, running.segments)
    broken = _broken(problem, running, kept)
    base = kept.cost if kept is not None and not broken else float("inf")
    options = _options(problems, running, base, budget)
    if broken:
        return _forced(broken, options, history, now_seconds)
    assert kept is not None
    keep = _option("keep", problem, question, running, running.entry, running.segments, kept, base, kept.cost)
    return _weighed(keep, options, drift, policy, history, now_seconds)


def cooling(history: History, policy: Policy, now_seconds: float) -> float:
    """Seconds of cooldown left; a clock that went backwards does not prolong it beyond its length."""
    if history.changed_at_seconds is None:
        return 0.0
    left = history.changed_at_seconds + policy.cooldown_seconds - now_seconds
    return min(max(0.0, left), policy.cooldown_seconds)


def holding(history: History, policy: Policy, now_seconds: float) -> float:
    """Seconds that a change must go on paying before it is made."""
    if history.better_since_seconds is None:
        return policy.hold_seconds
    return max(0.0, min(history.better_since_seconds, now_seconds) + policy.hold_seconds - now_seconds)


def _broken(problem: Problem, running: RunningPlan, kept: Evaluation | None) -> tuple[str, ...]:
    if kept is not None:
        return tuple(_BROKEN.get(name, name) for name in kept.broken)
    reasons = {lost.node: lost.reason for lost in problem.ineligible}
    nodes = dict.fromkeys([running.entry, *(segment.node for segment in running.segments)])
    gone = [f"{n}: {reasons.get(n, 'gone')}" for n in nodes if n not in problem.nodes]
    return tuple(gone) or (f"{running.entry}: may not hold the entry any more (trust or room)",)


_BROKEN = {
    "placement": "a block is where it must not be (trust or a pin)",
    "memory": "a node has less room than the plan takes",
    "links": "a link of the chain is gone or too slow",
    "max_segments": "it has more segments than allowed",
    "tpot": "its TPOT is over the hard limit",
    "ttft": "its TTFT is over the hard limit",
    "fixed_cuts": "it is cut elsewhere than asked",
}


def _options(
    problems: ChunkedProblem, running: RunningPlan, base: float, budget: Budget | None
) -> tuple[Option, ...]:
    """The best relocation and the best re-split, as far as there are any that differ from keeping."""
    question = problems.question
    hints = ((running.entry, running.segments),)
    options = []
    same_cuts = question.constraints.model_copy(update={"fixed_cuts": running.cuts})
    tries: tuple[tuple[Action, Constraints], ...] = (
        ("relocate", same_cuts),
        ("re-split", question.constraints),
    )
    for action, constraints in tries:
        asked = problems
        if constraints is not question.constraints:
            asked = ChunkedProblem(replace(question, constraints=constraints))
        here, solution = solve_chunked(asked, budget, hints)
        if solution.evaluation is None:
            continue
        named = in_names(here, solution)
        if (named.entry, named.segments) == (running.entry, running.segments):
            continue
        if action == "re-split" and tuple(s.start for s in named.segments[1:]) == running.cuts:
            continue  # the best plan has the same cuts: it is the relocation
        options.append(
            _option(
                action,
                here,
                question,
                running,
                named.entry,
                named.segments,
                solution.evaluation,
                base,
                solution.bound,
            )
        )
    return tuple(options)


def _option(
    action: Action,
    problem: Problem,
    question: Question,
    running: RunningPlan,
    entry: str,
    segments: tuple[Segment, ...],
    found: Evaluation,
    base: float,
    bound: float,
) -> Option:
    move = question.weights.latency * found.move_seconds / question.weights.horizon_seconds
    where = {b: s.node for s in running.segments for b in range(s.start, s.stop)}
    blocks = question.graph.blocks
    moved = [b for s in segments for b in range(s.start, s.stop) if where.get(b) != s.node]
    units = [blocks[b] for b in moved]
    units += [question.graph.embed, question.graph.head] if entry != running.entry else []
    runs = located(problem, entry, segments)
    assert runs is not None
    return Option(
        action=action,
        entry=entry,
        segments=segments,
        prediction=predicted(problem, runs[1], found),
        gain=base - (found.cost - move) if base < float("inf") else float("inf"),
        move=move,
        weight_bytes=sum(question.graph.bytes_of(unit) for unit in units),
        kv_bytes=sum(blocks[b].kv_bytes_per_token for b in moved) * running.live_tokens,
        move_seconds=found.move_seconds,
        stall_seconds=running.stall_seconds if action != "keep" else 0.0,
        bound=bound,
    )


def _forced(
    broken: tuple[str, ...], options: tuple[Option, ...], history: History, now_seconds: float
) -> Decision:
    """The running plan may not go on: the cheapest way out, now."""
    why = "; ".join(broken)
    if not options:
        sentence = f"The running plan may not go on ({why}) and no other plan keeps the constraints."
        return Decision("refuse", sentence, None, (), history, broken)
    chosen = min(options, key=lambda o: (o.prediction.cost, o.action == "re-split"))
    sentence = f"{_verb(chosen)} at once, since the running plan may not go on: {why}. {_numbers(chosen)}"
    after = History(changed_at_seconds=now_seconds, better_since_seconds=None)
    return Decision(chosen.action, sentence, chosen, options, after, broken)


def _weighed(
    keep: Option,
    options: tuple[Option, ...],
    drift: Drift,
    policy: Policy,
    history: History,
    now_seconds: float,
) -> Decision:
    base = keep.prediction.cost
    best = max(options, key=lambda o: (o.net, o.action == "relocate"), default=None)
    everything = (keep, *options)
    missed = f" {drift.missed[:1].upper()}{drift.missed[1:]}." if drift.missed else ""
    quiet = history.model_copy(update={"better_since_seconds": None})
    if best is None:
        return Decision("keep", f"Keep: no other plan is better.{missed}", keep, everything, quiet)
    # An objective that is missed is reason enough for any change that pays; else it must pay by the margin.
    margin = 0.0 if drift.missed else policy.minimum_gain * base
    if best.net <= margin:
        sentence = (
            f"Keep: the best change ({best.action}) would gain {_percent(best.gain, base)} and cost "
            f"{_percent(best.move, base)} of what keeping costs; {_percent(margin, base)} net is asked for.{missed}"
        )
        return Decision("keep", sentence, keep, everything, quiet)
    since = history.better_since_seconds
    since = now_seconds if since is None else min(since, now_seconds)
    waiting = history.model_copy(update={"better_since_seconds": since})
    if (left := cooling(history, policy, now_seconds)) > 0:
        sentence = f"Keep: {best.action} would pay, but the last change is too recent; {left:.0f} s of cooldown left."
        return Decision("keep", sentence, keep, everything, waiting)
    if (left := holding(waiting, policy, now_seconds)) > 0:
        sentence = f"Keep: {best.action} would pay; it is done if it still does in {left:.0f} s."
        return Decision("keep", sentence, keep, everything, waiting)
    after = History(changed_at_seconds=now_seconds, better_since_seconds=None)
    sentence = (
        f"{_verb(best)}: it gains {_percent(best.gain, base)} and costs {_percent(best.move, base)} over the "
        f"horizon.{missed} {_numbers(best)}"
    )
    return Decision(best.action, sentence, best, everything, after)


def _verb(option: Option) -> str:
    chain = ", ".join(f"{s.node} {s.start}-{s.stop - 1}" for s in option.segments)
    return f"{'Relocate' if option.action == 'relocate' else 'Re-split'} to {chain}"


def _numbers(option: Option) -> str:
    return (
        f"Predicted TPOT {option.prediction.tpot_seconds * 1000:.1f} ms; {option.weight_bytes / 1e6:,.0f} MB of weights and "
        f"{option.kv_bytes / 1e6:,.1f} MB of KV move in {option.move_seconds:.1f} s, stall {option.stall_seconds * 1000:.0f} ms."
    )


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole else f"{part:.3g}"
