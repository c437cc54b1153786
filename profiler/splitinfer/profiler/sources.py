"""Where samples come from: a Prometheus server. Agents that are asked themselves are in `splitinfer.profiler.agents`.

Every source gives the same samples, with times of one clock that it also tells, so that what is made of them
(`splitinfer.profiler.assembly`) does not know where they come from.

Errors
------
SourceError               nothing was learned; the message says from whom, and why
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from splitinfer.profiler.answers import Sample
from splitinfer.profiler.prometheus import Prometheus, PrometheusError
from splitinfer.profiler.series import LINK_AGE, LINK_BANDWIDTH, LINK_MEDIAN, LINK_P95

OURS = (
    '{__name__=~"splitinfer_(node|probe)_.+"}',
    *(series.name for series in (LINK_AGE, LINK_MEDIAN, LINK_P95, LINK_BANDWIDTH)),
)
"""Links apart, one question for each series: at a thousand nodes they are most of what there is."""
OTHERS = {
    "node_exporter": '{__name__=~"node_memory_MemAvailable_bytes|node_uname_info"}',
    "node_exporter's CPU times": 'node_cpu_seconds_total{mode=~"idle|iowait"}',
    "kube-state-metrics": '{__name__=~"kube_node_(info|labels|status_allocatable)",resource=~"memory|"}',
    "kube-state-metrics' pods": (
        '{__name__=~"kube_pod_(container_resource_requests|status_phase)",'
        'resource=~"memory|",phase=~"Succeeded|Failed|"}'
    ),
    "dcgm": "DCGM_FI_DEV_FB_FREE",
}
"""Series of other exporters, by the name that an error gives them; ``resource=~"memory|"`` lets pass what has no such label."""


class SourceError(Exception):
    """Nothing was learned."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a source knew at one time.

    Attributes:
        samples: the newest of each series.
        now_seconds: the time, by the clock of the samples' own times, to which their ages are told.
        failures: what could not be asked, and why; the rest counts all the same.
    """

    samples: tuple[Sample, ...]
    now_seconds: float
    failures: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """The port."""

    async def gather(self) -> Gathered:
        """Everything that is known now. Raises SourceError."""
        ...


class PrometheusSource:
    """One server.

    All selectors are evaluated at one time of the server's clock, so that no other clock has a part in any age, and none of
    a server that is asked while its clock is set.
    """

    def __init__(self, client: Prometheus, window_seconds: float) -> None:
        """``window_seconds``: how far back samples are asked for; what is older does not exist."""
        self._client = client
        self._window = f"[{max(1, round(window_seconds))}s]"

    async def gather(self) -> Gathered:
        """Ours and the others'. Raises SourceError where ours cannot be had."""
        try:
            now = await self._client.now_seconds()
        except PrometheusError as error:
            raise SourceError(str(error)) from None
        selectors = (*OURS, *OTHERS.values())
        questions = [self._client.samples(selector + self._window, now) for selector in selectors]
        answers = await asyncio.gather(*questions, return_exceptions=True)
        failures: dict[str, str] = {}
        samples: list[Sample] = []
        for name, answer in zip((*(None for _ in OURS), *OTHERS), answers, strict=True):
            if isinstance(answer, PrometheusError):
                if name is None:
                    raise SourceError(str(answer)) from None
                failures[name] = str(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                samples += answer
        return Gathered(tuple(samples), now, failures)
