"""What measured links say of the parts that they are made of: last miles, access bandwidths, paths between sites. Pure.

    round trip of a, b        base(a, b) + last mile of a + last mile of b
    bandwidth from a to b     the smallest of upload of a, download of b, and what the path between their sites carries

``base`` is that of the two sites, or the distance of two positions (`splitinfer.profiler.coordinates`). Round trips are
fitted by least squares, reweighted so that about the mean relative error is least (iteratively reweighted least squares;
Holland and Welsch, Communications in Statistics 1977): a few wild readings do not bend it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ROUNDS = 100
SOFT = 0.1
"""A sample that is off by less than this part of itself counts no more the closer it is."""
NEAR = 0.7
"""A reading of at least this part of what both ends can do was limited by them; one below it by the path."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Measured ordered pairs ``a[i]`` to ``b[i]`` with ``values[i]`` above 0: seconds, or bytes per second."""

    a: Ints
    b: Ints
    values: Floats


def grouped_medians(groups: Ints, values: Floats, count: int) -> Floats:
    """[count] the median of the values of each group; NaN where there is none."""
    order = np.lexsort((values, groups))
    ordered, edges = values[order], np.searchsorted(groups[order], np.arange(count + 1))
    begin, end = edges[:-1], edges[1:]
    some = end > begin
    result = np.full(count, np.nan)
    result[some] = (ordered[(begin + end - 1)[some] // 2] + ordered[(begin + end)[some] // 2]) / 2
    return result


def fit_round_trips(samples: Samples, paths: Ints, base: Floats, nodes: int) -> tuple[Floats, Floats]:
    """Last miles [nodes], and the round trip of each path [paths].

    Args:
        samples: round trips.
        paths: [samples] the path that each took; -1 where its base is given instead.
        base: [samples] seconds, read where there is no path.
        nodes: how many there are; one without a sample has no last mile (0).
    """
    ends = np.concatenate([samples.a, samples.b])
    by_path, count = paths >= 0, int(paths.max(initial=-1)) + 1
    last_miles, known = np.zeros(nodes), base.copy()
    lengths = grouped_medians(paths[by_path], samples.values[by_path], count)
    known[by_path] = lengths[paths[by_path]]
    for _ in range(ROUNDS):
        off = samples.values - known - last_miles[samples.a] - last_miles[samples.b]
        weight = 1.0 / (SOFT * samples.values + np.abs(off))
        # Both ends of a link move at once, so each takes half of what is off.
        last_miles = np.maximum(
            0.0, last_miles + _means(ends, np.tile(off, 2), np.tile(weight, 2), nodes) / 2
        )
        off = samples.values - known - last_miles[samples.a] - last_miles[samples.b]
        lengths = np.maximum(0.0, lengths + _means(paths[by_path], off[by_path], weight[by_path], count))
        known[by_path] = lengths[paths[by_path]]
    return last_miles, lengths


def _means(groups: Ints, values: Floats, weights: Floats, count: int) -> Floats:
    total = np.bincount(groups, weights, count)
    means: Floats = np.bincount(groups, weights * values, count) / np.where(total > 0, total, 1.0)
    return means


def fit_bandwidths(samples: Samples, paths: Ints, nodes: int) -> tuple[Floats, Floats, Floats]:
    """Uploads and downloads [nodes], and what each path carries [paths].

    An end can do what its best links reach: the median of those near the best, so that one lucky reading is not
    believed alone. Unknown (NaN) without a sample. A path carries what its readings say that are below what both ends can
    do; infinity where there is none, for then nothing was seen of its limit.

    Args:
        samples: bandwidths.
        paths: [samples] the path that each took, by direction; -1 for none.
        nodes: how many there are.
    """
    upload, download = (_best(end, samples.values, nodes) for end in (samples.a, samples.b))
    ends = np.minimum(upload[samples.a], download[samples.b])
    narrow = (paths >= 0) & (samples.values < NEAR * ends)
    carried = grouped_medians(paths[narrow], samples.values[narrow], int(paths.max(initial=-1)) + 1)
    return upload, download, np.where(np.isnan(carried), np.inf, carried)


def _best(end: Ints, values: Floats, nodes: int) -> Floats:
    most = np.zeros(nodes)
    np.maximum.at(most, end, values)
    near = values >= NEAR * most[end]
    return grouped_medians(end[near], values[near], nodes)
