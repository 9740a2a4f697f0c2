"""Sizes that the literature states, for a matrix of `shape` (nrows outputs, ncols inputs).

The upper bounds of HAC and sHAC relative to dense float32, the bits that the formula of each
published format counts, and the order-0 entropy that a coder of single symbols cannot go under.
The formulas stand in words of 32 bits; the row ends that a parallel product needs are in none of
them.

Sources: Marinò, Petrini, Malchiodi and Frasca 2021 (HAC, sHAC; the last term of the sHAC bound is
corrected: it counts the s·n·m row indices that are stored); Wiedemann, Müller and Samek 2018
(CSER); Han, Mao and Dally 2016 (index map).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tersenet import _core

Shape = tuple[int, int]

__all__ = [
    "Shape",
    "cser_bits",
    "csr_bits",
    "entropy",
    "entropy_bits",
    "entropy_bound",
    "hac",
    "hac_bits",
    "index_map_bits",
    "shac",
    "shac_bits",
]


def hac(shape: Shape, k: int, word_bits: int = 32) -> float:
    """Return the upper bound of HAC as a fraction of dense: (1 + log2 k)/b + 6k/(nm).

    Args:
        shape: rows and columns, each at least 1.
        k: the number of distinct values, zero included if it occurs.
        word_bits: bits of a word, b.

    Raises:
        ValueError: for a matrix without entries.
    """
    return _core.hac_bound(shape, k, word_bits)


def shac(shape: Shape, density: float, k: int, word_bits: int = 32) -> float:
    """Return the upper bound of sHAC as a fraction of dense, for indices of a word.

    s(1 + log2 k)/b + 6k/(nm) + (snm + m + 1)/(nm), for m rows, n columns and density s.

    Args:
        shape: rows and columns, each at least 1.
        density: the fraction of kept weights, in [0, 1].
        k: the number of distinct kept values.
        word_bits: bits of a word, b.

    Raises:
        ValueError: for a matrix without entries or a density outside [0, 1].
    """
    return _core.shac_bound(shape, density, k, word_bits)


def csr_bits(shape: Shape, nnz: int) -> int:
    """Return the bits of compressed sparse rows: the paper's CSC of the transposed matrix."""
    return _core.csr_bits(shape, nnz)


def index_map_bits(shape: Shape, k: int) -> int:
    """Return the bits of the index map of `k` values, zero included."""
    return _core.index_map_bits(shape, k)


def cser_bits(
    shape: Shape, *, values: int, cols: int, groups: int, group_starts: int, row_starts: int
) -> int:
    """Return the bits of CSER whose arrays have these lengths."""
    return _core.cser_bits(shape, (values, cols, groups, group_starts, row_starts))


def hac_bits(stream_bits: int, k: int, longest: int) -> int:
    """Return the bits of HAC: `stream_bits` of codewords, `k` values with zero, `longest` ≤ 63."""
    return _core.hac_bits(stream_bits, k, longest)


def shac_bits(shape: Shape, nnz: int, stream_bits: int, k: int, longest: int) -> int:
    """Return the bits of sHAC: `stream_bits` of codewords, `k` kept values, `longest` ≤ 63."""
    return _core.shac_bits(shape, nnz, stream_bits, k, longest)


def entropy(histogram: Sequence[int]) -> float:
    """Return the order-0 entropy of symbols with this histogram, in bits a symbol.

    Examples:
        >>> entropy([2, 1, 1])
        1.5
    """
    return _core.entropy(list(histogram))


def entropy_bound(histogram: Sequence[int]) -> float:
    """Return H + 1: the mean codeword of a Huffman code without a length limit is shorter."""
    return entropy(histogram) + 1.0


def entropy_bits(weights: npt.NDArray[np.float32]) -> float:
    """Return the order-0 entropy of positions and symbols of a whole matrix, in bits.

    Each entry is kept or not, and each kept one is one of the distinct values (by their bits);
    both are coded at their frequencies, and neither tables nor codebook are counted.

    Args:
        weights: float32, of any shape.
    """
    bits = np.ascontiguousarray(weights, np.float32).view(np.uint32).ravel()
    kept = bits[bits != 0]
    counts = np.unique(kept, return_counts=True)[1].tolist()
    flags = entropy([kept.size, bits.size - kept.size])
    return float(bits.size * flags + kept.size * entropy(counts))
