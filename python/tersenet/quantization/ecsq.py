"""Entropy-constrained scalar quantization: the least squared error plus lambda times the bits.

::

    cost = sum over kept w of (w - c(w))**2 - lambda * log2 p(c(w)),  p = share of the weights
    start from more groups than wanted (4 k)
    repeat: a weight goes to the group with the least (w - c)**2 - lambda * log2 p(c)
            groups that nobody chose vanish; c = mean, p = share of each
    until the cost falls by less than tol of itself
    lambda for a wanted k: doubled until at most k groups are left, then bisected

Why this way: rare values are what an entropy coder pays for; the bits of the symbols fall at a
small cost in error. Between neighbours b = (c0 + c1)/2 + lambda (l1 - l0) / (2 (c1 - c0)), with
l = -log2 p, so cells stay intervals; a group whose right edge is not beyond its left one is never
the best choice and goes (all such at once, until none is left). The tolerance is relative: an
absolute one stops after two sweeps on real weights, whose squares are tiny.

Price: one sort; O(k log n) a sweep, some hundred sweeps when lambda is searched. Groups in the
tails die slowly, so a smaller tolerance gives fewer values for the same lambda.

Source: Chou, Lookabaugh and Gray 1989, "Entropy-constrained vector quantization"; Choi, El-Khamy
and Lee 2017, "Towards the limit of network quantization".
"""

from __future__ import annotations

import math

import numpy as np

from tersenet.quantization.cws import space, spread
from tersenet.quantization.kept import F64, MAX_K, Ints, KeptWeights, Mask, Quantized, Weights

_START_K = 1024  # groups to start from when only lambda is given
_DOUBLINGS = 60
_PRECISION = 1e-2  # relative, of lambda


def ecsq(
    weights: Weights,
    k: int | None,
    *,
    lam: float | None = None,
    mask: Mask | None = None,
    seed: int = 0,
    max_iter: int = 200,
    tol: float = 1e-4,
) -> Quantized:
    """Quantize with the least squared error plus `lam` times the entropy of the symbols.

    Args:
        weights: any shape, any float dtype.
        k: the most values, in [1, 65,536]; None leaves the number to `lam`.
        lam: squared error that one bit is worth, in the squared unit of the weights; None
            searches the one that leaves k values. A given `lam` above 0 may merge values even
            where at most k are distinct.
        mask: True where kept; by default where the weight is not zero.
        seed: ignored, the result is deterministic; every quantizer takes one.
        max_iter: the most sweeps for one lambda.
        tol: stop when a sweep lowers the cost by less than this fraction of it.

    Raises:
        ValueError: if a kept weight is not finite, k and `lam` are both None, `lam` is negative
            or not finite, or k or the mask does not fit.

    Examples:
        >>> w = np.float32([1, 1, 1, 1.01, 5, 5])
        >>> ecsq(w, None, lam=0.1).k
        2
    """
    if k is None and lam is None:
        raise ValueError("ecsq: k and lam are both None, expected at least one of them")
    if lam is not None and not 0 <= lam < math.inf:
        raise ValueError(f"ecsq: lam is {lam}, expected a finite number of at least 0")
    kept = KeptWeights("ecsq", weights, k, mask)
    if lam is None or kept.sorted.size == 0:
        if (exact := kept.exact()) is not None:
            return exact
        starts = _search(kept, max_iter, tol)
    else:
        start_k = _START_K if k is None else kept.k
        starts = _descend(kept, spread(kept, start_k), lam, max_iter, tol)
    return kept.assign(kept.means(starts), kept.sorted[starts[1:]])


def _descend(kept: KeptWeights, starts: Ints, lam: float, max_iter: int, tol: float) -> Ints:
    """Return the starts of the cells when the cost no longer falls."""
    last = math.inf
    for _ in range(max_iter):
        counts, sums = kept.cells(starts)
        bits = np.log2(kept.sorted.size / counts)
        error = kept.total_squares - float((sums * sums / counts).sum())
        cost = error + lam * float(counts @ bits)
        if last - cost <= tol * abs(cost):
            break
        last = cost
        starts = kept.starts(_edges(sums / counts, lam * bits) + kept.center)
    return starts


def _edges(centers: F64, prices: F64) -> F64:
    """Return where the cheapest of (w - center)**2 + price changes, as w grows."""
    while True:
        apart = np.maximum(np.diff(centers), np.finfo(np.float64).tiny)
        with np.errstate(over="ignore"):
            edges: F64 = (centers[1:] + centers[:-1] + np.diff(prices) / apart) / 2
        never = np.flatnonzero(edges[1:] <= edges[:-1]) + 1
        if never.size == 0:
            return edges
        centers, prices = np.delete(centers, never), np.delete(prices, never)


def _search(kept: KeptWeights, max_iter: int, tol: float) -> Ints:
    """Return the cells for a lambda that leaves k of them, or the nearest smaller number."""
    k = kept.k
    many = space(kept, min(4 * k, MAX_K))
    low = kept.total_squares / kept.sorted.size / (64.0 * k * k)
    high, few = low, many
    for _ in range(_DOUBLINGS):
        few = _descend(kept, many, high, max_iter, tol)
        if few.size <= k:
            break
        low, high, many = high, 2 * high, few
    while few.size < k and high > low * (1 + _PRECISION):
        middle = math.sqrt(low * high)
        starts = _descend(kept, many, middle, max_iter, tol)
        if starts.size <= k:
            high, few = middle, starts
        else:
            low, many = middle, starts
    if few.size == k:
        return few
    # groups of equal size never yield to each other, or all at once: start from k of them
    direct = _descend(kept, spread(kept, k), high if few.size < k else 0.0, max_iter, tol)
    return few if direct.size <= few.size <= k else direct
