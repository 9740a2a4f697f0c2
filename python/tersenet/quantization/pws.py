"""Probabilistic weight sharing: a random neighbour, such that the expectation is the weight.

::

    representatives = the quantiles i/(k - 1) of the kept weights, i = 0..k-1, without repeats
    for each kept weight w between neighbours lo <= w <= hi:
        hi with probability (w - lo)/(hi - lo), else lo           # E[Q(w)] = w

Why this way: the errors of a layer's weights are independent with mean zero, so they average out
in its sums instead of adding up. Where quantiles repeat (many equal weights) one representative
stays, which keeps hi - lo above zero.

Price: one sort, O(n log k) and one random number a position; no prefix sums.

Source: Marino, Ghidoli, Frasca and Malchiodi 2021, "Compression strategies and space-conscious
representations for deep neural networks"; the probabilities as in Suresh et al. 2017.
"""

from __future__ import annotations

import numpy as np

from tersenet.quantization.kept import F32, KeptWeights, Mask, Quantized, Weights


def pws(weights: Weights, k: int, *, mask: Mask | None = None, seed: int = 0) -> Quantized:
    """Quantize each weight at random to one of its two neighbours among k quantiles, unbiased.

    One value (k = 1) has no neighbours; it is then the mean, unbiased for the sum only. A
    representative that no weight drew is left out, so fewer than k values may come out.

    Args:
        weights: any shape, any float dtype.
        k: the number of values, in [1, 65,536]; fewer come out if fewer are distinct.
        mask: True where kept; by default where the weight is not zero.
        seed: of the random choices; equal seeds give equal results.

    Raises:
        ValueError: if a kept weight is not finite, or k or the mask does not fit.

    Examples:
        >>> q = pws(np.float32([1, 1.5, 1.25, 2]), 2, seed=3)
        >>> q.codebook
        array([1., 2.], dtype=float32)
    """
    kept = KeptWeights("pws", weights, k, mask)
    if (exact := kept.exact()) is not None:
        return exact
    if kept.k == 1:
        return kept.assign(kept.means(np.zeros(1, np.int64)), np.zeros(0, np.float32))
    codebook = _quantiles(kept)
    random = np.random.default_rng(seed)
    symbols = np.empty(kept.weights.size, np.uint16)
    step = np.diff(codebook.astype(np.float64))
    for block in kept.blocks():
        weight = np.where(kept.mask[block], kept.weights[block], codebook[0])
        lo = np.minimum(np.searchsorted(codebook, weight, side="right") - 1, step.size - 1)
        goes_up = random.random(weight.size) * step[lo] < weight - codebook[lo].astype(np.float64)
        symbols[block] = lo + goes_up
    return kept.finish(codebook, symbols)


def _quantiles(kept: KeptWeights) -> F32:
    """Return the distinct quantiles i/(k - 1), interpolated linearly between sorted weights."""
    at = np.arange(kept.k) * ((kept.sorted.size - 1) / (kept.k - 1))
    below = np.minimum(at.astype(np.int64), kept.sorted.size - 1)
    above = np.minimum(below + 1, kept.sorted.size - 1)
    lo, hi = kept.sorted[below].astype(np.float64), kept.sorted[above].astype(np.float64)
    quantiles = (lo + (at - below) * (hi - lo)).astype(np.float32)
    quantiles[-1] = kept.sorted[-1]
    return np.unique(quantiles)
