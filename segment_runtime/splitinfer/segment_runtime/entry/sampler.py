"""Choosing the next token from its logits: pure numpy, no state.

The order is the field's: penalties, temperature, top_k, top_p, draw. Three choices that others leave open:

- The draw depends on (seed, index) alone, through one block of the counter-based Philox generator, so that a
  replayed session draws what it drew before, in whatever batch and order it runs.
- The draw inverts the CDF over the kept tokens **in id order**. Rounding differences between two runs then
  move the borders by about as much as they move the probabilities; in probability order they would swap
  near-equal neighbours, and with them whole intervals.
- Log-probabilities are those of the model: log-softmax of the logits before penalties, temperature and
  truncation, as vLLM's default.

Errors
------
SamplerError              base
└── InvalidLogits         NaN, +inf, or nothing but -inf: the weights or the compute are broken
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinfer.segment_runtime.entry.generate import SamplingParams

Logits = NDArray[np.float32]
Ids = NDArray[np.intp]

# Below this a temperature is greedy: the division would leave float32 (and nothing is left to chance anyway).
GREEDY_BELOW = 1e-5
# The histogram of top_p: bins of 1/64 nat down to e^-32 of the best token, the rest in the last one.
_BINS_PER_NAT = 64
_BINS = 2048


class SamplerError(Exception):
    """No token can be chosen."""


class InvalidLogits(SamplerError):
    """Logits that are no distribution."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """The chosen token.

    Attributes:
        token: its id.
        logprob: of the model, None unless ``top_logprobs`` is set.
        top: the ``top_logprobs`` most probable tokens, best first, lowest id first among equals. The chosen
            token is not added when it is not one of them.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def sample(logits: Logits, params: SamplingParams, output_counts: Mapping[int, int], index: int) -> Sampled:
    """Choose the next token.

    O(vocabulary); greedy without logprobs is one argmax.

    Args:
        logits: ``[vocab]`` of one position; not changed.
        params: how to choose.
        output_counts: how often each token is in the output so far (for the penalties).
        index: number of the token in the output, from 0; with the seed it determines the draw.

    Raises:
        InvalidLogits: NaN, +inf, or nothing but -inf.
    """
    assert logits.ndim == 1, logits.shape
    best = int(np.argmax(logits))  # the first NaN if there is one, else the lowest id of the maximum
    if not isfinite(logits[best]):
        raise InvalidLogits(
            f"the largest of {logits.size} logits is {logits[best]} (token {best}): weights or compute are broken"
        )
    penalised = _penalise(logits, params, output_counts)
    if params.temperature < GREEDY_BELOW:
        token = best if penalised is logits else int(np.argmax(penalised))
    else:
        token = _draw(penalised, params, uniform(params.seed, index))
    if params.top_logprobs is None:
        return Sampled(token)
    return _with_logprobs(logits, token, best, params.top_logprobs)


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1), determined by (seed, index): 53 bits of one Philox block.

    From the raw stream, which numpy promises to keep, not from ``Generator.random``, which it does not.
    """
    bits = np.random.Philox(key=seed % (1 << 128), counter=index << 64)
    return float(int(bits.random_raw()) >> 11) * 2.0**-53


def _penalise(logits: Logits, params: SamplingParams, counts: Mapping[int, int]) -> Logits:
    """OpenAI's formula: ``logit - count * frequency - (count > 0) * presence``.

    Gives ``logits`` itself if nothing changes.
    """
    if not counts or (params.frequency_penalty == 0 and params.presence_penalty == 0):
        return logits
    ids = np.fromiter(counts.keys(), dtype=np.intp, count=len(counts))
    count = np.fromiter(counts.values(), dtype=np.float32, count=len(counts))
    penalised = logits.copy()
    penalised[ids] -= count * np.float32(params.frequency_penalty) + (count > 0) * np.float32(
        params.presence_penalty
    )
    return penalised


def _draw(logits: Logits, params: SamplingParams, at: float) -> int:
    """The token whose interval of the CDF, in id order, holds ``at``."""
    ids: Ids | None = None  # None is all
    if 0 < params.top_k < logits.size:
        ids = _largest(logits, params.top_k)
        logits = logits[ids]
    with np.errstate(over="ignore"):  # what leaves float32 downwards has no weight
        scaled = (logits - logits.max()) / np.float32(params.temperature)  # <= 0
    weights = np.exp(scaled, dtype=np.float32)
    if params.top_p < 1:
        kept = _nucleus(scaled, weights, params.top_p)
        ids = kept if ids is None else ids[kept]
        weights = weights[kept]
    cdf = np.cumsum(weights, dtype=np.float64)
    # Side right: a token of weight 0 has an empty interval and is never drawn. `at` < 1, but the product may
    # round up to the total: then it is the last token that has a weight.
    place = int(np.searchsorted(cdf, at * cdf[-1], side="right"))
    if place == cdf.size:
        place = int(np.searchsorted(cdf, cdf[-1], side="left"))
    return place if ids is None else int(ids[place])


def _largest(values: NDArray[np.floating[Any]], count: int) -> Ids:
    """Indices of exactly the ``count`` largest, ascending; among equals at the border the lowest indices."""
    if count >= values.size:
        return np.arange(values.size)
    border = np.partition(values, values.size - count)[values.size - count]
    above = np.flatnonzero(values > border)
    equal = np.flatnonzero(values == border)[: count - above.size]
    return np.sort(np.concatenate((above, equal)))


def _nucleus(scaled: Logits, weights: Logits, top_p: float) -> Ids:
    """Indices, ascending, of the fewest most probable tokens whose mass reaches ``top_p``; at least one.

    Among equals at the border the lowest indices. Nothing is sorted but the one bin of a histogram over the
    logits in which the mass is reached, so a flat distribution costs what a peaked one does.
    """
    bins = np.minimum(scaled * np.float32(-_BINS_PER_NAT), np.float32(_BINS - 1)).astype(np.intp)
    mass = np.bincount(bins, weights=weights, minlength=_BINS).cumsum()
    wanted = top_p * mass[-1]
    border = int(np.searchsorted(mass, wanted, side="left"))
    inside = np.flatnonzero(bins == border)
    order = inside[np.argsort(-scaled[inside], kind="stable")]
    reached = (mass[border - 1] if border else 0.0) + np.cumsum(weights[order], dtype=np.float64)
    needed = order[: int(np.searchsorted(reached, wanted, side="left")) + 1]
    return np.sort(np.concatenate((np.flatnonzero(bins < border), needed)))


def _with_logprobs(logits: Logits, token: int, best: int, alternatives: int) -> Sampled:
    maximum = logits[best]
    log_total = float(maximum) + log(float(np.exp(logits - maximum).sum(dtype=np.float64)))
    top: tuple[tuple[int, float], ...] = ()
    if alternatives > 0:
        ids = _largest(logits, alternatives)
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        top = tuple((int(i), float(logits[i]) - log_total) for i in ids)
    return Sampled(token, float(logits[token]) - log_total, top)
