"""The file of a graph: its weights, compressed where that is smaller, and the graph itself.

A weight in the role of a matrix is compressed if it has at most 65,536 distinct values and takes
fewer bytes so; a compressed layer's matrix is stored as it is, or laid out for a goal. Everything
else is plain float32, coded for the goal "size" where that is smaller.

Price: a sort of each plain matrix with few values, to count them; a beginning of the others.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tersenet import _core, dtypes
from tersenet._core import CodedArray, CompressedMatrix
from tersenet.exporting.graph import Graph, Weight
from tersenet.files import Level, Path, Written, archived, coded, laid_out, strings, taps

if TYPE_CHECKING:
    from tersenet._core import Goal

_MAX_DISTINCT = 1 << 16
_SAMPLE = 1 << 18


def store(
    graph: Graph,
    path: Path,
    goal: Goal | None,
    metadata: Mapping[str, str] | None,
    level: Level,
) -> int:
    """Write a graph and its weights; return the bytes of the file.

    Raises:
        OSError: if the file cannot be written; the old one is still there.
        ValueError: if metadata cannot be stored.
    """
    tensors = [_written(weight, goal, level) for weight in graph.weights()]
    return _core.write(
        os.fspath(path),
        tensors,
        [],
        strings(metadata),
        graph.encoded(),
        for_size=goal == "size",
    )


def _written(weight: Weight, goal: Goal | None, level: Level) -> Written:
    value = weight.values
    if isinstance(value, CompressedMatrix):
        return weight.name, "float32", weight.shape, laid_out(value, weight.shape, goal, level)
    array = np.ascontiguousarray(value.detach().numpy())
    if weight.holds_ids:
        return weight.name, "int64", weight.shape, dtypes.to_bytes(array)
    plain = coded(array, "float32") if goal == "size" else array
    if weight.is_matrix and _may_shrink(array):
        flat = array.reshape(array.shape[0], -1)
        matrix = CompressedMatrix.compress(flat, goal=goal or "size", taps=taps(array.shape))
        if goal == "size":
            matrix = archived(matrix, weight.shape, level)
        if matrix.nbytes < plain.nbytes:
            return weight.name, "float32", weight.shape, matrix
    stored = plain if isinstance(plain, CodedArray) else dtypes.to_bytes(plain)
    return weight.name, "float32", weight.shape, stored


def _may_shrink(array: dtypes.F32) -> bool:
    """Tell whether compressing can help, without trying.

    A value of 256 or more takes 4 bytes, and each place where it stands at least one more.
    """
    bits = array.reshape(-1).view(np.uint32)
    if np.unique(bits[:_SAMPLE]).size > _MAX_DISTINCT:
        return False
    k = np.unique(bits).size
    return 0 < k <= _MAX_DISTINCT and (k < 256 or 5 * k < array.nbytes)
