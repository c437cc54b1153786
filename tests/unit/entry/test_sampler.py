"""What the sampler promises, each against an independent naive reading of the same rule."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from splitinfer.segment_runtime.entry import sampler
from splitinfer.segment_runtime.entry.generate import SamplingParams
from splitinfer.segment_runtime.entry.sampler import InvalidLogits, Sampled, sample, uniform

UNHURRIED = settings(deadline=None)  # a busy machine is no failure

# Multiples of 1/8: exact in float32, with many ties.
LOGITS = st.integers(1, 60).flatmap(
    lambda size: arrays(np.float32, size, elements=st.integers(-40, 40).map(lambda eighths: eighths / 8))
)
# uniform(seed, index) for (0, 0), (0, 1), (42, 0), (-1, 7).
PINNED = [0.011546754286331562, 0.21185954403345741, 0.8201981478608876, 0.08715842964014653]
SEEDS = st.integers(-(2**63), 2**63 - 1)


def f32(values: list[float]) -> NDArray[np.float32]:
    """Logits from a list."""
    return np.array(values, np.float32)


def naive_support(logits: NDArray[np.float32], params: SamplingParams) -> dict[int, float]:
    """Token -> probability after temperature, top_k and top_p, by one full sort."""
    order = sorted(range(logits.size), key=lambda i: (-logits[i], i))
    if params.top_k:
        order = order[: params.top_k]
    weights = np.exp((logits[order].astype(np.float64) - logits.max()) / params.temperature)
    total, mass = float(weights.sum()), 0.0
    kept: dict[int, float] = {}
    for token, weight in zip(order, weights, strict=True):
        kept[token] = weight
        mass += weight
        if mass >= params.top_p * total:
            break
    return {token: weight / sum(kept.values()) for token, weight in kept.items()}


def border_is_clear(logits: NDArray[np.float32], params: SamplingParams) -> bool:
    """Whether no prefix mass is so close to top_p that rounding decides."""
    everything = naive_support(logits, SamplingParams(temperature=params.temperature, top_k=params.top_k))
    masses = np.cumsum(list(everything.values()))
    return bool(np.abs(masses - params.top_p).min() > 1e-5)


class TestGreedy:
    """Temperature 0."""

    @UNHURRIED
    @given(logits=LOGITS, seed=SEEDS, index=st.integers(0, 1000))
    def test_takes_the_maximum_and_the_lowest_id_among_equals(
        self, logits: NDArray[np.float32], seed: int, index: int
    ) -> None:
        """Greedy is the first maximum, whatever the seed, the index, top_k and top_p say."""
        params = SamplingParams(temperature=0, seed=seed, top_k=3, top_p=0.5)
        expected = logits.tolist().index(max(logits.tolist()))
        assert expected == sample(logits, params, {}, index).token

    def test_does_not_touch_the_vocabulary_with_exp(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Greedy without logprobs never computes a softmax: no exponential is taken."""
        monkeypatch.setattr(np, "exp", lambda *_, **__: pytest.fail("greedy computed an exponential"))
        assert Sampled(7) == sample(
            np.eye(1, 9, 7, dtype=np.float32)[0], SamplingParams(temperature=0), {}, 0
        )

    def test_a_temperature_below_float32_is_greedy(self) -> None:
        """A temperature of 1e-300 is greedy and not 0/0."""
        assert sample(f32([1, 2]), SamplingParams(temperature=1e-300), {}, 0).token == 1


class TestDraw:
    """Temperature above 0."""

    @UNHURRIED
    @given(
        logits=LOGITS,
        temperature=st.sampled_from([0.25, 0.7, 1.0, 2.0]),
        top_k=st.integers(0, 70),
        top_p=st.floats(0, 1),
        seed=SEEDS,
        index=st.integers(0, 2**32),
    )
    def test_is_the_inverse_cdf_in_id_order_over_the_naive_support(
        self, logits: NDArray[np.float32], temperature: float, top_k: int, top_p: float, seed: int, index: int
    ) -> None:
        """The token is the one whose interval, in id order over the kept tokens, holds the uniform number."""
        params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        assume(top_p == 1 or border_is_clear(logits, params))
        support = naive_support(logits, params)
        ids = sorted(support)
        cdf = np.cumsum([support[i] for i in ids])
        at = uniform(seed, index)
        assume(np.abs(cdf[:-1] - at).min(initial=1) > 1e-5)
        assert ids[int(np.searchsorted(cdf, at))] == sample(logits, params, {}, index).token

    @pytest.mark.parametrize(
        "params",
        [
            SamplingParams(seed=11),
            SamplingParams(seed=12, temperature=0.6),
            SamplingParams(seed=13, top_k=7),
            SamplingParams(seed=14, top_p=0.8),
            SamplingParams(seed=15, temperature=1.5, top_k=20, top_p=0.9),
        ],
        ids=["plain", "temperature", "top_k", "top_p", "all"],
    )
    def test_frequencies_are_the_probabilities(self, params: SamplingParams) -> None:
        """20,000 draws over the indices of one seed pass a chi-square test against the naive distribution."""
        logits = np.random.default_rng(3).standard_normal(40).astype(np.float32) * 2
        draws = 20_000
        counts: Counter[int] = Counter(sample(logits, params, {}, index).token for index in range(draws))
        support: dict[int, float] = naive_support(logits, params)
        assert set(counts) <= set(support)
        common = [i for i, p in support.items() if p * draws >= 5]
        statistic = sum((counts[i] - support[i] * draws) ** 2 / (support[i] * draws) for i in common)
        freedom = max(len(common) - 1, 1)
        # Wilson-Hilferty: the cube root is nearly normal; 4 sigma.
        limit = freedom * (1 - 2 / (9 * freedom) + 4 * (2 / (9 * freedom)) ** 0.5) ** 3
        assert statistic < limit

    def test_is_uniform_across_seeds_at_one_index(self) -> None:
        """Neighbouring seeds at the same index are independent: mean and spread of a uniform."""
        drawn = np.array([uniform(seed, 0) for seed in range(20_000)])
        assert abs(drawn.mean() - 0.5) < 4 * (1 / 12 / drawn.size) ** 0.5
        assert np.histogram(drawn, bins=20, range=(0, 1))[0].min() > 850
        assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 4 / drawn.size**0.5

    @UNHURRIED
    @given(seed=SEEDS, index=st.integers(0, 2**40))
    def test_depends_on_seed_and_index_alone(self, seed: int, index: int) -> None:
        """Numpy's global state neither changes the draw nor is changed by it."""
        logits = np.linspace(0, 1, 500, dtype=np.float32)
        before = str(np.random.get_state())  # noqa: NPY002 - the state that must not change
        first = sample(logits, SamplingParams(seed=seed), {}, index)
        assert before == str(np.random.get_state())  # noqa: NPY002
        sample(logits, SamplingParams(seed=seed + 1), {}, index + 1)
        assert first == sample(logits, SamplingParams(seed=seed), {}, index)

    def test_the_draws_of_a_seed_are_pinned(self) -> None:
        """The numbers themselves: a change of generator would break every stored seed."""
        assert [uniform(seed, index) for seed, index in [(0, 0), (0, 1), (42, 0), (-1, 7)]] == PINNED

    def test_a_masked_token_is_never_drawn(self) -> None:
        """-inf has no interval, at either end of the CDF."""
        logits = f32([-np.inf, 0, -np.inf, 0, -np.inf])
        assert {1, 3} == {sample(logits, SamplingParams(seed=5), {}, index).token for index in range(200)}

    @pytest.mark.parametrize(
        ("at", "expected"), [(0.0, 1), (np.nextafter(1.0, 0.0), 3)], ids=["first", "last"]
    )
    def test_the_ends_of_the_cdf_are_tokens_that_have_a_weight(
        self, monkeypatch: pytest.MonkeyPatch, at: float, expected: int
    ) -> None:
        """The smallest and the largest number that can be drawn do not fall on masked neighbours."""
        monkeypatch.setattr(sampler, "uniform", lambda *_: at)
        logits = f32([-np.inf, 0, -np.inf, 0, -np.inf])
        assert sample(logits, SamplingParams(), {}, 0).token == expected


class TestTopKAndTopP:
    """The truncations at their edges."""

    def test_top_k_keeps_exactly_k_of_equals(self) -> None:
        """Among equals at the border the lowest ids stay."""
        logits = np.zeros(10, np.float32)
        drawn = {sample(logits, SamplingParams(top_k=3), {}, index).token for index in range(300)}
        assert {0, 1, 2} == drawn

    def test_top_p_keeps_the_token_that_reaches_the_mass(self) -> None:
        """Of 4 equals, 0.5 keeps two; a little more keeps three; 0 keeps one, the lowest id."""
        logits = np.zeros(4, np.float32)
        for top_p, expected in [(0.5, {0, 1}), (0.50001, {0, 1, 2}), (0.0, {0}), (1.0, {0, 1, 2, 3})]:
            params = SamplingParams(top_p=top_p)
            assert expected == {sample(logits, params, {}, index).token for index in range(300)}

    def test_top_p_is_taken_of_what_top_k_left(self) -> None:
        """The mass is of the renormalised rest: half of two equals is one of them."""
        params = SamplingParams(top_k=2, top_p=0.5)
        assert {0} == {sample(np.zeros(50, np.float32), params, {}, index).token for index in range(200)}

    def test_top_p_of_a_flat_vocabulary(self) -> None:
        """The histogram also cuts inside one bin of 40,000 equals."""
        params = SamplingParams(top_p=0.25, seed=2)
        tokens = [sample(np.zeros(40_000, np.float32), params, {}, index).token for index in range(300)]
        assert max(tokens) < 10_000
        assert max(tokens) > 9_000


class TestPenalties:
    """OpenAI's formula on the tokens of the output."""

    @UNHURRIED
    @given(
        logits=LOGITS,
        frequency=st.integers(-16, 16).map(lambda v: v / 8),
        presence=st.integers(-16, 16).map(lambda v: v / 8),
        data=st.data(),
    )
    def test_greedy_follows_the_formula(
        self, logits: NDArray[np.float32], frequency: float, presence: float, data: st.DataObject
    ) -> None:
        """``logit - count * frequency - presence`` for each token of the output; the input stays as it was."""
        counts = data.draw(st.dictionaries(st.integers(0, logits.size - 1), st.integers(1, 9)))
        expected = [
            float(v) - (counts.get(i, 0) * frequency + presence if i in counts else 0)
            for i, v in enumerate(logits)
        ]
        original = logits.copy()
        params = SamplingParams(temperature=0, frequency_penalty=frequency, presence_penalty=presence)
        assert expected.index(max(expected)) == sample(logits, params, counts, 0).token
        assert original.tolist() == logits.tolist()

    def test_a_count_of_zero_is_not_in_the_output(self) -> None:
        """A counter that holds zeros does not bring on the presence penalty."""
        params = SamplingParams(temperature=0, presence_penalty=2)
        assert sample(f32([1, 0]), params, {0: 0}, 0).token == 0


class TestLogprobs:
    """Log-probabilities are the model's."""

    @UNHURRIED
    @given(logits=LOGITS, alternatives=st.integers(0, 20))
    def test_are_the_log_softmax_before_everything_else(
        self, logits: NDArray[np.float32], alternatives: int
    ) -> None:
        """Penalties, temperature and truncation change the token, never the reported numbers."""
        exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
        params = SamplingParams(
            temperature=0.3, top_k=2, top_p=0.5, presence_penalty=1, top_logprobs=alternatives
        )
        sampled = sample(logits, params, {0: 3}, 4)
        assert sampled.logprob == pytest.approx(exact[sampled.token], abs=1e-5)
        best = sorted(range(logits.size), key=lambda i: (-logits[i], i))[:alternatives]
        assert best == [token for token, _ in sampled.top]
        assert [v for _, v in sampled.top] == pytest.approx([exact[i] for i in best], abs=1e-5)

    def test_asking_for_them_changes_no_token(self) -> None:
        """The same draw with and without."""
        logits = np.random.default_rng(1).standard_normal(300).astype(np.float32)
        plain = [sample(logits, SamplingParams(seed=9), {}, i).token for i in range(50)]
        assert plain == [
            sample(logits, SamplingParams(seed=9, top_logprobs=3), {}, i).token for i in range(50)
        ]


class TestBadLogits:
    """Broken weights are an error, not a token."""

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize(
        "bad",
        [[0.0, np.nan, 1.0], [np.nan] * 3, [0.0, np.inf], [-np.inf, -np.inf], [np.inf, np.nan]],
        ids=["one_nan", "all_nan", "inf", "all_masked", "inf_and_nan"],
    )
    def test_are_refused_by_name(self, bad: list[float], temperature: float) -> None:
        """NaN, +inf or nothing at all: InvalidLogits that says which token."""
        with pytest.raises(InvalidLogits, match=r"token [01]\)"):
            sample(f32(bad), SamplingParams(temperature=temperature), {}, 0)
