"""Stop strings in a stream of text: sans-I/O, character by character, blind to token borders."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text on until a stop string appears; the stop string and what follows never leave it.

    The match that **ends** first wins, and of those that end together the one that begins first. So the
    answer does not depend on how the text is cut into increments, and nothing waits longer than it must: held
    back is exactly the longest end of the text that is the beginning of a stop string.

    One Knuth-Morris-Pratt automaton per stop string: linear in the text, for long and repetitive stop strings too.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Watch for ``stops``, none of them empty."""
        assert all(stops), "a stop string is empty"
        self._stops = tuple(stops)
        self._failures = tuple(_failure(stop) for stop in self._stops)
        self._states = [0] * len(self._stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that may be shown now. Nothing comes after a match."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        seen = self._held + text
        for at in range(len(self._held), len(seen)):
            self._advance(seen[at])
            full = [stop for stop, state in zip(self._stops, self._states, strict=True) if state == len(stop)]
            if full:
                self.matched, self._held = max(full, key=len), ""
                return seen[: at + 1 - len(self.matched)]
        keep = len(seen) - max(self._states)
        self._held = seen[keep:]
        return seen[:keep]

    def flush(self) -> str:
        """End of the text: what was held back was no stop string after all."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> None:
        for i, (stop, failure) in enumerate(zip(self._stops, self._failures, strict=True)):
            state = self._states[i]
            while state and stop[state] != character:
                state = failure[state]
            self._states[i] = state + 1 if stop[state] == character else 0


def _failure(stop: str) -> list[int]:
    """``[k]``: the longest proper border of the first ``k`` characters."""
    table = [0] * (len(stop) + 1)
    border = 0
    for k in range(1, len(stop)):
        while border and stop[k] != stop[border]:
            border = table[border]
        if stop[k] == stop[border]:
            border += 1
        table[k + 1] = border
    return table
