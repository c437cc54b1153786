"""What the processes that serve on a node say of themselves: CPU time, and the steps that a host computed.

Errors
------
ServingError              it does not answer in time, or says nothing that can be used; the message names the address
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from splitinfer.profiler.series import HOST_SERIES, PHASES
from splitinfer.profiler.steps import Phase, StepTotals

TIMEOUT_SECONDS = 2.0
MAX_ANSWER_BYTES = 8 << 20
CPU_SECONDS, STARTED = "process_cpu_seconds_total", "process_start_time_seconds"
"""As every official client library of Prometheus exports them."""
_HOST = "splitinfer_host_"
_NAMES = tuple(series.name for series in HOST_SERIES)


class ServingError(Exception):
    """Nothing was learned from a process."""


@dataclass(frozen=True, slots=True)
class Served:
    """One process at one time.

    Attributes:
        at: seconds of a monotonic clock.
        started: when the process began, as it says; another value is another process.
        cpu_seconds: since it began.
        steps: per phase; None for a process that is no host, such as the entry.
    """

    at: float
    started: float | None
    cpu_seconds: float
    steps: Mapping[Phase, StepTotals] | None


@dataclass(frozen=True, slots=True)
class Activity:
    """What all serving processes of the node did between two rounds.

    Attributes:
        cpus: used on average.
        busy_ratio: share of the time that hosts computed, all added.
        steps: per phase, of all hosts.
    """

    cpus: float
    busy_ratio: float
    steps: Mapping[Phase, StepTotals]


def parse_served(text: str, at: float) -> Served:
    """What an exporter says. Raises ServingError."""
    found: dict[str, float] = {}
    sums: dict[str, dict[str, float]] = {}
    host = False
    try:
        for family in text_string_to_metric_families(text):
            host = host or family.name.startswith(_HOST)
            for sample in family.samples:
                if sample.name in (CPU_SECONDS, STARTED):
                    _once(found, sample.name, float(sample.value))
                elif sample.name in _NAMES:
                    _once(
                        sums.setdefault(sample.name, {}), sample.labels.get("phase", ""), float(sample.value)
                    )
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        # The parser is written for what exporters say; of anything else it breaks in one of these ways.
        raise ServingError(f"not the text format of Prometheus: {error}"[:200]) from None
    if CPU_SECONDS not in found:
        raise ServingError(f"no {CPU_SECONDS}")
    return Served(at, found.get(STARTED), found[CPU_SECONDS], _steps(sums) if host else None)


def _once(values: dict[str, float], name: str, value: float) -> None:
    if not math.isfinite(value) or value < 0:
        raise ServingError(f"{name}: {value} is no sum")
    if name in values:
        raise ServingError(f"{name} is there twice")
    values[name] = value


def _steps(sums: Mapping[str, Mapping[str, float]]) -> Mapping[Phase, StepTotals]:
    totals: dict[Phase, StepTotals] = {}
    for phase in PHASES:
        missing = [name for name in _NAMES if phase not in sums.get(name, {})]
        if missing:
            raise ServingError(f'no {missing[0]}{{phase="{phase}"}}')
        totals["decode" if phase == "decode" else "prefill"] = StepTotals(
            *(sums[name][phase] for name in _NAMES)
        )
    return totals


def activity(
    before: Mapping[str, Served], after: Mapping[str, Served], urls: Sequence[str]
) -> Activity | None:
    """What the processes at ``urls`` did between two rounds; None where one did not answer both times or began anew."""
    cpus = busy = 0.0
    steps: dict[Phase, StepTotals] = {}
    for url in urls:
        then, now = before.get(url), after.get(url)
        if then is None or now is None or now.at <= then.at or then.started != now.started:
            return None
        used = now.cpu_seconds - then.cpu_seconds
        if used < 0 or (then.steps is None) != (now.steps is None):
            return None
        cpus += used / (now.at - then.at)
        for phase, totals in (now.steps or {}).items():
            done = totals.since((then.steps or {})[phase])
            if done is None:
                return None
            busy += done.seconds / (now.at - then.at)
            steps[phase] = done if phase not in steps else steps[phase].plus(done)
    return Activity(cpus, busy, steps)


def client() -> aiohttp.ClientSession:
    """For `scrape`. No proxy of the environment is asked: these are processes of this node."""
    return aiohttp.ClientSession(trust_env=False)


async def scrape(session: aiohttp.ClientSession, url: str) -> str:
    """The metrics of a process. Raises ServingError, which names the address."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS), session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise ServingError(f"{url}: {response.status} instead of metrics")
            body = bytearray()
            async for piece in response.content.iter_chunked(1 << 16):
                body += piece
                if len(body) > MAX_ANSWER_BYTES:
                    raise ServingError(f"{url}: an answer larger than {MAX_ANSWER_BYTES >> 20} MiB")
            return body.decode("utf-8")
    except TimeoutError:
        raise ServingError(f"{url}: no answer in {TIMEOUT_SECONDS:g} s") from None
    except (aiohttp.ClientError, OSError, UnicodeDecodeError, ValueError) as error:
        raise ServingError(f"{url}: {error}"[:300]) from None
