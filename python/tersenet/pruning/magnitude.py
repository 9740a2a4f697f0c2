"""Magnitude pruning: keep the weights with the largest absolute values.

::

    kept   = size - round(sparsity * size)
    cutoff = the kept-th largest |w|                # np.partition
    mask   = |w| > cutoff, and of those equal to it the first in order until `kept` are kept

Why this way: the count is exact whatever the ties, so two runs and two machines prune alike, and
a layer that was quantized before (nothing but ties) still gets the sparsity asked for.

Price: O(n) time; |w|, a partitioned copy of it, and the mask.

Source: Han, Pool, Tran and Dally 2015, "Learning both weights and connections".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]


def magnitude_mask(
    weights: Weights,
    *,
    sparsity: float | None = None,
    threshold: float | None = None,
    within: Mask | None = None,
) -> Mask:
    """Return True where a weight is kept, for a sparsity or for a threshold.

    Args:
        weights: any shape, any float dtype.
        sparsity: prune exactly round(sparsity * size) weights, in [0, 1]; of equal magnitudes
            the first stay.
        threshold: keep where |w| > threshold, at least 0.
        within: a mask that the result may not leave; what it pruned counts as pruned, so more
            than the asked sparsity stays as it is.

    Raises:
        ValueError: if not exactly one of `sparsity` and `threshold` is given, one is out of
            range, the weights hold NaN, or `within` does not fit them.

    Examples:
        >>> magnitude_mask(np.float32([3, -1, 2, 1]), sparsity=0.25)
        array([ True,  True,  True, False])
    """
    return magnitude_masks(
        {"weights": weights},
        sparsity=sparsity,
        threshold=threshold,
        within=None if within is None else {"weights": within},
    )["weights"]


def magnitude_masks(
    arrays: Mapping[str, Weights],
    *,
    sparsity: float | None = None,
    threshold: float | None = None,
    scope: str = "layer",
    within: Mapping[str, Mask] | None = None,
) -> dict[str, Mask]:
    """Return a mask for each array; "global" meets the sparsity over all arrays together.

    The arguments are those of `magnitude_mask`; `within` may leave arrays out.

    Raises:
        ValueError: as `magnitude_mask`, or if the scope is neither "layer" nor "global".
    """
    if (sparsity is None) == (threshold is None):
        found = f"sparsity {sparsity} and threshold {threshold}"
        raise ValueError(f"magnitude: found {found}, expected exactly one of them")
    if sparsity is not None and not 0 <= sparsity <= 1:
        raise ValueError(f"magnitude: sparsity is {sparsity}, expected a number in [0, 1]")
    if threshold is not None and not 0 <= threshold < math.inf:
        raise ValueError(f"magnitude: threshold is {threshold}, expected a number of at least 0")
    if scope not in ("layer", "global"):
        raise ValueError(f"magnitude: scope is {scope!r}, expected 'layer' or 'global'")
    within = within or {}
    ranks = {name: _magnitudes(name, array, within.get(name)) for name, array in arrays.items()}
    if threshold is not None:
        return {name: rank > threshold for name, rank in ranks.items()}
    assert sparsity is not None
    if scope == "layer":
        return {name: _largest(rank, sparsity) for name, rank in ranks.items()}
    joined = [rank.reshape(-1) for rank in ranks.values()]
    mask = _largest(np.concatenate(joined), sparsity) if joined else np.zeros(0, np.bool_)
    ends = np.cumsum([rank.size for rank in joined])
    parts = np.split(mask, ends[:-1])
    return {
        name: part.reshape(rank.shape)
        for (name, rank), part in zip(ranks.items(), parts, strict=False)
    }


def _magnitudes(name: str, weights: Weights, within: Mask | None) -> Weights:
    """Return |w|, and -1 where `within` has pruned: below anything that may be kept."""
    weights = np.asarray(weights)
    if weights.dtype.kind != "f":
        raise ValueError(f"magnitude: {name} is {weights.dtype}, expected a float array")
    magnitudes = np.abs(weights)
    if within is not None:
        if within.shape != weights.shape or within.dtype != np.bool_:
            found, expected = f"{within.dtype} {within.shape}", f"bool {weights.shape}"
            raise ValueError(f"magnitude: mask within {name} is {found}, expected {expected}")
        magnitudes[~within] = -1
    bad = np.isnan(magnitudes)
    if bad.any():
        raise ValueError(
            f"magnitude: {name} holds {np.count_nonzero(bad)} NaN, first at flat position "
            f"{int(np.argmax(bad))}, expected comparable weights"
        )
    return magnitudes


def _largest(magnitudes: Weights, sparsity: float) -> Mask:
    """Return True at the largest values, exactly as many as the sparsity leaves."""
    flat = magnitudes.reshape(-1)
    kept = flat.size - round(sparsity * flat.size)
    if kept == 0:
        return np.zeros(magnitudes.shape, np.bool_)
    cutoff = np.partition(flat, flat.size - kept)[flat.size - kept]
    mask: Mask = flat > cutoff
    ties = np.flatnonzero(flat == cutoff)[: kept - int(np.count_nonzero(mask))]
    mask[ties] = cutoff >= 0
    return mask.reshape(magnitudes.shape)
