"""A choice, without a socket: text, tokens and reasons from any sequence of events."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.segment_runtime.api.choice import ChoiceText, Increment
from splitinfer.segment_runtime.entry.generate import TokenEvent
from splitinfer.segment_runtime.text.stops import StopMatcher
from tests.support.tiny_text import tiny_codec

UNHURRIED = settings(deadline=None)  # a busy machine is no failure

# Bytes and short pieces, so that characters are broken and stop strings cross tokens; 0 to 2 are special.
IDS = st.lists(st.integers(0, 300), min_size=1, max_size=30)
STOPS = st.lists(st.text("abé ", min_size=1, max_size=3), max_size=2)


def run(ids: list[int], stops: list[str], finish: str) -> tuple[list[Increment], ChoiceText]:
    """Push events until the choice finishes; the last has ``finish``."""
    choice = ChoiceText(tiny_codec().detokeniser(), StopMatcher(stops))
    increments = []
    for i, token in enumerate(ids):
        last = i == len(ids) - 1
        increments.append(choice.push(TokenEvent(token, finish=finish if last else None)))  # type: ignore[arg-type]
        if increments[-1].finish is not None:
            break
    return increments, choice


@UNHURRIED
@given(ids=IDS, stops=STOPS, finish=st.sampled_from(["stop", "length"]))
def test_text_tokens_and_reason(ids: list[int], stops: list[str], finish: str) -> None:
    """The joined text is the decoding up to the first stop string; each shown token once, in order, where it begins.

    A stop token is no text. A token is shown with its first character, and all of them are when the text was not cut.
    """
    increments, choice = run(ids, stops, finish)
    codec = tiny_codec()
    text_ids = ids[:-1] if finish == "stop" else ids
    reference = StopMatcher(stops)
    whole = codec.decode(text_ids)
    expected = reference.push(whole)
    expected += reference.flush() if reference.matched is None else ""
    text = "".join(part.text for part in increments)
    assert expected == text
    assert increments[-1].finish == ("stop" if reference.matched is not None else finish)
    assert all(part.finish is None for part in increments[:-1])
    assert choice.generated == len(increments)

    shown = [token for part in increments for token in part.tokens]
    assert [token.event.token for token in shown] == text_ids[: len(shown)]
    if reference.matched is None:
        assert len(shown) == len(text_ids)
    seen = 0
    for part in increments:
        # Before the end, a token comes with the text it begins in.
        assert part.finish is not None or all(token.offset < seen + len(part.text) for token in part.tokens)
        seen += len(part.text)
    stream = codec.detokeniser()
    at = 0
    for token in shown:
        assert token.offset == at
        at += len(stream.push(token.event.token))


def test_the_token_of_a_stop_string_counts_and_is_not_shown() -> None:
    """Usage counts what was generated; logprobs show what the text shows."""
    codec = tiny_codec()
    ids = [codec.encode(letter)[0] for letter in "abc"]
    increments, choice = run([*ids, 2], ["c"], "stop")
    assert choice.generated == 3
    assert [token.event.token for part in increments for token in part.tokens] == ids[:2]
    assert [part.text for part in increments] == ["a", "b", ""]
