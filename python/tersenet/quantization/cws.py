"""Clustered weight sharing: k-means of the kept weights, in one dimension.

::

    cut the sorted weights into at most `groups` groups, half at quantiles, half at even values
    best split of the groups into k cells by dynamic programming       # k <= 256
    (beyond: k cells with equal shares of the cube root of the density)
    repeat: each center = mean of its cell; each cell ends halfway between two centers   # Lloyd
    until the inertia falls by less than tol of itself
    repeat: cut cells at their mean where that gains more than joining two others loses; Lloyd

Why this way: Lloyd's steps alone stop in the nearest local optimum; from the best split of a
coarse cut that optimum is nearly the global one, and it is the global one when there are no more
distinct weights than groups. The split's gain is S**2/n a cell, a function with the Monge
property, so the best last cut never moves left as the weights go on: the cuts of a level are
found coarse to fine, each between its neighbours' (all of a pass in a few NumPy calls). For a
large k the share of the cube root of the density is the optimal spacing in the limit; where the
weights have clumps and outliers it is far from it, which the exchange of cells mends.

Price: one sort; O(k g log g) for g groups, at most 2,048; O(k log n) a Lloyd step.

Source: Lloyd 1982 (the steps); Panter and Dite 1951 (cube root); Wu 1991 and Gronlund et al. 2017
(dynamic programming in one dimension); Han et al. 2016, "Deep compression" (weight sharing).
"""

from __future__ import annotations

import numpy as np

from tersenet.quantization.kept import F64, Ints, KeptWeights, Mask, Quantized, Weights

_MAX_GROUPS = 2048
_MAX_K_SPLIT = 256  # beyond, the dynamic program costs more than it gains
_EXCHANGES = 50
_EXCHANGE_GAIN = 1e-3  # relative, of the inertia: less is not worth another exchange


def cws(
    weights: Weights,
    k: int,
    *,
    mask: Mask | None = None,
    seed: int = 0,
    max_iter: int = 300,
    tol: float = 1e-7,
) -> Quantized:
    """Quantize to the k values with the least squared error, nearly.

    Args:
        weights: any shape, any float dtype.
        k: the number of values, in [1, 65,536]; fewer come out if fewer are distinct.
        mask: True where kept; by default where the weight is not zero.
        seed: ignored, the result is deterministic; every quantizer takes one.
        max_iter: the most Lloyd steps.
        tol: stop when a step lowers the inertia by less than this fraction of it.

    Raises:
        ValueError: if a kept weight is not finite, or k or the mask does not fit.

    Examples:
        >>> cws(np.float32([0, 1, 1.5, 7, 8, 9]), 2).codebook
        array([1.25, 8.  ], dtype=float32)
    """
    kept = KeptWeights("cws", weights, k, mask)
    if (exact := kept.exact()) is not None:
        return exact
    starts = lloyd(kept, spread(kept, kept.k), max_iter, tol)
    starts = _exchange(kept, starts, max_iter, tol)
    return kept.assign(kept.means(starts), kept.sorted[starts[1:]])


def spread(kept: KeptWeights, k: int) -> Ints:
    """Return the starts of at most k cells that are a good first guess for k-means."""
    if k <= _MAX_K_SPLIT:
        starts = _groups(kept, _MAX_GROUPS)
        return starts[_best_split(kept, starts, k)]
    return space(kept, k)


def space(kept: KeptWeights, k: int) -> Ints:
    """Return the starts of at most k cells with equal shares of the cube root of the density."""
    starts = _groups(kept, 8 * k)
    if starts.size <= k:
        return starts
    counts, _ = kept.cells(starts)
    low = kept.sorted[starts].astype(np.float64)
    width = np.append(low[1:], kept.sorted[-1]) - low
    share = np.cumsum(np.cbrt(counts * width * width))
    quantiles = share[-1] * np.arange(1, k) / k
    return np.unique(np.append(0, starts[np.searchsorted(share, quantiles)]))


def lloyd(kept: KeptWeights, starts: Ints, max_iter: int, tol: float) -> Ints:
    """Return the starts of the cells after Lloyd's steps; empty cells vanish."""
    last = np.inf
    for _ in range(max_iter):
        counts, sums = kept.cells(starts)
        inertia = _inertia(kept, starts)
        if last - inertia <= tol * abs(inertia):
            break
        last = inertia
        centers = sums / counts + kept.center
        starts = kept.starts((centers[1:] + centers[:-1]) / 2)
    return starts


def _inertia(kept: KeptWeights, starts: Ints) -> float:
    counts, sums = kept.cells(starts)
    return kept.total_squares - float((sums * sums / counts).sum())


def _exchange(kept: KeptWeights, starts: Ints, max_iter: int, tol: float) -> Ints:
    """Return better cells, by cutting and joining many at a time while that pays."""
    inertia = _inertia(kept, starts)
    for _ in range(_EXCHANGES):
        changed = lloyd(kept, _cut_and_join(kept, starts), max_iter, tol)
        last, inertia = inertia, _inertia(kept, changed)
        if inertia < last:
            starts = changed
        if last - inertia <= _EXCHANGE_GAIN * abs(last):
            break
    return starts


def _cut_and_join(kept: KeptWeights, starts: Ints) -> Ints:
    """Cut the cells that gain most, and join as many pairs that lose less, beyond k cells."""
    counts, sums = kept.cells(starts)
    gain = sums * sums / counts
    middles = np.maximum(kept.find(sums / counts + kept.center), starts)
    pieces = np.unique(
        np.append(starts, middles[middles < np.append(starts[1:], kept.sorted.size)])
    )
    piece_counts, piece_sums = kept.cells(pieces)
    gain_in_pieces = piece_sums * piece_sums / piece_counts
    cut_gain = np.add.reduceat(gain_in_pieces, np.searchsorted(pieces, starts)) - gain
    joined = (sums[1:] + sums[:-1]) ** 2 / (counts[1:] + counts[:-1])
    loss = np.append(gain[1:] + gain[:-1] - joined, np.inf)
    # a pair that loses less than both of its neighbours: no cell is then in two pairs
    pairs = np.flatnonzero((loss < np.append(np.inf, loss[:-1])) & (loss <= np.roll(loss, -1)))
    pairs = pairs[np.argsort(loss[pairs], kind="stable")]
    cuts = np.argsort(-cut_gain, kind="stable")
    spare = kept.k - starts.size
    tries = min(pairs.size, cuts.size - spare) if cuts.size > spare else 0
    pays = cut_gain[cuts[spare : spare + tries]] > loss[pairs[:tries]]
    number = tries if pays.all() else int(np.argmin(pays))
    is_cut = np.zeros(starts.size + 1, np.bool_)
    is_cut[cuts[: spare + number]] = True
    pairs = pairs[:number]
    pairs = pairs[~(is_cut[pairs] | is_cut[pairs + 1])]
    cuts = cuts[: spare + pairs.size]
    return np.unique(np.append(np.delete(starts, pairs + 1), middles[cuts[cut_gain[cuts] > 0]]))


def _groups(kept: KeptWeights, at_most: int) -> Ints:
    """Return starts of groups of equal weights, or of neighbours where too many are distinct."""
    values = kept.sorted
    rises = values[1:] != values[:-1]
    if np.count_nonzero(rises) < at_most:
        return np.append(0, np.flatnonzero(rises) + 1)
    half = at_most // 2
    quantiles = values[(values.size * np.arange(1, half)) // half]
    low, high = float(values[0]), float(values[-1])
    even = (low + (high - low) * np.arange(1, half) / half).astype(np.float32)
    cuts = np.searchsorted(values, np.unique(np.append(quantiles, even)), side="left")
    return np.unique(np.append(0, cuts[cuts < values.size]))


def _best_split(kept: KeptWeights, starts: Ints, k: int) -> Ints:
    """Return which groups begin the k cells of least inertia, by dynamic programming.

    gain[j] = the best sum of S**2/n over the cells of groups 0..j, with one more cell a level.
    """
    counts, sums = kept.cells(starts)
    m = starts.size
    k = min(k, m)
    number = np.append(0.0, np.cumsum(counts))
    total = np.append(0.0, np.cumsum(sums))
    gain = total[1:] ** 2 / number[1:]
    cuts = np.zeros((k, m), np.int32)
    for level in range(1, k):
        gain, cuts[level] = _next_level(gain, number, total, level)
    split = np.zeros(k, np.int64)
    end = m - 1
    for level in range(k - 1, 0, -1):
        split[level] = cuts[level, end]
        end = int(split[level]) - 1
    return split


def _next_level(gain: F64, number: F64, total: F64, level: int) -> tuple[F64, Ints]:
    """Return the best gain with a last cell [i, j], and that i, for every j >= level.

    The best i does not fall as j grows: j is taken at halving strides, each between the answers
    of its neighbours, so that a stride looks at about as many i as there are groups.
    """
    m = gain.size
    best = np.full(m, -np.inf)
    cut = np.full(m, level, np.int64)
    stride = 1 << max(m - level - 1, 0).bit_length()
    while stride:
        j = np.arange(level + stride - 1, m, 2 * stride)
        if j.size:
            low = np.where(j - stride >= level, cut[np.maximum(j - stride, 0)], level)
            high = np.where(j + stride < m, cut[np.minimum(j + stride, m - 1)], j)
            high = np.minimum(high, j)
            lengths = high - low + 1
            first = np.append(0, np.cumsum(lengths)[:-1])
            i = np.arange(int(lengths.sum())) + np.repeat(low - first, lengths)
            jj = np.repeat(j, lengths)
            found = gain[i - 1] + (total[jj + 1] - total[i]) ** 2 / (number[jj + 1] - number[i])
            best[j] = np.maximum.reduceat(found, first)
            at = np.flatnonzero(found == np.repeat(best[j], lengths))
            cut[j] = i[at[np.searchsorted(at, first)]]
        stride //= 2
    return best, cut
