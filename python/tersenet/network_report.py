"""What the weights of a network in a file take and cost: `tersenet.report` of what `export` wrote.

::

    header ──▶ shapes of the weights ─┐
    graph  ──▶ operators ─────────────┴▶ shapes of the values ──▶ positions at which each is used

    multiply-adds = kept weights * positions          for linear layers and convolutions

A weight that several operators use is one row, which counts for each of them. Bytes are those in the
file, of an archive those before it is laid out for products.

Price: no matrix is read but of layouts without a codebook, to count its values; each dense weight
once, to count its zeros.
"""

from __future__ import annotations

import os
from collections import Counter
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from tersenet import _core
from tersenet._core import CompressedMatrix
from tersenet.errors import FormatError
from tersenet.files import Limits, Path
from tersenet.hardware import energy, prices, weight_bits
from tersenet.network_shapes import Shape, value_shapes
from tersenet.reporting import Report, WeightRow

if TYPE_CHECKING:
    from tersenet._core import Graph, Reader

_COUNTED = ("conv", "linear")
_ELEMENT_BITS = 32  # of a network's dense weights


def of_file(
    path: Path,
    limits: Limits | None = None,
    *,
    costs: bool = False,
    arithmetic: str = "float32",
    memory: str | float = "dram",
) -> Report:
    """Return what each weight of a file that `tersenet.export` wrote takes and costs.

    A row's `kind` is the operators that use the weight; its entropy is left out.

    Args:
        path: the file.
        limits: what it may ask for.
        costs: as `tersenet.report`, like what follows.
        arithmetic: of a multiply-add.
        memory: where weights are read from.

    Raises:
        OSError: if the file cannot be read.
        FormatError: if it is damaged, or its operators and weights do not fit.
        ValueError: if it holds no network, or `arithmetic` or `memory` is unknown.
    """
    prices(arithmetic, memory)
    name = os.fspath(path)
    reader = _core.Reader(name, **vars(limits or Limits()))
    graph = reader.graph()
    if graph is None:
        raise ValueError(
            f"{name}: holds no network, so nothing says its multiply-adds; expected a "
            "file of tersenet.export"
        )
    tensors = reader.keys()
    entries = {tensor: reader.entry(tensor) for tensor in tensors}
    rows, weights = _rows(name, graph, entries, reader)
    others = [e for tensor, e in entries.items() if tensor not in weights and "alias_of" not in e]
    other_nbytes = sum(entry["nbytes"] for entry in others)
    reckoned = energy(rows, arithmetic=arithmetic, memory=memory)
    return Report(rows, other_nbytes, reckoned, shows_costs=costs)


def _rows(
    path: str, graph: Graph, entries: dict[str, dict[str, Any]], reader: Reader
) -> tuple[list[WeightRow], set[str]]:
    """Return a row for each weight that an operator uses, and their names."""
    kinds, positions = _uses(path, graph, entries)
    rows = []
    for name, operators in kinds.items():
        multiplied = set(operators) - {"embedding", "constant"}
        count = positions[name] if multiplied and multiplied <= set(_COUNTED) else None
        rows.append(_row(name, ", ".join(operators), entries[name], reader, count))
    return rows, set(kinds)


def _uses(
    path: str, graph: Graph, entries: dict[str, dict[str, Any]]
) -> tuple[dict[str, dict[str, None]], Counter[str]]:
    """Return by which operators each weight is used, and at how many positions in all."""
    inputs, nodes, _, _ = graph
    weights: dict[str, Shape] = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    try:
        made = value_shapes(graph, weights)[len(inputs) :]
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    kinds: dict[str, dict[str, None]] = {}
    positions: Counter[str] = Counter()
    for (op, _, names, _, _, _), shape in zip(nodes, made, strict=True):
        name = names[0] if names else ""
        name = entries[name].get("alias_of", name) if name else ""
        if not name or len(weights[name]) < 2 or entries[name]["dtype"] != "float32":
            continue
        kinds.setdefault(name, {})[op] = None
        if op in _COUNTED:
            positions[name] += prod(shape) // max(weights[name][0], 1)
    return kinds, positions


def _row(
    name: str, kind: str, entry: dict[str, Any], reader: Reader, positions: int | None
) -> WeightRow:
    shape, nbytes = tuple(entry["shape"]), entry["nbytes"]
    size = prod(shape)
    kept, k = size, None
    if entry["kind"] == "matrix":
        kept = entry["nnz"]
        k = entry["k"] if "k" in entry else _matrix(reader, name).codebook.size
    nonzero = kept if entry["kind"] == "matrix" else _nonzero(reader, name)
    return WeightRow(
        name=name,
        kind=kind,
        shape=shape,
        density=nonzero / max(size, 1),
        k=k,
        layout=entry.get("layout", "dense"),
        coder=entry.get("coder"),
        nbytes=nbytes,
        bits_per_weight=8 * nbytes / max(size, 1),
        entropy_bits=None,
        occupancy=nbytes / max(4 * size, 1),
        multiply_adds=None if positions is None else kept * positions,
        bits=weight_bits(k, _ELEMENT_BITS),
    )


def _matrix(reader: Reader, name: str) -> CompressedMatrix:
    matrix = reader.get(name)
    assert isinstance(matrix, CompressedMatrix)
    return matrix


def _nonzero(reader: Reader, name: str) -> int:
    data = reader.get(name)
    assert isinstance(data, bytes)
    return int(np.count_nonzero(np.frombuffer(data, "<f4")))
