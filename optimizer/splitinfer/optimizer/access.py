"""A node's own part of the links that nobody measured: its last mile, its access bandwidth, and where it is.

Two nodes of one site are rarely connected alike, so the reading of their sites is not enough for a link between them:

    round trip   that of their sites, else the distance of their positions; and both last miles on top
    bandwidth    the smallest of the sites', the sender's upload and the receiver's download

A position is a network coordinate (Vivaldi; Dabek, Cox, Kaashoek and Morris, SIGCOMM 2004), a last mile its height.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from splitinfer.optimizer.cost import Floats
from splitinfer.optimizer.values import UNKNOWN, Name, OptimizerInputError, Reading, Value

if TYPE_CHECKING:
    from splitinfer.optimizer.question import Question

POSITION_DIMENSIONS = 3


class NodeAccess(Value):
    """What one node adds to its links that nobody measured. A reading that is unknown leaves it without such links."""

    node: Name
    round_trip_seconds: Reading = UNKNOWN
    """Its last mile: what it adds to the round trip of its site or its position. The position is as old."""
    upload_bytes_per_second: Reading = UNKNOWN
    download_bytes_per_second: Reading = UNKNOWN
    position_seconds: (
        Annotated[tuple[float, ...], Field(min_length=POSITION_DIMENSIONS, max_length=POSITION_DIMENSIONS)]
        | None
    ) = None
    """The distance of two positions is a round trip without last miles. None: only the readings of sites count."""


def check_access(access: Sequence[NodeAccess], nodes: set[str]) -> None:
    """Each is of a node of the snapshot, and there once. Raises OptimizerInputError."""
    seen: set[str] = set()
    for index, each in enumerate(access):
        if each.node not in nodes:
            raise OptimizerInputError(f"access[{index}].node", f"no node {each.node!r} in nodes")
        if each.node in seen:
            raise OptimizerInputError(f"access[{index}].node", f"{each.node} is there twice; keep one")
        seen.add(each.node)


@dataclass(frozen=True, slots=True, eq=False)
class AccessArrays:
    """Per node, in the order asked for. A node of which the snapshot says nothing adds nothing and limits nothing.

    Attributes:
        last_mile: [M] seconds.
        upload, download: [M] bytes per second; infinite where nothing is said, 0 where it is unknown.
        position: [M, 3] seconds; NaN where there is none.
        dead: nodes left without unmeasured links, with why.
    """

    last_mile: Floats
    upload: Floats
    download: Floats
    position: Floats
    dead: list[str]


def access_arrays(q: Question, names: Sequence[str]) -> AccessArrays:
    """The access of nodes by name."""
    count, index = len(names), {name: i for i, name in enumerate(names)}
    last_mile, upload, download = np.zeros(count), np.full(count, np.inf), np.full(count, np.inf)
    position, dead = np.full((count, POSITION_DIMENSIONS), np.nan), []
    for each in q.snapshot.access:
        at = index.get(each.node)
        if at is None:
            continue
        readings = (each.round_trip_seconds, each.upload_bytes_per_second, each.download_bytes_per_second)
        values = [q.snapshot.usable(reading, q.now, "link") for reading in readings]
        unusable = [reading for reading, value in zip(readings, values, strict=True) if value is None]
        if unusable:
            why = q.snapshot.why_unusable(unusable[0], q.now, "link")
            dead.append(f"{each.node}, where nobody measured: access unknown: {why}")
        last_mile[at], upload[at], download[at] = [0.0 if value is None else value for value in values]
        if unusable:
            upload[at] = download[at] = 0.0
        elif each.position_seconds is not None:
            position[at] = each.position_seconds
    return AccessArrays(last_mile, upload, download, position, dead)


def distances(position: Floats) -> Floats:
    """``[M, M]`` seconds between positions; infinite where one of the two has none."""
    square = np.zeros((len(position), len(position)))
    for axis in range(
        POSITION_DIMENSIONS
    ):  # one axis at a time: [M, M, 3] at once would be thrice the memory
        square += np.subtract.outer(position[:, axis], position[:, axis]) ** 2
    return np.where(np.isnan(square), np.inf, np.sqrt(square))
