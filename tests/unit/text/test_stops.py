"""Stop strings against a naive reference, whatever the increments."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.segment_runtime.text.stops import StopMatcher

UNHURRIED = settings(deadline=None)  # a busy machine is no failure

# Two letters, so that matches, overlaps and near misses are common.
TEXT = st.text("ab", max_size=40)
STOPS = st.lists(st.text("ab", min_size=1, max_size=6), max_size=4)


def naive(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Read the text a character at a time; at the first that completes a stop string, cut it off."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


def held(text: str, stops: list[str]) -> int:
    """Length of the longest end of the text that is the beginning of a stop string."""
    return max((k for stop in stops for k in range(1, len(stop)) if text.endswith(stop[:k])), default=0)


@UNHURRIED
@given(text=TEXT, stops=STOPS, data=st.data())
def test_equals_the_naive_reference_for_any_increments(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    """The same text and the same match, however the text is cut; nothing comes out after the match."""
    matcher, shown, rest = StopMatcher(stops), "", text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        shown += matcher.push(rest[:size])
        rest = rest[size:]
        read = text[: len(text) - len(rest)]
        expected, match = naive(read, stops)
        # Exactly what may begin a stop string is held back: nothing early, nothing late.
        assert (expected if match else read[: len(read) - held(read, stops)]) == shown
    shown += matcher.flush()
    assert naive(text, stops) == (shown, matcher.matched)


def test_empty_increments_change_nothing() -> None:
    """Half a character gives an empty increment: the held text stays held."""
    matcher = StopMatcher(["\n\n"])
    assert [matcher.push(part) for part in ("a\n", "", "\n", "b")] == ["a", "", "", ""]
    assert matcher.matched == "\n\n"


def test_a_long_repetitive_stop_string_is_linear() -> None:
    """A stop string of 20,000 letters and a text that nearly matches everywhere: no quadratic work."""
    steps = 0

    class Counting(StopMatcher):
        def _advance(self, character: str) -> None:
            nonlocal steps
            steps += 1
            super()._advance(character)

    matcher = Counting(["a" * 20_000 + "b"])
    shown = "".join(matcher.push("a" * 100) for _ in range(400))
    assert steps == 40_000
    assert len(shown) == 20_000
