"""What of the tensors of a `.terse` file is drawn: bits, entropies, histograms in bins, times.

A compressed matrix is decoded once, a few rows at a time, to count each value; from these counts
come its entropy (see `tersenet.report`) and its histogram. A tensor that is stored plain is read whole.

Times are of one thread, medians of five runs: `decode_ms` from the stored bytes of the matrix
alone, checks included, to a dense matrix; `product_ms` one product with a vector, in the layout that
is held for it after loading, where archives are coded or grouped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tersenet import dtypes
from tersenet._core import CompressedMatrix
from tersenet.dtypes import Array
from tersenet.files import File
from tersenet.pages.figures import Histogram
from tersenet.reporting import median_ms, order_0_entropy, symbol_counts

_BINS = 64
_VALUES = 512  # of a codebook that are drawn one by one


@dataclass(frozen=True)
class Tensor:
    """What the header says of a tensor that is stored under a name; `nnz` of a matrix only."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: str
    coder: str | None
    nbytes: int
    dense_nbytes: int
    nnz: int | None

    @classmethod
    def of(cls, name: str, info: dict[str, Any]) -> Tensor:
        """Take what `File.info` gives."""
        itemsize = np.dtype(dtypes.NUMPY_NAMES[info["dtype"]]).itemsize
        shape = tuple(info["shape"])
        return cls(
            name=name,
            dtype=info["dtype"],
            shape=shape,
            layout=info.get("layout", "plain"),
            coder=info.get("coder"),
            nbytes=info["nbytes"],
            dense_nbytes=prod(shape) * itemsize,
            nnz=info.get("nnz"),
        )

    @property
    def size(self) -> int:
        """The number of numbers."""
        return prod(self.shape)

    @property
    def bits(self) -> float:
        """Stored bits a number."""
        return 8 * self.nbytes / max(self.size, 1)

    @property
    def is_weight(self) -> bool:
        """Whether it is a matrix, or floats with two sides or more that are longer than 1."""
        is_like_one = "float" in self.dtype and sum(side > 1 for side in self.shape) >= 2
        return self.size > 0 and (self.nnz is not None or is_like_one)


@dataclass(frozen=True)
class Weights:
    """What is in a tensor of weights; of a plain one `k` and `entropy_bits` are None.

    `pruned` are +0.0, `infinite` those without a place on an axis: infinities and NaN.
    """

    tensor: Tensor
    pruned: int
    infinite: int
    histogram: Histogram | None
    k: int | None = None
    entropy_bits: float | None = None


def weights_of(tensor: Tensor, value: CompressedMatrix | Array) -> Weights | None:
    """Count what a tensor holds; None of a type whose numbers NumPy does not know.

    Args:
        tensor: what the header says.
        value: what the file gives for it.
    """
    if isinstance(value, CompressedMatrix):
        values, counts, pruned = symbol_counts(value, value.codebook)
        entropy_bits = order_0_entropy(np.append(counts, pruned))
        return _weights(tensor, values, counts, pruned, values.size, entropy_bits)
    numbers = dtypes.widened(value, tensor.dtype) if tensor.dtype != "float64" else value
    if numbers is None:
        return None
    flat = numbers.reshape(-1)
    unsigned: Any = f"uint{8 * flat.dtype.itemsize}"
    kept = flat[np.ascontiguousarray(flat).view(unsigned) != 0]
    return _weights(tensor, kept, None, flat.size - kept.size)


def measured(
    file: File, names: list[str], progress: Callable[[str, int, int], None]
) -> dict[str, tuple[float, float]]:
    """Return for matrices of a file milliseconds to decode and of one product, see above."""
    stored = file.values(names)
    held = file.values(names, None, set(names))
    random = np.random.default_rng(0)
    times = {}
    for done, name in enumerate(names):
        progress("measuring", done, len(names))
        matrix, product = stored[name], held[name]
        assert isinstance(matrix, CompressedMatrix)
        assert isinstance(product, CompressedMatrix)
        data, x = matrix.to_bytes(), random.standard_normal(matrix.shape[1], np.float32)
        times[name] = _decode_ms(data), median_ms(lambda p=product, x=x: p.matvec(x, 1))  # type: ignore[misc]
    progress("measuring", len(names), len(names))
    return times


def _decode_ms(data: bytes) -> float:
    return median_ms(lambda: CompressedMatrix.from_bytes(data).decompress(1))


def _weights(
    tensor: Tensor,
    values: Array,
    counts: Array | None,
    pruned: int,
    k: int | None = None,
    entropy_bits: float | None = None,
) -> Weights:
    """Make bins of values, each as often as `counts` says, or once."""
    is_finite = np.isfinite(values)
    finite = values[is_finite].astype(np.float64)
    often = np.ones(finite.size, np.int64) if counts is None else counts[is_finite]
    infinite = tensor.size - pruned - int(often.sum())
    histogram = None
    if finite.size:
        edges = _edges(float(finite.min()), float(finite.max()))
        places = np.clip(np.searchsorted(edges, finite, "right") - 1, 0, len(edges) - 2)
        bins = np.zeros(len(edges) - 1, np.int64)
        np.add.at(bins, places, often)
        drawn = counts is not None and finite.size <= _VALUES
        order = np.argsort(finite) if drawn else np.zeros(0, np.int64)
        histogram = Histogram(
            edges.tolist(), bins.tolist(), finite[order].tolist(), often[order].tolist()
        )
    return Weights(tensor, pruned, infinite, histogram, k, entropy_bits)


def _edges(low: float, high: float) -> Array:
    """Return the edges of bins between two values, or of one bin around one value."""
    if low < high:
        shares = np.arange(_BINS + 1) / _BINS
        edges: Array = low * (1 - shares) + high * shares  # high - low may be beyond a float
        return edges
    around = abs(low) / 8 or 0.125
    largest = np.finfo(np.float64).max
    return np.clip([low - around, high + around], -largest, largest)
