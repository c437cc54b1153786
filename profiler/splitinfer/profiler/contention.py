"""How much of a machine's full speed is left to our threads beside those of others. Pure.

The scheduler shares each CPU fairly among the threads that want to run on it: a machine that others use to 98 % does not
leave only the idle 2 %, because a thread of ours that wakes up takes its turn. Ours stay off one another's CPUs while there
are as many. With ``C`` CPUs, ``D`` threads of others that
run or want to run, on average, and ``T`` threads of ours:

    idle    C - D            what others leave alone
    turns   C T / (max(T, C) + D)    ours in turn with the D / C others of the CPU that each is on
    share   s = min(1, max(idle, turns) / T)

With ``T < C`` this is less than the even share of all CPUs, ``C T / (T + D)``: a step is over before threads are moved to
even out what a CPU more or less has to do. Two busy loops on two CPUs make a step twice as long, not half as long again.

Others with fewer threads than there are idle CPUs cost nothing. What `splitinfer.optimizer.cost` calls background
utilisation ``u`` divides every time by ``1 - u``; it is ``1 - s``. A quota of our own is no matter of sharing:
`splitinfer.profiler.speeds` counts it.
"""

from __future__ import annotations

import math

MAX_UTILISATION = 0.99
"""A node that others use entirely still has a little left: the optimizer's time is divided by what is free."""


def share(machine_cpus: float, runnable: float, threads: int) -> float:
    """Share of its full speed, above 0 and at most 1, that a computation of ``threads`` threads has.

    Args:
        machine_cpus: CPUs that the scheduler deals out, ``C``.
        runnable: threads of others that ran or wanted to run, averaged over a window, ``D``.
        threads: of ours, ``T``, each busy while it computes.

    Raises:
        ValueError: a number that no machine has; the message names it.
    """
    if not 0 < machine_cpus < math.inf:
        raise ValueError(f"machine_cpus: {machine_cpus} is no number of CPUs")
    if not 0 <= runnable < math.inf:
        raise ValueError(f"runnable: {runnable} is no number of threads")
    if threads < 1:
        raise ValueError(f"threads: {threads}: a computation has at least one")
    idle = machine_cpus - runnable
    turns = machine_cpus * threads / (max(threads, machine_cpus) + runnable)
    return min(1.0, max(idle, turns) / threads)
