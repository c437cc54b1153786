"""Sessions that record every row that they get, so that runs can be compared bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.support.chains import Chain

Rows = NDArray[np.float32]


@dataclass
class Story:
    """What one session is fed: a prompt in chunks, then tokens one by one."""

    prompt: Sequence[int]
    generated: Sequence[int]
    chunks: Sequence[int] = ()
    """Sizes of the prompt's chunks; the rest goes in one."""

    @property
    def tokens(self) -> int:
        """Of all of it."""
        return len(self.prompt) + len(self.generated)

    def pieces(self) -> list[tuple[int, Sequence[int], bool]]:
        """(position, tokens, decode) in order."""
        found: list[tuple[int, Sequence[int], bool]] = []
        at = 0
        for size in (*self.chunks, len(self.prompt)):
            piece = self.prompt[at : at + size]
            if piece:
                found.append((at, piece, False))
            at += len(piece)
        return found + [(at + i, [token], True) for i, token in enumerate(self.generated)]


@dataclass
class Played:
    """The rows that a session got, by position."""

    rows: list[Rows] = field(default_factory=list)

    def all(self) -> Rows:
        """``[tokens, hidden]``."""
        return np.concatenate(self.rows)


def play(chain: Chain, story: Story, session: int = 1) -> Rows:
    """A story alone: ``[tokens, hidden]`` behind the last block."""
    return play_together(chain, {session: (0, story)})[session]


def play_together(chain: Chain, stories: dict[int, tuple[int, Story]]) -> dict[int, Rows]:
    """Stories that begin at given steps, each step one batch of all that have something to feed.

    A session that ended is closed at once, so that others move into its place.
    """
    played = {session: Played() for session in stories}
    left = {session: story.pieces() for session, (_, story) in stories.items()}
    opened: set[int] = set()
    step = 0
    while any(left.values()):
        now = [s for s, (begin, _) in stories.items() if begin <= step and left[s]]
        chunks, decode = [], set()
        for session in now:
            if session not in opened:
                chain.open(session, stories[session][1].tokens)
                opened.add(session)
            position, tokens, single = left[session].pop(0)
            chunks.append((session, position, tokens))
            if single:
                decode.add(session)
        step += 1
        if not chunks:
            continue
        out = chain.step(chunks, decode)
        at = 0
        for session, _, tokens in chunks:
            played[session].rows.append(np.array(out[at : at + len(tokens)]))
            at += len(tokens)
            if not left[session]:
                chain.close(session)
    return {session: found.all() for session, found in played.items()}
