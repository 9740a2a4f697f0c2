"""Uniform quantization: rounding to a grid, with the finest step that leaves at most k values.

::

    Q(w) = delta * round((w + beta) / delta) - beta
    delta: from range/(k - 1) down by thirds while at most k cells are occupied, then bisected

Why this way: a uniform grid needs the least entropy for its error (Gish and Pierce 1968), and a
cell without weights costs nothing, so delta may be finer than range/(k - 1) where the weights
have gaps or a tail. With beta = 0 the value 0 is on the grid: weights closer to it than delta/2
leave the mask, and zero is not one of the k values. The occupied cells are not a monotone
function of delta; the search ends where a slightly finer step has more than k, and it never goes
beyond 64 k grid points, so that an outlier cannot make it crawl.

Price: one sort; O(k log n) for each of about 40 steps tried; O(n log k) to assign.

Source: Marino, Ghidoli, Frasca and Malchiodi 2021, "Compression strategies and space-conscious
representations for deep neural networks"; Choi, El-Khamy and Lee 2020, "Universal deep neural
network compression".
"""

from __future__ import annotations

import math

import numpy as np

from tersenet.quantization.kept import F64, Ints, KeptWeights, Mask, Quantized, Weights

_GRID_POINTS_PER_VALUE = 64
_PRECISION = 1e-6  # relative, of delta


def uq(
    weights: Weights, k: int, *, mask: Mask | None = None, seed: int = 0, beta: float = 0.0
) -> Quantized:
    """Quantize to a uniform grid of which at most k values other than zero are used.

    Args:
        weights: any shape, any float dtype.
        k: the most values, in [1, 65,536]; fewer come out if fewer are distinct.
        mask: True where kept; by default where the weight is not zero.
        seed: ignored, the result is deterministic; every quantizer takes one.
        beta: the offset of the grid, in the unit of the weights.

    Raises:
        ValueError: if a kept weight or beta is not finite, or k or the mask does not fit.

    Examples:
        >>> q = uq(np.float32([-1.1, -0.9, 0.1, 1.0, 1.9, 2.1]), 3)
        >>> q.k, q.dropped
        (3, 1)
    """
    if not math.isfinite(beta):
        raise ValueError(f"uq: beta is {beta}, expected a finite number")
    kept = KeptWeights("uq", weights, k, mask)
    if (exact := kept.exact()) is not None:
        return exact
    delta = _finest_step(kept, beta)
    values, starts = _grid(kept, delta, beta)
    return kept.assign(values.astype(np.float32), kept.sorted[starts[1:]])


def _finest_step(kept: KeptWeights, beta: float) -> float:
    """Return a step with at most k occupied cells such that a slightly finer one has more."""

    def fits(delta: float) -> bool:
        values, _ = _grid(kept, delta, beta)
        return int(np.count_nonzero(values.astype(np.float32))) <= kept.k

    extent = float(kept.sorted[-1]) - float(kept.sorted[0])
    finest = extent / (_GRID_POINTS_PER_VALUE * kept.k)
    fine, coarse = extent, extent / max(kept.k - 1, 1)
    while not fits(coarse):
        fine, coarse = coarse, coarse * 1.01
    if fine >= coarse:  # the first step fitted: find one that does not
        fine = coarse / 1.5
        while fine > finest and fits(fine):
            fine, coarse = fine / 1.5, fine
    while coarse > fine * (1 + _PRECISION):
        middle = math.sqrt(coarse * fine)
        if fits(middle):
            coarse = middle
        else:
            fine = middle
    return coarse


def _grid(kept: KeptWeights, delta: float, beta: float) -> tuple[F64, Ints]:
    """Return the value and the start of every occupied cell of the grid."""
    low, high = ((float(kept.sorted[end]) + beta) / delta for end in (0, -1))
    first, last = math.floor(low + 0.5), math.floor(high + 0.5)
    points: F64 = first + np.arange(last - first + 1, dtype=np.float64)
    cuts = kept.find((points[1:] - 0.5) * delta - beta)
    starts = np.append(0, cuts)
    occupied = np.append(cuts, kept.sorted.size) > starts
    return points[occupied] * delta - beta, starts[occupied]
