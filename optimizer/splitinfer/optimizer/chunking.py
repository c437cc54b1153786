"""How a prompt is divided into chunks that follow one another down the chain: one rule, for who serves and who predicts.

A prompt goes in as many chunks as steps may be in flight, so that every segment has one to work on, but in none smaller
than ``least`` tokens (a chunk reads the weights once, however short it is) and none larger than ``most`` (what it keeps
others waiting).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def chunk_tokens(tokens: int, in_flight: int, least: int, most: int) -> int:
    """Tokens of each chunk; the last may have fewer.

    Args:
        tokens: of the prompt, at least one.
        in_flight: steps that may be on their way at a time; the runtime has one per segment.
        least: no chunk is made smaller to have one for every segment.
        most: no chunk is larger.
    """
    parts = max(1, min(in_flight, tokens // least))
    return min(most, max(1, -(-tokens // parts)))


@dataclass(frozen=True, slots=True)
class Chunking:
    """A prompt's chunks.

    Attributes:
        tokens: of a chunk.
        count: of chunks, the last counted by its share: tokens of the prompt over tokens of a chunk, at least 1.
    """

    tokens: int
    count: float


@dataclass(frozen=True, slots=True)
class Group:
    """Chains whose prompts are divided alike, or nearly.

    Attributes:
        chunking: theirs. Where they differ, ``tokens`` of the smallest chunk and ``count`` of the fewest: with those no
            TTFT is predicted longer than with their own.
        least, most: segments.
        exact: whether all have the same.
    """

    chunking: Chunking
    least: int
    most: int
    exact: bool


def groups(of: Callable[[int], Chunking], most_segments: int, ratio: float = 1.35) -> tuple[Group, ...]:
    """Chains of 1 to ``most_segments`` segments by their chunks, at most ``ratio`` apart inside a group.

    Args:
        of: chunks by the number of segments; more segments never have larger ones.
        most_segments: of any chain.
        ratio: of the largest chunk of a group to the smallest.
    """
    found: list[Group] = []
    start = 1
    while start <= most_segments:
        first = last = of(start)
        stop = start
        while stop < most_segments and first.tokens <= ratio * of(stop + 1).tokens:
            stop += 1
            last = of(stop)
        exact = first == last
        found.append(Group(Chunking(last.tokens, first.count), start, stop, exact))
        start = stop + 1
    return tuple(found)
