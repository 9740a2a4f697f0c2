"""What every quantizer takes and returns: the kept weights, sorted, and a codebook with symbols.

A quantizer is a choice of k values for the kept weights. All of them share one frame::

    kept   = sort(weights[mask])                          # float32, once
    if kept has at most k distinct values: those are the codebook, the result is exact
    codebook, edges = the quantizer's own choice from kept and its prefix sums
    symbols[i] = number of edges <= weights[i]            # block by block
    sort the codebook, merge equal values, drop unused ones; a value 0 leaves the mask

Why this way: in one dimension every cell of every quantizer here is an interval, so a sorted
copy and prefix sums give the size and the mean of any cell in two look-ups, whatever the number
of weights. The quantizers then never walk over the weights again but for the final assignment.

Weights are rounded to float32 first, because that is what the container stores; sums are
accumulated in float64, around the median so that a common offset costs no digits.

Price for n weights, n' kept: one sort, O(n log k) for the assignment; besides the input 4n' bytes
(sorted), 8n' (prefix sums, where the quantizer uses them), 2n (symbols) and n (mask).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_K = 65_536
_BLOCK = 1 << 18  # weights assigned at a time: temporaries stay in the cache

Weights = npt.NDArray[np.floating[Any]]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Symbols = npt.NDArray[np.uint16]
Mask = npt.NDArray[np.bool_]


def _total_order(values: F32) -> npt.NDArray[np.int32]:
    """Return integers that compare as IEEE 754's totalOrder compares the floats."""
    bits = values.view(np.int32)
    order: npt.NDArray[np.int32] = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return order


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, size, _BLOCK))


@dataclass(frozen=True, eq=False)
class Quantized:
    """A pruned and quantized array: a codebook, and which of its values stands where.

    `codebook` is float32 [k], strictly ascending in IEEE 754's total order (so distinct by bits),
    and never +0.0; `symbols` is uint16 in the shape of the weights, 0 where pruned; `mask` is bool
    in the same shape, True where kept. k is 0 exactly when nothing is kept. `dropped` counts the
    weights that were kept before quantizing and that the quantizer sent to zero.

    Raises:
        ValueError: if a part has the wrong dtype or shape, or breaks one of these rules.

    Examples:
        >>> q = Quantized(np.float32([-1, 2]), np.uint16([0, 1, 0]), np.array([True, True, False]))
        >>> q.values()
        array([-1.,  2.,  0.], dtype=float32)
        >>> q.k, q.nnz
        (2, 2)
    """

    codebook: F32
    symbols: Symbols
    mask: Mask
    dropped: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        """Check every rule that the class promises."""
        for name, dtype in (("codebook", np.float32), ("symbols", np.uint16), ("mask", np.bool_)):
            part = getattr(self, name)
            if not isinstance(part, np.ndarray) or part.dtype != dtype:
                found = getattr(part, "dtype", type(part).__name__)
                expected = f"a {np.dtype(dtype)} array"
                raise ValueError(f"quantized: {name} is {found}, expected {expected}")
        if self.codebook.ndim != 1 or self.k > MAX_K:
            raise ValueError(
                f"quantized: codebook has shape {self.codebook.shape}, "
                f"expected one dimension of at most {MAX_K} values"
            )
        if self.symbols.shape != self.mask.shape:
            raise ValueError(
                f"quantized: mask has shape {self.mask.shape}, "
                f"expected that of symbols, {self.symbols.shape}"
            )
        if self.dropped < 0:
            raise ValueError(f"quantized: dropped is {self.dropped}, expected at least 0")
        self._check_codebook()
        self._check_symbols()

    def _check_codebook(self) -> None:
        order = _total_order(np.ascontiguousarray(self.codebook))
        falls = np.flatnonzero(order[1:] <= order[:-1])
        if falls.size:
            at = int(falls[0])
            raise ValueError(
                f"quantized: codebook[{at + 1}] is {self.codebook[at + 1]} after "
                f"{self.codebook[at]}, expected distinct values in ascending order"
            )
        zeros = np.flatnonzero(order == 0)
        if zeros.size:
            raise ValueError(
                f"quantized: codebook[{int(zeros[0])}] is +0.0, "
                "expected no zero (a pruned weight leaves the mask)"
            )

    def _check_symbols(self) -> None:
        if (self.nnz == 0) != (self.k == 0):
            raise ValueError(
                f"quantized: codebook holds {self.k} values for {self.nnz} kept weights, "
                "expected none exactly when nothing is kept"
            )
        symbols, mask = self.symbols.reshape(-1), self.mask.reshape(-1)
        for block in _blocks(symbols.size):
            limit = np.where(mask[block], np.int32(self.k), np.int32(1))
            bad = np.flatnonzero(symbols[block] >= limit)
            if bad.size:
                at = block.start + int(bad[0])
                raise ValueError(
                    f"quantized: symbols hold {symbols[at]} at flat position {at}, expected "
                    + (f"less than k = {self.k}" if mask[at] else "0 where the mask is False")
                )

    @classmethod
    def of(
        cls, codebook: F32, symbols: Symbols, mask: Mask, *, keep_unused: bool = False
    ) -> Quantized:
        """Build one from any codebook: sort it, merge equal values, drop +0.0 and unused ones.

        `symbols` and `mask` are overwritten and belong to the result afterwards; symbols of
        pruned positions may hold anything. A weight whose value is +0.0 leaves the mask and is
        counted in `dropped`. With `keep_unused` a value that no weight has stays (a codebook that
        several layers share).
        """
        flat, kept = symbols.reshape(-1), mask.reshape(-1)
        if not (np.shares_memory(flat, symbols) and np.shares_memory(kept, mask)):
            flat, kept = flat.copy(), kept.copy()
        order = _total_order(np.ascontiguousarray(codebook, dtype=np.float32))
        used = np.ones(order.size, np.bool_) if keep_unused else _used(flat, kept, order.size)
        stays = used & (order != 0)
        distinct, first = np.unique(order[stays], return_index=True)
        table = np.zeros(max(order.size, 1), np.uint16)
        table[: order.size][stays] = np.searchsorted(distinct, order[stays]).astype(np.uint16)
        is_zero = np.zeros(table.size, np.bool_)
        is_zero[: order.size] = order == 0
        dropped = 0
        for block in _blocks(flat.size):
            symbol, keep = flat[block], kept[block]
            symbol *= keep  # symbols of pruned positions may lie beyond the table
            if is_zero.any():
                to_zero = is_zero[symbol] & keep
                dropped += int(np.count_nonzero(to_zero))
                keep &= ~to_zero
            np.multiply(table[symbol], keep, out=symbol)
        if not kept.any():
            distinct, first = distinct[:0], first[:0]
        values = np.ascontiguousarray(codebook, dtype=np.float32)[stays][first]
        shape = symbols.shape
        return cls(values, flat.reshape(shape), kept.reshape(shape), dropped=dropped)

    @property
    def k(self) -> int:
        """The number of codebook values."""
        return int(self.codebook.size)

    @property
    def nnz(self) -> int:
        """The number of kept weights."""
        return int(np.count_nonzero(self.mask))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights."""
        return self.symbols.shape

    def values(self) -> F32:
        """Return the dense float32 array: codebook[symbols] where kept, +0.0 elsewhere."""
        if self.k == 0:
            return np.zeros(self.shape, np.float32)
        dense: F32 = self.codebook[self.symbols]
        dense[~self.mask] = 0.0
        return dense


def _used(symbols: Symbols, mask: Mask, k: int) -> Mask:
    used = np.zeros(k, np.bool_)
    for block in _blocks(symbols.size):
        used[symbols[block][mask[block]]] = True
    return used


class KeptWeights:
    """The kept weights of an array, checked and sorted once, ready for any quantizer.

    `sorted` is float32 [n], ascending. Cells of consecutive sorted weights are named by `starts`:
    the ascending positions where they begin, the first being 0.

    Raises:
        ValueError: if the weights are no float array, the mask does not fit them, k is outside
            [1, 65,536], or a kept weight is NaN or beyond float32's range.
    """

    def __init__(self, quantizer: str, weights: Weights, k: int | None, mask: Mask | None) -> None:
        """Check the arguments of `quantizer` and sort what the mask keeps."""
        weights = np.asarray(weights)
        if weights.dtype.kind != "f":
            raise ValueError(f"{quantizer}: weights are {weights.dtype}, expected a float array")
        with np.errstate(over="ignore", under="ignore"):
            self.weights: F32 = np.ascontiguousarray(weights, dtype=np.float32).reshape(-1)
        self.shape = weights.shape
        if mask is None:
            self.mask: Mask = self.weights != 0
        else:
            mask = np.asarray(mask)
            if mask.dtype != np.bool_ or mask.shape != self.shape:
                raise ValueError(
                    f"{quantizer}: mask is {mask.dtype} {mask.shape}, expected bool {self.shape}"
                )
            self.mask = mask.reshape(-1).copy()
        self.k = check_k(quantizer, k)
        self.sorted: F32 = self.weights[self.mask]
        self.sorted.sort()
        if self.sorted.size and not np.isfinite(self.sorted[[0, -1]]).all():  # NaN sorts last
            bad = np.flatnonzero(~np.isfinite(self.weights) & self.mask)
            raise ValueError(
                f"{quantizer}: weights hold {bad.size} non-finite values, first at flat position "
                f"{bad[0]}, expected finite weights in float32's range"
            )

    def exact(self) -> Quantized | None:
        """Return the lossless answer if there are at most k distinct weights, else None."""
        values = self.sorted
        rises = values[1:] != values[:-1]
        if values.size and int(np.count_nonzero(rises)) + 1 > self.k:
            return None
        codebook = values[:1] if values.size else values
        codebook = np.concatenate([codebook, values[1:][rises]])
        return self.assign(codebook, codebook[1:])

    def blocks(self) -> Iterator[slice]:
        """Return slices that cover the weights, small enough for temporaries of each."""
        return _blocks(self.weights.size)

    @cached_property
    def center(self) -> float:
        """The median of the kept weights, subtracted before anything is summed."""
        return float(self.sorted[self.sorted.size // 2])

    @cached_property
    def prefix(self) -> F64:
        """float64 [n]: the sum of (w - center) over the sorted weights up to each position."""
        prefix: F64 = np.subtract(self.sorted, self.center, dtype=np.float64)
        np.cumsum(prefix, out=prefix)
        return prefix

    @cached_property
    def total_squares(self) -> float:
        """The sum of (w - center)**2 over the kept weights."""
        total = 0.0
        for block in _blocks(self.sorted.size):
            centered = np.subtract(self.sorted[block], self.center, dtype=np.float64)
            total += float(centered @ centered)
        return total

    def cells(self, starts: Ints) -> tuple[F64, F64]:
        """Return how many weights each cell holds and their sum around the center."""
        ends = np.append(starts[1:], self.sorted.size)
        upto = self.prefix[ends - 1]
        before = np.where(starts > 0, self.prefix[starts - 1], 0.0)
        return (ends - starts).astype(np.float64), upto - before

    def find(self, edges: F64) -> Ints:
        """Return the first position whose weight is at or above each edge."""
        rounded = edges.astype(np.float32)
        # the least float32 at or above the edge: compares as the edge does, without a float64 copy
        above = np.where(rounded < edges, np.nextafter(rounded, np.float32(np.inf)), rounded)
        return np.searchsorted(self.sorted, above, side="left")

    def starts(self, edges: F64) -> Ints:
        """Return the starts of the cells between the edges; empty cells vanish."""
        starts = np.unique(np.append(0, self.find(edges)))
        return starts[starts < self.sorted.size]

    def means(self, starts: Ints) -> F32:
        """Return the mean of each cell as float32."""
        counts, sums = self.cells(starts)
        return (sums / counts + self.center).astype(np.float32)

    def assign(self, codebook: F32, edges: F32) -> Quantized:
        """Give every kept weight the symbol that is the number of edges at or below it."""
        symbols = np.empty(self.weights.size, np.uint16)
        for block in self.blocks():
            symbols[block] = np.searchsorted(edges, self.weights[block], side="right")
        return self.finish(codebook, symbols)

    def finish(self, codebook: F32, symbols: Symbols) -> Quantized:
        """Return the result for one symbol a weight; +0.0 and -0.0 both leave the mask."""
        codebook = codebook + np.float32(0)  # turns -0.0 into +0.0
        return Quantized.of(codebook, symbols.reshape(self.shape), self.mask.reshape(self.shape))


def check_k(quantizer: str, k: int | None) -> int:
    """Return k as an int, or MAX_K for None.

    Raises:
        ValueError: if k is not an integer in [1, 65,536].
    """
    if k is None:
        return MAX_K
    try:
        number = operator.index(k)
    except TypeError:
        number = 0
    if isinstance(k, bool) or not 1 <= number <= MAX_K:
        raise ValueError(f"{quantizer}: k is {k!r}, expected an integer in [1, {MAX_K}]")
    return number
