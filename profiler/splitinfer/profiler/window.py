"""What others did on the CPUs over a window of time. Pure: counters come in, with the seconds of a monotonic clock.

Others are all but the hosts that serve here, whose CPU time they tell themselves, this agent, and threads at lower
priority, which give way. While a probe of ours runs the window stands still: nothing of it is counted.

Of the threads that want to run the kernel tells only how many there are, of all kinds. With ``n`` CPUs busy at ordinary
priority, ``l`` at lower priority, ``R`` runnable threads, and a weight ``w`` of the lowest priority:

    N = max(n, R / (1 + l / (n w)))     threads of ordinary priority
    D = N others / n                    of those, not ours: where CPUs are short, CPU time is dealt out per thread

While there are CPUs for all of them, threads of ordinary priority run whenever they want to, and N is n. Where they
compete, ``m`` niced threads get ``m w / N`` of what they get, which with ``R = N + m`` gives the second term. Niced threads
are taken to have the lowest priority; others among them count as more than they are, and N as less, never below n.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LOWEST_WEIGHT = 15 / 1024
"""Of a thread of nice 19 against one of nice 0 (Linux, sched_prio_to_weight)."""
JIFFIES_OFF = 0.1
"""CPUs. Jiffies are counted by ticks, a process's own time exactly: so far apart they may be."""


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Jiffies of all CPUs since the machine started.

    Attributes:
        busy: at ordinary priority. What a hypervisor took is busy.
        niced: at lower priority, which gives way to a host.
        idle: waiting for I/O is idle.
    """

    busy: int
    niced: int
    idle: int


@dataclass(frozen=True, slots=True)
class Counters:
    """One reading.

    Attributes:
        at: seconds of a monotonic clock.
        cpu: of the machine; None where it does not say.
        own_seconds: CPU time of the agent.
    """

    at: float
    cpu: CpuTime | None
    own_seconds: float


@dataclass(frozen=True, slots=True)
class Load:
    """What others do.

    Attributes:
        busy_ratio: share of the machine's CPUs, 0 to 1.
        runnable: their threads that ran or wanted to; None where the kernel does not count.
    """

    busy_ratio: float
    runnable: float | None


@dataclass(frozen=True, slots=True)
class Window:
    """Differences so far, and the reading that the open piece began with.

    Attributes:
        began: None while it stands still.
        seconds: that were watched.
        broken: a counter went back or was not there, so that nothing can be told.
        samples: readings of runnable threads, and their sum; a reading that failed breaks only them.
    """

    began: Counters | None
    seconds: float = 0.0
    busy: int = 0
    niced: int = 0
    idle: int = 0
    own_seconds: float = 0.0
    broken: bool = False
    samples: int = 0
    runnable_sum: float = 0.0
    uncounted: bool = False

    def sampled(self, runnable: int | None) -> Window:
        """With one more reading of the runnable threads; none is taken while it stands still."""
        if self.began is None:
            return self
        if runnable is None:
            return replace(self, uncounted=True)
        return replace(self, samples=self.samples + 1, runnable_sum=self.runnable_sum + runnable)

    def held(self, now: Counters) -> Window:
        """Standing still from ``now`` on."""
        before = self.began
        if before is None:
            return self
        if before.cpu is None or now.cpu is None:
            return replace(self, began=None, broken=True)
        busy, niced = now.cpu.busy - before.cpu.busy, now.cpu.niced - before.cpu.niced
        # Kernels let the time spent waiting for I/O go back by a little.
        idle = max(0, now.cpu.idle - before.cpu.idle)
        return replace(
            self,
            began=None,
            seconds=self.seconds + now.at - before.at,
            busy=self.busy + busy,
            niced=self.niced + niced,
            idle=self.idle + idle,
            own_seconds=self.own_seconds + now.own_seconds - before.own_seconds,
            broken=self.broken or busy < 0 or niced < 0,
        )

    def resumed(self, now: Counters) -> Window:
        """Watching again from ``now`` on."""
        return replace(self, began=now)


def load_of(window: Window, cpus: int | None, serving_cpus: float | None) -> Load | None:
    """What others did in a window that stands still.

    Args:
        window: that was watched.
        cpus: of the machine.
        serving_cpus: that the hosts used on average in about the same time; None where one of them does not say.

    Returns:
        None where it cannot be told, or where what is told does not go together.
    """
    total = window.busy + window.niced + window.idle
    if window.broken or cpus is None or serving_cpus is None or total <= 0 or window.seconds <= 0:
        return None
    ours = serving_cpus + window.own_seconds / window.seconds
    normal = cpus * window.busy / total
    if ours > normal * 1.25 + JIFFIES_OFF:
        return None  # these hosts do not run on this machine
    others = max(0.0, normal - ours)
    ratio = min(1.0, others / cpus)
    if window.uncounted or not window.samples:
        return Load(ratio, None)
    beside_agent = max(others, normal - window.own_seconds / window.seconds)
    if beside_agent <= 0:
        return Load(ratio, 0.0)
    niced = cpus * window.niced / total
    competing = window.runnable_sum / window.samples / (1 + niced / beside_agent / LOWEST_WEIGHT)
    return Load(ratio, max(beside_agent, competing) * others / beside_agent)
