"""Magnitude pruning of many arrays together, when only one at a time fits into memory.

::

    bits(w) = the lower 31 bits of float32 |w|, as an integer        # ordered as |w| is
    pass 1: count the upper 16 of them over all arrays      ─▶ the cell that holds the cutoff
    pass 2: count the lower 15 within that cell, array by array ─▶ the cutoff, and each one's ties
    then:   mask = bits > cutoff, and of those equal to it the first in order

Why this way: the masks are those of `magnitude_masks` with scope "global", to the weight, from two
readings of the arrays and no more memory than one of them takes.

Price: O(n) and two passes; 512 KiB, and the distinct values of one cell (a 256th of an octave).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tersenet.pruning.magnitude import Mask

F32 = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint32]

_LOW_BITS = 15
_INFINITY = 0x7F800000


@dataclass(frozen=True)
class Cutoff:
    """Which weights of one array stay: those with bits above `bits`, and the first `ties` of them.

    Examples:
        >>> arrays = {"a": np.float32([3, 1]), "b": np.float32([1, 2])}
        >>> cutoffs = global_cutoffs(lambda: iter(arrays.items()), sparsity=0.25)
        >>> cutoffs["a"].mask(arrays["a"]), cutoffs["b"].mask(arrays["b"])
        (array([ True,  True]), array([False,  True]))
    """

    bits: int
    ties: int

    def mask(self, weights: F32) -> Mask:
        """Return True where a weight stays."""
        bits = _magnitude_bits(weights)
        mask: Mask = bits > self.bits
        mask[np.flatnonzero(bits == self.bits)[: self.ties]] = True
        return mask.reshape(weights.shape)


def global_cutoffs(
    read: Callable[[], Iterator[tuple[str, F32]]], *, sparsity: float
) -> dict[str, Cutoff]:
    """Return the cutoff of each array for a sparsity over all of them.

    Args:
        read: gives name and values of each array, the same and in the same order each time.
        sparsity: prune exactly round(sparsity * size) weights, in [0, 1].

    Raises:
        ValueError: if an array holds NaN, or the sparsity is out of range.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"magnitude: sparsity is {sparsity}, expected a number in [0, 1]")
    counts = np.zeros(1 << (31 - _LOW_BITS), np.int64)
    for name, weights in read():
        bits = _magnitude_bits(weights)
        if bits.size and int(bits.max()) > _INFINITY:
            bad = bits > _INFINITY
            raise ValueError(
                f"magnitude: {name} holds {np.count_nonzero(bad)} NaN, first at flat position "
                f"{int(np.argmax(bad))}, expected comparable weights"
            )
        counts += np.bincount(bits >> np.uint32(_LOW_BITS), minlength=counts.size)
    size = int(counts.sum())
    cell, wanted = _descend(counts, size - round(sparsity * size))
    lower: dict[str, tuple[Bits, npt.NDArray[np.int64]]] = {}
    for name, weights in read():
        bits = _magnitude_bits(weights)
        lower[name] = np.unique(bits[bits >> np.uint32(_LOW_BITS) == cell], return_counts=True)
    counts = np.zeros(1 << _LOW_BITS, np.int64)
    for values, number in lower.values():
        counts[values & np.uint32((1 << _LOW_BITS) - 1)] += number
    low, wanted = _descend(counts, wanted)
    cutoff = cell << _LOW_BITS | low
    cutoffs = {}
    for name, (values, number) in lower.items():
        ties = min(wanted, int(number[values == cutoff].sum()))
        wanted -= ties
        cutoffs[name] = Cutoff(cutoff, ties)
    return cutoffs


def _magnitude_bits(weights: F32) -> Bits:
    flat: F32 = np.require(weights, np.float32, ("C", "A")).reshape(-1)
    bits: Bits = flat.view(np.uint32) & np.uint32(0x7FFFFFFF)
    return bits


def _descend(counts: npt.NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """Return the highest place with at least `wanted` at or above it, and how many of its own."""
    at_or_above = np.cumsum(counts[::-1])[::-1]
    place = max(int(np.count_nonzero(at_or_above >= max(wanted, 1))) - 1, 0)
    above = int(at_or_above[place] - counts[place])
    return place, wanted - above
