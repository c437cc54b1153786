"""From token events to what a client sees of one choice: sans-I/O."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from splitinfer.segment_runtime.entry.generate import FinishReason, TokenEvent
from splitinfer.segment_runtime.text.detokeniser import Detokeniser
from splitinfer.segment_runtime.text.stops import StopMatcher


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A token whose text, or the beginning of it, has been shown.

    Attributes:
        event: as it was generated.
        offset: where its text begins in the text of the choice, in characters.
    """

    event: TokenEvent
    offset: int


@dataclass(frozen=True, slots=True)
class Increment:
    """What one token event adds to a choice."""

    text: str
    tokens: tuple[ShownToken, ...] = ()
    finish: FinishReason | None = None


class ChoiceText:
    """Builds the text of one choice.

    A token is shown together with the first of its characters, so that a stream's logprobs are those of the text
    beside them; a token whose text is cut off by a stop string is never shown, nor is the stop token.
    """

    def __init__(self, detokeniser: Detokeniser, stops: StopMatcher) -> None:
        """Start a choice."""
        self._detokeniser = detokeniser
        self._stops = stops
        self._decoded = 0  # characters given to the matcher
        self._shown = 0  # characters that came out of it
        self._waiting: deque[ShownToken] = deque()
        self.generated = 0  # tokens, the stop token and those behind a stop string's begin included

    def push(self, event: TokenEvent) -> Increment:
        """Take the next event. After an increment with ``finish`` there is no other."""
        self.generated += 1
        text = ""
        if event.finish != "stop":
            self._waiting.append(ShownToken(event, self._decoded))
            text = self._match(self._detokeniser.push(event.token))
        if event.finish is not None and self._stops.matched is None:
            text += self._match(self._detokeniser.flush())
            if self._stops.matched is None:
                text += self._stops.flush()
        self._shown += len(text)
        matched = self._stops.matched is not None
        finish: FinishReason | None = "stop" if matched else event.finish
        return Increment(text, tuple(self._released(everything=finish is not None and not matched)), finish)

    def _match(self, text: str) -> str:
        self._decoded += len(text)
        return self._stops.push(text)

    def _released(self, *, everything: bool) -> list[ShownToken]:
        released = []
        while self._waiting and (everything or self._waiting[0].offset < self._shown):
            released.append(self._waiting.popleft())
        return released
