"""Why the other plans lose: what simpler rules give, and what every node that is not used would cost at least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitinfer.optimizer.answer import Answer
from splitinfer.optimizer.baselines import BASELINES
from splitinfer.optimizer.chunked import ChunkedProblem, located, named
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.stays import cheapest_through
from splitinfer.optimizer.view import solve_backward, solve_forward, view_of

MOST_NODES = 400
"""On larger sites the unused nodes are not gone through."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """Something that was not chosen, and why, in one sentence."""

    name: str
    why: str


def alternatives(question: Question, chosen: Answer) -> tuple[Alternative, ...]:
    """Of a plan: what simpler rules would give, and its unused nodes with the least that a plan with them costs."""
    problems = ChunkedProblem(question)
    (any_length,) = problems.groups(ratio=float("inf"))
    # No plan costs less in this problem's chunks than in its own: what holds for it holds for chains of every length.
    problem = problems.with_chunking(any_length.chunking)
    here = located(problem, chosen.entry, chosen.segments)
    if here is None or chosen.prediction is None:
        return ()
    entry, runs = here
    found, best = [], chosen.prediction.cost
    for name, baseline in BASELINES.items():
        other = baseline(problem, entry)
        if other is None:
            found.append(Alternative(name, "gives no plan: no room, or too many segments"))
            continue
        judged = problems.judged(*named(problem, entry, other))
        assert judged is not None, "it is made of the problem's nodes"
        if judged.broken:
            found.append(Alternative(name, f"breaks {', '.join(judged.broken)}"))
        elif judged.cost > best * (1 + 1e-9):
            found.append(
                Alternative(
                    name,
                    f"costs {_more(judged.cost, best)}: TPOT {judged.tpot_seconds * 1000:.1f} ms against "
                    f"{chosen.prediction.tpot_seconds * 1000:.1f}",
                )
            )
        else:
            found.append(Alternative(name, "costs the same"))
    if problem.node_count <= MOST_NODES:
        view = view_of(problem, entry)
        chain = solve_forward(view, view.cost, view.hop_cost)
        inside = chain.inside.copy()
        rest = solve_backward(view, view.cost, view.hop_cost)
        through = np.empty(problem.node_count)
        cheapest_through(inside, rest.begin_in, view.groups.of, view.groups.latest, through)
        through += view.entry_cost
        used = {node for node, _, _ in runs}
        found += [
            Alternative(problem.nodes[node], _unused(float(through[node]), best))
            for node in range(problem.node_count)
            if node not in used
        ]
    found += [Alternative(lost.node, f"not eligible: {lost.reason}") for lost in problem.ineligible]
    return tuple(found)


def _unused(least: float, best: float) -> str:
    if least == float("inf"):
        return "no block fits there, or no known link leads there and back"
    if least > best:
        return f"any plan through it costs at least {_more(least, best)}"
    return "plans through it were searched, and none is cheaper"


def _more(cost: float, best: float) -> str:
    return f"{100 * (cost / best - 1):.1f}% more" if best > 0 else f"{cost:.3g}"
