"""What Prometheus answers: samples with their times, or a typed error; never a wrong number."""

from __future__ import annotations

import json
import math
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from splitinfer.profiler import answers
from splitinfer.profiler.answers import AnswerError, Sample, Span, parse_samples, parse_time


def matrix(*series: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An answer to a range selector."""
    return {"status": "success", "data": {"resultType": "matrix", "result": list(series)}, **more}


def series(name: str | None = "m", values: Any = ((10.5, "1"),), **labels: str) -> dict[str, Any]:
    """One of its series."""
    named = {} if name is None else {"__name__": name}
    return {"metric": {**named, **labels}, "values": [list(value) for value in values]}


def body(answer: object) -> bytes:
    """As it comes over HTTP."""
    return json.dumps(answer).encode()


def test_the_newest_sample_of_each_series_counts_with_the_time_of_its_scrape() -> None:
    """In whatever order they come; what later versions of Prometheus may add is passed over."""
    answer = matrix(
        series("a", [(12, "3"), (10.25, "1e3")], node="x"),
        series("a", [(11, "NaN")], node="y"),
        series("b", [(11, "+Inf")]),
        warnings=["w"],
    )
    first, second, third = parse_samples(body(answer))
    assert first == Sample("a", {"node": "x"}, 3.0, 12.0, Span(2, 10.25, 1000.0, fell=True))
    assert (second.labels, math.isnan(second.value)) == ({"node": "y"}, True)
    assert (third.name, third.value) == ("b", math.inf)
    assert parse_samples(body(matrix())) == ()


@pytest.mark.parametrize(
    ("values", "span"),
    [
        ([(1, "5")], None),
        ([(3, "9"), (1, "5"), (2, "5")], Span(3, 1.0, 5.0, fell=False)),
        ([(1, "5"), (2, "4"), (3, "9")], Span(3, 1.0, 5.0, fell=True)),
        ([(1, "5"), (2, "NaN"), (3, "9")], Span(3, 1.0, 5.0, fell=True)),
    ],
)
def test_of_older_samples_it_is_kept_how_a_counter_grew(values: object, span: Span | None) -> None:
    """From the oldest on; a counter that fell in between, or was no number, tells nothing of the range."""
    assert parse_samples(body(matrix(series(values=values))))[0].span == span


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "Invalid JSON"),
        (b"<html>504 Gateway Time-out</html>", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (body([1]), "answer: Input should be an object"),
        (body({}), "status: Field required"),
        (body({"status": "odd"}), "status: "),
        (body({"status": "success"}), "data: Field required"),
        (
            body({"status": "error", "errorType": "bad_data", "error": "parse error"}),
            "Prometheus refuses the query: bad_data: parse error",
        ),
        (body({"status": "success", "data": {"resultType": "vector", "result": []}}), "data.resultType"),
        (body(matrix(series(), series())), "a series is there twice"),
        (body(matrix(series(None, node="x"))), "a series has no name"),
        (body(matrix(series(values=[]))), "data.result.0.values"),
        (body(matrix(series(values=[(1, 2.0)]))), "data.result.0.values.0.1"),
        (body(matrix(series(values=[(1, "1_000")]))), "a value is not a number"),
        (body(matrix(series(values=[(1, " 1")]))), "a value is not a number"),
        (body(matrix(series(values=[(1, "one")]))), "a value is not a number"),
        (body(matrix(series(values=[(-1, "1")]))), "data.result.0.values.0.0"),
        (body(matrix(series(values=[("1", "1")]))), "data.result.0.values.0.0"),
        (body(matrix(series())).replace(b"10.5", b"NaN"), ""),
        (body(matrix(series()))[:-9], "Invalid JSON"),
    ],
)
def test_what_is_no_such_answer_is_refused_and_says_where(answer: bytes, said: str) -> None:
    """Malformed, partial, of another kind, ambiguous: an error of one line, without what it was about."""
    with pytest.raises(AnswerError) as caught:
        parse_samples(answer)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_series_than_anybody_asked_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of any size is bounded before it is taken apart; see also the reader's limit in bytes."""
    assert answers.MAX_SERIES >= 2 * 1000 * 100
    many = matrix(*({"metric": {}, "values": [[1, "1"]]} for _ in range(answers.MAX_SERIES + 1)))
    with pytest.raises(AnswerError, match="at most"):
        parse_samples(body(many))


def test_the_time_is_prometheus_own() -> None:
    """And nothing else that a scalar may be."""
    scalar = {"status": "success", "data": {"resultType": "scalar", "result": [5, "1700000000.25"]}}
    assert parse_time(body(scalar)) == 1700000000.25
    for wrong in ("NaN", "-1", "+Inf"):
        with pytest.raises(AnswerError, match="not a time"):
            parse_time(body({**scalar, "data": {"resultType": "scalar", "result": [5, wrong]}}))
    with pytest.raises(AnswerError, match="resultType"):
        parse_time(body(matrix()))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
names = st.dictionaries(st.sampled_from(["__name__", "node", "dtype"]), st.text(max_size=5) | anything)
points = st.lists(st.tuples(st.floats() | anything, st.text(max_size=6) | anything), max_size=3)
odd = st.builds(
    lambda result, kind, status: {"status": status, "data": {"resultType": kind, "result": result}},
    st.lists(st.fixed_dictionaries({"metric": names, "values": points}) | anything, max_size=3),
    st.sampled_from(["matrix", "vector", "scalar", "string"]),
    st.sampled_from(["success", "error", ""]),
)


@given(odd | anything)
@example(matrix(series()))
def test_every_answer_gives_well_formed_samples_or_a_typed_error(answer: object) -> None:
    """What comes out was there: its name, its labels, and as value a number that stands in the answer as text."""
    try:
        samples = parse_samples(body(answer))
    except AnswerError:
        return
    assert isinstance(answer, dict)
    given = answer["data"]["result"]
    assert len(samples) == len(given)
    for sample, one in zip(samples, given, strict=True):
        assert {"__name__": sample.name, **sample.labels} == one["metric"]
        texts = {text for at, text in one["values"] if at == sample.at_seconds}
        assert any(str(float(text)) == str(sample.value) for text in texts)
        assert sample.at_seconds == max(at for at, _ in one["values"])


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_a_typed_error_or_an_empty_answer(answer: bytes) -> None:
    """Whatever stands at the other end of the URL."""
    for parse in (parse_samples, parse_time):
        with pytest.raises(AnswerError):
            parse(answer)
