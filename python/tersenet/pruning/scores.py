"""Scores in place of magnitudes: of each weight, or of groups of weights that stay or go together.

::

    scores [out, in, ...]    of each weight
    scores [out, in]         of each kernel of a convolution       mask[o, i, ...] = kept[o, i]
    scores [out]             of each filter: a row of the weight   mask[o, ...]    = kept[o]

Why the shape says it: a score belongs to leading positions of the weight, and whatever follows them
is what stays or goes with it, so neither the plan nor the caller names the groups again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tersenet.pruning.magnitude import Mask, Weights

GROUPS = {"weight": None, "kernel": 2, "filter": 1}  # leading dimensions that have a score


def grouped(scores: Weights, by: str) -> Weights:
    """Return the sums of the scores of weights over what `by`, a key of GROUPS, keeps together."""
    depth = GROUPS[by]
    if depth is None or depth >= scores.ndim:
        return scores
    axes = tuple(range(depth, scores.ndim))
    sums: Weights = scores.sum(axis=axes, dtype=np.float64).astype(scores.dtype)
    return sums


def scores_of(scores: Mapping[str, Weights], name: str, shape: tuple[int, ...]) -> Weights:
    """Return the scores of one layer, checked against the shape of its weight.

    Raises:
        ValueError: if there are none, or they are no floats, negative, or of another shape.
    """
    if name not in scores:
        raise ValueError(f"prune: scores have no layer {name!r}, expected one for each layer")
    found = np.asarray(scores[name])
    expected = dict.fromkeys(shape[:depth] for depth in (1, 2, len(shape)))
    if found.dtype.kind != "f" or found.shape not in expected:
        words = " or ".join(str(list(choice)) for choice in expected)
        raise ValueError(
            f"prune: scores of layer {name!r} are {found.dtype} {list(found.shape)}, "
            f"expected floats {words}"
        )
    if (found < 0).any():
        at = int(np.argmax(found < 0))
        raise ValueError(
            f"prune: scores of layer {name!r} hold {found.reshape(-1)[at]} at flat position {at}, "
            "expected at least 0"
        )
    return found


def groups_within(mask: Mask, scores: Weights) -> Mask:
    """Return, in the shape of the scores, which groups have a weight that is kept."""
    return np.asarray(mask.any(axis=tuple(range(scores.ndim, mask.ndim))))


def spread(groups: Mask, shape: tuple[int, ...]) -> Mask:
    """Return the mask of a weight, for the mask of its groups."""
    aligned = groups.reshape(groups.shape + (1,) * (len(shape) - groups.ndim))
    return np.array(np.broadcast_to(aligned, shape))
