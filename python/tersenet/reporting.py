"""What a model or a matrix takes: tables of bytes, bits, times and multiply-adds.

::

    compare(w)      a row for every pair of layout and coder: bytes, encode, decode, product
    report(model)   a row for every weight: shape, density, k, layout, bytes, entropy, occupancy,
                    multiply-adds, and what they and reading it cost

The entropy beside the bits a weight is that of independent weights (order 0): H(kept or pruned) +
density * H(symbols), without the codebook. A coder that knows no context cannot go below it.

Multiply-adds are kept weights times the positions at which each is used: 1 for a Linear layer and
one row of input, the output pixels for a convolution. They are counted on an `example`, by hooks;
without one, only Linear layers have a number, for one row of input. What they cost is in `hardware`.

The totals of costs stand below the table; a row's are columns that would make it wider than a screen,
so `costs=True` prints them in place of how the weight is stored. The rows have all of them anyway.

Times are medians; the smallest of several runs would hide what a product costs in practice.

Price: `compare` compresses the matrix once a pair; `report` decodes every matrix once, at most
8 MiB at a time.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from tersenet._core import PAIRS, CompressedMatrix

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from torch import Tensor, nn

    from tersenet.files import Path
    from tersenet.hardware import Energy, EnergyRow

Row = TypeVar("Row", bound="DataclassInstance")

_COSTS = ("bits", "multiply_add_bits", "arithmetic_pj", "memory_pj", "energy_pj")
_WITH_COSTS = ("name", "kind", "shape", "density", "k", "nbytes", "multiply_adds", *_COSTS)
_BLOCK = 1 << 21  # values decoded at a time
_RUNS = 5


@dataclass(frozen=True)
class PairRow:
    """One pair of layout and coder; numbers are None and `error` says why, where it cannot be.

    Times are medians in milliseconds; `matvec_ms` is one product with a vector.
    """

    layout: str
    coder: str
    nbytes: int | None = None
    bits_per_weight: float | None = None
    occupancy: float | None = None
    encode_ms: float | None = None
    decode_ms: float | None = None
    matvec_ms: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class WeightRow:
    """One weight of a model; None where a number does not exist.

    `occupancy` is `nbytes` as a fraction of dense float32. `multiply_adds` are for the example,
    or for one row of input. `reason` says why a weight is dense. `bits` tell one kept value from the
    others, or are those of a dense element; they and what is below them are as in
    `hardware.EnergyRow`.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    density: float
    k: int | None
    layout: str
    coder: str | None
    nbytes: int
    bits_per_weight: float
    entropy_bits: float | None
    occupancy: float
    multiply_adds: int | None = None
    reason: str | None = None
    bits: int = 32
    multiply_add_bits: int | None = None
    arithmetic_pj: float | None = None
    memory_pj: float = 0.0
    energy_pj: float = 0.0


class Table(Sequence[Row], Generic[Row]):
    """Rows that print as a table of plain text."""

    def __init__(self, rows: Sequence[Row], footer: str = "") -> None:
        """Keep the rows, and lines to print below them."""
        self._rows: tuple[Row, ...] = tuple(rows)
        self._footer = footer

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return each row as a dict of plain values."""
        return [asdict(row) for row in self._rows]

    def cells(self, row: Row) -> Mapping[str, Any]:
        """Return what is printed of a row by column, the same columns for each row."""
        return {column.name: getattr(row, column.name) for column in fields(row)}

    def __getitem__(self, index: Any) -> Any:
        """Return a row, or the rows of a slice."""
        return self._rows[index]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def __str__(self) -> str:
        """Return the table."""
        if not self._rows:
            return self._footer
        rows = [self.cells(row) for row in self._rows]
        used = [name for name in rows[0] if any(row[name] is not None for row in rows)]
        cells = [[_text(name, row[name]) for name in used] for row in rows]
        widths = [max(map(len, column)) for column in zip(used, *cells, strict=True)]
        is_number = [any(isinstance(row[name], int | float) for row in rows) for name in used]
        lines = [
            "  ".join(
                text.rjust(width) if number else text.ljust(width)
                for text, width, number in zip(line, widths, is_number, strict=True)
            ).rstrip()
            for line in [used, *cells]
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, self._footer]) if self._footer else "\n".join(lines)


class Report(Table["WeightRow"]):
    """The weights of a model, and its totals in bytes, multiply-adds and picojoules.

    `weights_nbytes` are those of the rows, `other_nbytes` those of biases, norms and other
    tensors, `dense_nbytes` what the whole model takes with each weight dense in float32.
    `multiply_adds`, `multiply_add_bits`, `arithmetic_pj` and `energy_pj` are None where no row has
    multiply-adds; else rows without them add their `memory_pj` alone. `arithmetic` and `memory` are
    those that the picojoules are for.
    """

    def __init__(
        self,
        rows: Sequence[WeightRow],
        other_nbytes: int,
        energy: Energy,
        *,
        shows_costs: bool = False,
    ) -> None:
        """Add up the rows, and take what they cost, in the same order."""
        rows = [_with_costs(row, energy[place]) for place, row in enumerate(rows)]
        self._shows_costs = shows_costs
        self.weights_nbytes = sum(row.nbytes for row in rows)
        self.other_nbytes = other_nbytes
        self.nbytes = self.weights_nbytes + other_nbytes
        sizes = [prod(row.shape) for row in rows if row.layout != "tied"]
        self.dense_nbytes = 4 * sum(sizes) + other_nbytes
        self.occupancy = self.nbytes / self.dense_nbytes if self.dense_nbytes else 1.0
        counts = [row.multiply_adds for row in rows if row.multiply_adds is not None]
        self.multiply_adds = sum(counts) if counts else None
        self.multiply_add_bits = energy.multiply_add_bits if counts else None
        self.arithmetic_pj = energy.arithmetic_pj if counts else None
        self.memory_pj = energy.memory_pj
        self.energy_pj = energy.energy_pj if counts else None
        self.arithmetic = energy.arithmetic
        self.memory = energy.memory
        footer = (
            f"weights {self.weights_nbytes:,} + other tensors {other_nbytes:,} = "
            f"{self.nbytes:,} bytes, {100 * self.occupancy:.2f} % of dense {self.dense_nbytes:,}"
        )
        if self.multiply_adds is not None:
            footer += f"; {self.multiply_adds:,} multiply-adds\n{energy.summary}"
        super().__init__(rows, footer)

    def to_dict(self) -> dict[str, Any]:
        """Return the totals by name, and the rows as `weights`, all plain values."""
        totals = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {**totals, "weights": self.to_dicts()}

    @property
    def summary(self) -> str:
        """The totals, in the lines that are printed below the rows."""
        return self._footer

    def cells(self, row: WeightRow) -> Mapping[str, Any]:
        """Return what is printed of a row by column: what it costs, or how it is stored."""
        cells = super().cells(row)
        if self._shows_costs:
            return {name: cells[name] for name in _WITH_COSTS}
        return {name: value for name, value in cells.items() if name not in _COSTS}


def compare(w: npt.ArrayLike | CompressedMatrix, threads: int = 1) -> Table[PairRow]:
    """Return bytes and times of a matrix in every layout with every coder.

    Args:
        w: float32 [nrows, ncols], or a compressed matrix.
        threads: how many to decode and multiply with.

    Raises:
        ValueError: if `w` is no such matrix, or `threads` is under 1.

    Examples:
        >>> w = np.eye(64, dtype=np.float32)
        >>> min(compare(w), key=lambda row: row.nbytes or 9e9).layout != "dense"
        True
    """
    if threads < 1:
        raise ValueError(f"compare: threads is {threads}, expected at least 1")
    dense: npt.NDArray[Any] = w.decompress() if isinstance(w, CompressedMatrix) else np.asarray(w)
    if dense.ndim != 2 or dense.dtype not in (np.float32, np.float16):
        raise ValueError(
            f"compare: w is {dense.dtype} {list(dense.shape)}, expected float32 [nrows, ncols]"
        )
    x = np.random.default_rng(0).standard_normal((dense.shape[1],)).astype(np.float32)
    return Table([_compare_pair(dense, x, layout, coder, threads) for layout, coder in PAIRS])


def report(
    model: nn.Module | Path,
    example: Any = None,
    *,
    costs: bool = False,
    arithmetic: str = "float32",
    memory: str | float = "dram",
) -> Report:
    """Return what each weight of a model takes and costs, and the totals.

    Args:
        model: any model; its compressed layers, and weights of two dimensions or more that are
            dense. It is run in evaluation mode, and left as it was. Or the path of a file that
            `export` wrote, which is reported as it is stored, without torch and without an example:
            its operators say the multiply-adds for a batch of one.
        example: an input, a tuple of inputs, or a dict of named ones, to count multiply-adds on.
        costs: print what each weight costs on hardware, in place of how it is stored.
        arithmetic: of a multiply-add, see `tersenet.hardware.energy`.
        memory: where weights are read from, see `tersenet.hardware.energy`.

    Raises:
        OSError: if a file cannot be read.
        FormatError: if it is damaged.
        ValueError: if it holds no network, or has an example; if `arithmetic` or `memory` is unknown.

    Examples:
        >>> from torch import nn
        >>> table = report(nn.Linear(3, 2))
        >>> table[0].nbytes, table.multiply_adds, table.multiply_add_bits
        (24, 6, 192)
    """
    from tersenet.hardware import energy, prices

    if isinstance(model, str | os.PathLike):
        from tersenet.network_report import of_file

        if example is not None:
            raise ValueError(f"report: an example for a file, expected none: {os.fspath(model)}")
        return of_file(model, costs=costs, arithmetic=arithmetic, memory=memory)
    prices(arithmetic, memory)  # a bad name is an error before anything is run
    from tersenet.compression import left_dense
    from tersenet.quantization import quantized

    reasons = left_dense(model)
    shared = quantized(model)
    uses = _uses(model, example) if example is not None else None
    rows: list[WeightRow] = []
    first: dict[object, str] = {}
    for weight in _weights(model):
        matrix, tied_to = weight.matrix, first.setdefault(weight.identity, weight.name)
        if tied_to != weight.name:
            row = _tied_row(weight, tied_to, rows)
        elif matrix is not None:
            row = _matrix_row(weight, matrix)
        else:
            quantized_k = shared[weight.layer].k if weight.layer in shared else None
            row = _dense_row(weight, quantized_k, reasons.get(weight.layer))
        rows.append(replace(row, multiply_adds=_multiply_adds(weight, row, uses)))
    reckoned = energy(rows, arithmetic=arithmetic, memory=memory)
    return Report(rows, _other_nbytes(model), reckoned, shows_costs=costs)


@dataclass(frozen=True)
class _Weight:
    """A weight of a layer: either a compressed matrix or a dense tensor."""

    name: str
    layer: str
    module: nn.Module
    identity: object  # equal for tied weights
    shape: tuple[int, ...]
    matrix: CompressedMatrix | None = None
    dense: Tensor | None = None

    @property
    def kind(self) -> str:
        from torch.nn.utils import parametrize

        return parametrize.type_before_parametrizations(self.module).__name__

    @property
    def size(self) -> int:
        return prod(self.shape)


def _weights(model: nn.Module) -> Iterator[_Weight]:
    """Yield the compressed weights and the dense ones of two dimensions or more."""
    from torch import Tensor, no_grad
    from torch.nn.parameter import is_lazy
    from torch.nn.utils import parametrize

    from tersenet.nn import COMPRESSED, CompressedLayer
    from tersenet.parametrization import parametrization_of

    for path, module in model.named_modules():
        if "parametrizations" in path.split("."):
            continue
        if isinstance(module, CompressedLayer):
            identity: object = (module.payload.data_ptr(), module.weight_shape)
            yield _Weight(path, path, module, identity, module.weight_shape, module.matrix)
            continue
        is_layer = parametrize.type_before_parametrizations(module) in COMPRESSED
        if is_layer and "weight" not in module._parameters:  # parametrized, or torch's prune
            with no_grad():
                weight = module.weight
            assert isinstance(weight, Tensor)
            ours = parametrization_of(module, "weight")
            identity = id(ours if ours is not None else module)
            yield _Weight(path, path, module, identity, tuple(weight.shape), dense=weight.detach())
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if not is_lazy(parameter) and parameter.dim() >= 2:
                full = path if is_layer else f"{path}.{name}" if path else name
                shape = tuple(parameter.shape)
                yield _Weight(full, path, module, id(parameter), shape, dense=parameter.detach())


def _with_costs(row: WeightRow, cost: EnergyRow) -> WeightRow:
    return replace(row, **{name: getattr(cost, name) for name in _COSTS})


def _tied_row(weight: _Weight, tied_to: str, rows: Sequence[WeightRow]) -> WeightRow:
    row = next(row for row in rows if row.name == tied_to)
    reason = f"is the weight of {tied_to}"
    return replace(
        row, name=weight.name, kind=weight.kind, layout="tied", coder=None, nbytes=0, reason=reason
    )


def _matrix_row(weight: _Weight, matrix: CompressedMatrix) -> WeightRow:
    from tersenet.hardware import weight_bits

    codebook = matrix.codebook
    return WeightRow(
        name=weight.name,
        kind=weight.kind,
        shape=weight.shape,
        density=matrix.nnz / max(weight.size, 1),
        k=len(codebook),
        layout=matrix.layout,
        coder=matrix.coder,
        nbytes=matrix.nbytes,
        bits_per_weight=matrix.bits_per_weight,
        entropy_bits=_entropy_bits(matrix, codebook),
        occupancy=matrix.occupancy,
        bits=weight_bits(len(codebook), 32),
    )


def _dense_row(weight: _Weight, k: int | None, reason: str | None) -> WeightRow:
    from tersenet.hardware import weight_bits

    dense = weight.dense
    assert dense is not None
    nbytes = dense.numel() * dense.element_size()
    size = max(weight.size, 1)
    return WeightRow(
        name=weight.name,
        kind=weight.kind,
        shape=weight.shape,
        density=0.0 if dense.is_meta else int(dense.count_nonzero()) / size,
        k=k,
        layout="dense",
        coder=None,
        nbytes=nbytes,
        bits_per_weight=8 * nbytes / size,
        entropy_bits=None,
        occupancy=nbytes / (4 * size),
        reason=reason,
        bits=weight_bits(k, 8 * dense.element_size()),
    )


def symbol_counts(
    matrix: CompressedMatrix, codebook: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], int]:
    """Return the codebook in the order of its bits, how often each value is kept, and the pruned.

    Decodes the matrix once, at most 8 MiB at a time.
    """
    nrows, ncols = matrix.shape
    values = np.sort(codebook.view(np.uint32))
    counts = np.zeros(values.size, np.int64)
    step = max(_BLOCK // max(ncols, 1), 1)
    for start in range(0, nrows, step):
        bits = matrix.rows(np.arange(start, min(start + step, nrows))).view(np.uint32)
        symbols = np.searchsorted(values, bits[bits != 0])
        counts += np.bincount(symbols, minlength=values.size)
    return values.view(np.float32), counts, nrows * ncols - int(counts.sum())


def order_0_entropy(counts: npt.NDArray[np.int64]) -> float:
    """Return the entropy of what occurs so often, in bits each; 0 of nothing."""
    shares = counts[counts > 0] / max(int(counts.sum()), 1)
    return max(float(-(shares * np.log2(shares)).sum()), 0.0)


def _entropy_bits(matrix: CompressedMatrix, codebook: npt.NDArray[np.float32]) -> float:
    """Return H(kept or pruned) + density * H(symbols), in bits a weight."""
    _, counts, pruned = symbol_counts(matrix, codebook)
    return order_0_entropy(np.append(counts, pruned))


def _multiply_adds(weight: _Weight, row: WeightRow, uses: dict[Any, int] | None) -> int | None:
    """Return the multiplications with this weight, or None where their number is unknown."""
    per_use = weight.size if weight.dense is not None else round(row.density * weight.size)
    if not weight.kind.endswith(("Linear", "Conv1d", "Conv2d")):
        return None
    if uses is None:
        return per_use if weight.kind.endswith("Linear") else None
    return per_use * uses[weight.module] if weight.module in uses else None


def _uses(model: nn.Module, example: Any) -> dict[Any, int]:
    """Return at how many positions each layer with a weight is used on the example."""
    import torch

    uses: dict[Any, int] = {}

    def count(module: nn.Module, _: Any, output: Any) -> None:
        nrows = getattr(module, "out_features", 0) or getattr(module, "out_channels", 0)
        uses[module] = uses.get(module, 0) + output.numel() // max(nrows, 1)

    modes = {module: module.training for module in model.modules()}
    names = ("Linear", "Conv1d", "Conv2d")
    layers = [module for module in modes if type(module).__name__.endswith(names)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        model.eval()
        with torch.no_grad():
            if isinstance(example, dict):
                model(**example)
            elif isinstance(example, tuple):
                model(*example)
            else:
                model(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return uses


def _other_nbytes(model: nn.Module) -> int:
    """Return the bytes of biases, norms and buffers: of all tensors that are no rows."""
    computed = ("payload", "weight_orig", "weight_mask")
    tensors: dict[int, int] = {}
    for path, module in model.named_modules():
        if "parametrizations" in path.split("."):
            continue
        parameters = {n: p for n, p in module._parameters.items() if p is not None and p.dim() < 2}
        buffers = {n: b for n, b in module._buffers.items() if b is not None and n not in computed}
        for tensor in {**parameters, **buffers}.values():
            tensors[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(tensors.values())


def _compare_pair(
    dense: npt.NDArray[np.float32],
    x: npt.NDArray[np.float32],
    layout: str,
    coder: str,
    threads: int,
) -> PairRow:
    try:
        matrix = CompressedMatrix.compress(dense, layout, coder)
    except ValueError as error:
        return PairRow(layout, coder, error=str(error))
    return PairRow(
        layout,
        coder,
        nbytes=matrix.nbytes,
        bits_per_weight=matrix.bits_per_weight,
        occupancy=matrix.occupancy,
        encode_ms=median_ms(lambda: CompressedMatrix.compress(dense, layout, coder)),
        decode_ms=median_ms(lambda: matrix.decompress(threads)),
        matvec_ms=median_ms(lambda: matrix.matvec(x, threads)),
    )


def median_ms(work: Callable[[], object]) -> float:
    """Return the median of five runs in milliseconds, of fewer where they take over 2 s."""
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
        if sum(times) > 2_000:  # long enough to be steady
            break
    return statistics.median(times)


def _text(name: str, value: Any) -> str:
    """Return a value as people read it: bytes with commas, fractions as percentages."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in ("density", "occupancy"):
        return f"{100 * value:.3g} %"
    if isinstance(value, float):
        return f"{value:.3f}" if value < 100 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, tuple):
        return " x ".join(str(dim) for dim in value)
    return str(value)
