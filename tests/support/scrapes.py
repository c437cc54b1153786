"""What an agent exports, asked for again until it is as it should be."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Mapping

from tests.support.agents import exported


def scraped(address: str) -> Mapping[str, float]:
    """Everything that it exports now."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return exported(answer.read().decode())


def until(address: str, holds: Callable[[Mapping[str, float]], bool]) -> Mapping[str, float]:
    """The first scrape for which it holds; the test's own time limit is the only one."""
    while not holds(found := scraped(address)):
        time.sleep(0.1)  # between two scrapes: an agent tells nobody when it has measured
    return found
