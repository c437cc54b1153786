"""A question solved for every way in which its prompts may be divided: TTFT depends on how many segments a chain has.

A `Problem` has one division into chunks. With more segments a prompt goes in more and smaller chunks, so each group of
chains (`splitinfer.optimizer.chunking.groups`) is a problem of its own, which allows as many segments as the largest of the
group. What is promised:

- A plan's numbers are those of *its* chunks: it is evaluated with the problem of its own number of segments.
- The bound is one: a problem charges no chain of its group more than its own chunks do. It also admits shorter chains, of
  other groups; that only lowers the bound. The least bound of all groups is at most the cost of any plan.
- Optimal means that the plan's own cost has reached that bound.

A limit on TTFT may let a problem accept a chain that by its own chunks breaks it. The chain is then dropped, and without
another plan the answer is ``unknown``, never ``infeasible``.
"""

from __future__ import annotations

from dataclasses import replace

from splitinfer.optimizer.budget import Budget, Timer
from splitinfer.optimizer.chunking import Chunking, Group, groups
from splitinfer.optimizer.compile import compile_problem
from splitinfer.optimizer.evaluate import Evaluation, Run, evaluate
from splitinfer.optimizer.plan import Segment
from splitinfer.optimizer.problem import Problem
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.solver import EPSILON, Solution, Status, solve, warm_up

Named = tuple[str, tuple[Segment, ...]]
"""A plan by names: the node of the entry, and the segments."""


class ChunkedProblem:
    """The problems of one question, compiled when they are asked for."""

    def __init__(self, question: Question) -> None:
        """Raises nothing; `of` does."""
        self.question = question
        self._compiled: dict[Chunking, Problem] = {}

    def of(self, segments: int) -> Problem:
        """The problem in which a plan of so many segments has its own numbers. Raises OptimizerInputError."""
        return self.with_chunking(self.question.workload.chunking(segments))

    def with_chunking(self, chunking: Chunking) -> Problem:
        """The problem with these chunks. Raises OptimizerInputError."""
        if chunking not in self._compiled:
            self._compiled[chunking] = compile_problem(self.question, chunking)
        return self._compiled[chunking]

    def groups(self, ratio: float = 1.35) -> tuple[Group, ...]:
        """Of the chains that are allowed."""
        cuts = self.question.constraints.fixed_cuts
        most = min(self.question.constraints.max_segments, len(self.question.graph.blocks))
        found = groups(self.question.workload.chunking, most, ratio)
        if cuts is None:
            return found
        # Cut exactly there, a chain has one more segment than cuts; more than are allowed is for the solver to refuse.
        count = min(len(cuts) + 1, most)
        return tuple(group for group in found if group.least <= count <= group.most)

    def judged(self, entry: str, segments: tuple[Segment, ...]) -> Evaluation | None:
        """What a plan by names costs and breaks; None where a node of it takes no part."""
        return judged(self.of(len(segments)), entry, segments)


def judged(problem: Problem, entry: str, segments: tuple[Segment, ...]) -> Evaluation | None:
    """What a plan by names costs and breaks, in the problem's chunks; None where a node of it takes no part."""
    found = located(problem, entry, segments)
    return evaluate(problem, *found) if found else None


def located(
    problem: Problem, entry: str, segments: tuple[Segment, ...]
) -> tuple[int, tuple[Run, ...]] | None:
    """A plan by index; None where a node of it takes no part, or the entry may not be where it is."""
    index = {name: i for i, name in enumerate(problem.nodes)}
    homes = {problem.nodes[node]: e for e, node in enumerate(problem.entries)}
    if entry not in homes or any(segment.node not in index for segment in segments):
        return None
    if segments[-1].stop != problem.block_count:
        return None
    return homes[entry], tuple((index[s.node], s.start, s.stop) for s in segments)


def named(problem: Problem, entry: int, runs: tuple[Run, ...]) -> Named:
    """The way back."""
    p = problem
    return p.nodes[p.entries[entry]], tuple(Segment(node=p.nodes[n], start=a, stop=b) for n, a, b in runs)


def solve_chunked(
    problems: ChunkedProblem,
    budget: Budget | None = None,
    hints: tuple[Named, ...] = (),
    any_plan: bool = False,
) -> tuple[Problem, Solution]:
    """The best plan of all groups, with the problem that it is evaluated with, and a bound on any plan's cost.

    Args:
        problems: of the question.
        budget: how long, for all groups together.
        hints: plans worth trying first.
        any_plan: stop at the first plan.

    Raises:
        OptimizerInputError: a constraint that names what is not there.
    """
    if budget is not None:
        warm_up()
    whole = (budget or Budget()).start()
    best: tuple[Problem, Solution] | None = None
    bound = float("inf")
    found: list[tuple[Problem, Solution]] = []
    left = list(problems.groups())
    plans = list(hints)
    # Longer chains are what a site of many nodes is for; what they give makes the search among the short ones shorter.
    for number, group in enumerate(reversed(left)):
        problem = problems.with_chunking(group.chunking)
        problem = replace(problem, max_segments=min(problem.max_segments, group.most))
        places = [at for plan in plans if (at := located(problem, *plan)) is not None]
        solution = solve(
            problem,
            _share(budget, whole, len(left) - number),
            tuple(places),
            any_plan,
            cutoff=best[1].cost if best else float("inf"),
        )
        bound = min(bound, solution.bound)
        found.append((problem, solution))
        if solution.evaluation is not None:
            plan = named(problem, solution.entry, solution.runs)
            best = _better(best, _own(problems, plan, solution))
            plans.append(plan)
        if any_plan and best is not None:
            break
    return _summed(problems, best, found, bound)


def _share(budget: Budget | None, whole: Timer, groups_left: int) -> Budget | None:
    if budget is None:
        return None
    return replace(budget, seconds=whole.left() / groups_left)


def _own(problems: ChunkedProblem, plan: Named, solution: Solution) -> tuple[Problem, Solution] | None:
    """The plan with its own numbers; None where by those it breaks a constraint."""
    problem = problems.of(len(plan[1]))
    place = located(problem, *plan)
    assert place is not None, "the same nodes take part whatever the chunks"
    evaluation = evaluate(problem, *place)
    if not evaluation.feasible:
        return None
    return problem, replace(solution, entry=place[0], runs=place[1], evaluation=evaluation)


def _better(
    one: tuple[Problem, Solution] | None, other: tuple[Problem, Solution] | None
) -> tuple[Problem, Solution] | None:
    if one is None or other is None:
        return one or other
    return other if other[1].cost < one[1].cost - EPSILON * abs(one[1].cost) else one


def _summed(
    problems: ChunkedProblem,
    best: tuple[Problem, Solution] | None,
    found: list[tuple[Problem, Solution]],
    bound: float,
) -> tuple[Problem, Solution]:
    work: dict[str, int] = {}
    for _, solution in found:
        for kind, amount in solution.work.items():
            work[kind] = work.get(kind, 0) + amount
    if best is None:
        infeasible = all(solution.status == "infeasible" for _, solution in found)
        status: Status = "infeasible" if infeasible else "unknown"
        return problems.of(1), Solution(status, -1, (), None, bound, work)
    problem, solution = best
    bound = min(bound, solution.cost)
    proven = bound >= solution.cost - EPSILON * abs(solution.cost)
    return problem, replace(
        solution,
        status="optimal" if proven else "feasible",
        bound=solution.cost if proven else bound,
        work=work,
        trail=(),
    )
