"""An open `.terse` file, and what of a value goes into one.

::

    save:  any value ──typed──▶ Typed(value, dtype, shape, identity) ──write──▶ tensor, or alias
    open:  File: names ──info──▶ what the header says      ──get──▶ one value, checked when read

Two values with the same identity (the same array, the same torch storage, the same payload) are
one tensor under two names: tied weights that were stored twice would come back untied.

Values are `CompressedMatrix` or arrays; arrays of bfloat16 hold bit patterns (see `dtypes`). Torch
is not loaded here; its tensors are known by what they can do.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from tersenet import _core, dtypes
from tersenet._core import CodedArray, CompressedMatrix
from tersenet.dtypes import Array
from tersenet.errors import FormatError

if TYPE_CHECKING:
    from torch import Tensor

    from tersenet._core import Goal

Path = str | os.PathLike[str]
Value = CompressedMatrix | Array
Level = Literal["best", "fast"]
# With more values most bits of a weight are noise, and the archive takes over 1 µs for each.
_MAX_ARCHIVED = 4096
Written = tuple[str, str, tuple[int, ...], CompressedMatrix | CodedArray | bytes]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that a file may ask for; more raises FormatError before anything is allocated.

    Args:
        max_header_nbytes: bytes of the header.
        max_tensor_nbytes: bytes of one tensor, as stored and as dense numbers.
        max_total_nbytes: bytes of all tensors together, each as dense numbers.
        max_ratio: the same, for each byte of the file. What is pruned throughout has a ratio without
            a bound, so none is kept unless asked for.
        max_tensors: tensors and their other names.
    """

    max_header_nbytes: int = 64 << 20
    max_tensor_nbytes: int = 1 << 36
    max_total_nbytes: int = 1 << 40
    max_ratio: int = (1 << 64) - 1
    max_tensors: int = 1 << 20

    def __post_init__(self) -> None:
        """Check that each is a whole number of at least 0."""
        for name, value in vars(self).items():
            if type(value) is not int or not 0 <= value < 1 << 64:
                raise ValueError(f"limits: {name} is {value!r}, expected an integer in [0, 2**64)")


class File:
    """An open `.terse` file: a mapping of names to values that are read when asked for.

    Use it as a context manager, or `close` it. What a name holds does not change while it is
    open, even if another file is saved over it (with `mmap` that is the caller's care).
    """

    def __init__(self, path: Path, mmap: bool, limits: Limits) -> None:
        """Open a file and check its header."""
        self.path = os.fspath(path)
        self._reader: _core.Reader | None = _core.Reader(self.path, mmap, **vars(limits))
        self._names = frozenset(self._reader.keys())

    def keys(self) -> list[str]:
        """Return all names, in the order of the file."""
        return self._open().keys()

    def info(self, name: str) -> dict[str, Any]:
        """Return what the header says of a name.

        `kind` is "matrix" or "array"; `dtype` the type of the elements before compression;
        `shape` the logical shape, of a convolution four numbers; `nbytes` as stored. `alias_of`
        where it is another name of a tensor, `layout`, `coder` and `nnz` of a matrix, and `k`, the
        number of values of its codebook, where it has one; an array that is coded has a `coder`,
        "planes", too.

        Raises:
            KeyError: if there is no such name.
        """
        self._check_name(name)
        return self._open().entry(name)

    def get(self, name: str) -> Value:
        """Return a CompressedMatrix, or a read-only array in its logical shape.

        A matrix is two-dimensional: [shape[0], prod(shape[1:])]. Arrays of bfloat16 are uint16
        and of 8-bit floats uint8, the bit patterns; `info` tells the type.

        Raises:
            KeyError: if there is no such name.
            FormatError: if the tensor is damaged.
        """
        self._check_name(name)
        return self._shaped(name, self._open().get(name))

    def values(
        self, names: Iterable[str], goal: Goal | None = None, resident: Collection[str] = ()
    ) -> dict[str, Value]:
        """Return what `get` gives for each of some names, read side by side on all cores.

        Args:
            names: other names of one tensor are read once for each.
            goal: "speed" or "size" gives matrices the layout that is best for it.
            resident: names of matrices that are multiplied: archives among them become coded or
                grouped, and slices (`sell`) what this CPU multiplies fastest, where others are.

        Raises:
            KeyError: if there is no such name.
            FormatError: if a tensor is damaged: the first one, in the order of the names.
        """
        names = list(names)
        for name in names:
            self._check_name(name)
        values = self._open().get_each(names, goal, set(resident))
        return {name: self._shaped(name, value) for name, value in zip(names, values, strict=True)}

    def _shaped(self, name: str, value: CompressedMatrix | bytes) -> Value:
        if isinstance(value, CompressedMatrix):
            return value
        entry = self._open().entry(name)
        try:
            return dtypes.from_bytes(value, entry["dtype"], entry["shape"])
        except ValueError as error:  # an empty array whose other sides are beyond NumPy
            found = f"shape {list(entry['shape'])}, expected one that NumPy can hold ({error})"
            raise FormatError(f"{self.path}: tensor {name}: {found}") from error

    def metadata(self) -> dict[str, str]:
        """Return the user's own strings."""
        return dict(self._open().metadata())

    @property
    def has_network(self) -> bool:
        """Whether it holds a network's graph, which `Network.load` takes."""
        return self._open().has_graph

    def verify(self) -> None:
        """Read and check everything.

        Raises:
            FormatError: if anything is damaged, saying what and where.
        """
        self._open().verify()

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return self._open().nbytes

    def close(self) -> None:
        """Close the file; what was read from it stays valid."""
        self._reader = None

    def __contains__(self, name: object) -> bool:
        """Tell whether there is such a name."""
        return name in self._names

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.keys())

    def __enter__(self) -> Self:
        """Return the file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    def __repr__(self) -> str:
        """Name the path."""
        state = "closed" if self._reader is None else f"{len(self)} tensors"
        return f"File({self.path!r}, {state})"

    def _open(self) -> _core.Reader:
        if self._reader is None:
            raise ValueError(f"{self.path}: the file is closed, expected an open one")
        return self._reader

    def _check_name(self, name: str) -> None:
        if name not in self._names:
            raise KeyError(f"{self.path} has no tensor {name!r}")


@dataclass(frozen=True, eq=False)
class Typed:
    """A value with the type and shape that a file shall name: what `save` makes of each value.

    `value` is a CompressedMatrix, or an array (of bfloat16 the bit patterns), coded or not. Values
    with equal `identity` are stored once.
    """

    value: Value | CodedArray
    dtype: str
    shape: tuple[int, ...]
    identity: object


def typed(value: Any, name: str) -> Typed:
    """Return a value with its type, shape and identity.

    Raises:
        ValueError: if it is no CompressedMatrix, array or tensor, or of a type no file holds.
    """
    if isinstance(value, Typed):
        return value
    if isinstance(value, CompressedMatrix):
        return Typed(value, "float32", value.shape, id(value))
    if isinstance(value, np.ndarray):
        dtype = value.dtype.name
        if dtypes.NUMPY_NAMES.get(dtype) != dtype:
            expected = ", ".join(n for n, v in dtypes.NUMPY_NAMES.items() if n == v)
            raise ValueError(f"save: {name} is {value.dtype}, expected one of {expected}")
        return Typed(value, dtype, value.shape, _array_identity(value))
    if hasattr(value, "untyped_storage"):
        try:
            dtype, array = dtypes.from_tensor(value)
        except ValueError as error:
            raise ValueError(f"save: {name}: {error}") from None
        return Typed(array, dtype, tuple(value.shape), _tensor_identity(value))
    raise ValueError(
        f"save: {name} is {type(value).__name__}, expected a CompressedMatrix, array or tensor"
    )


def _array_identity(array: Array) -> object:
    if array.size == 0:
        return object()
    pointer = array.__array_interface__["data"][0]
    return pointer, array.shape, array.strides, array.dtype.str


def _tensor_identity(tensor: Tensor) -> object:
    if tensor.numel() == 0:
        return object()
    return str(tensor.device), tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def write(
    path: Path,
    named: Mapping[str, Any],
    goal: Goal | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    level: Level = "best",
    codes: bool | None = None,
) -> int:
    """Write values by name as `tersenet.io.save` does; return the bytes.

    `codes` says whether arrays and codebooks are coded and archives chained; None means for the goal "size".

    Raises:
        OSError: if the file cannot be written; the old one is still there.
        ValueError: if a name, a value or metadata cannot be stored.
    """
    if codes is None:
        codes = goal == "size"
    tensors: list[Written] = []
    aliases: list[tuple[str, str]] = []
    first: dict[object, str] = {}
    for name, value in named.items():
        if type(name) is not str:
            raise ValueError(f"save: name is {name!r}, expected a str")
        known = typed(value, name)
        if known.identity in first:
            aliases.append((name, first[known.identity]))
        else:
            first[known.identity] = name
            tensors.append(_written(name, known, goal, level, codes))
    return _core.write(os.fspath(path), tensors, aliases, strings(metadata), for_size=codes)


def laid_out(
    matrix: CompressedMatrix, shape: tuple[int, ...], goal: Goal | None, level: Level = "best"
) -> CompressedMatrix:
    """Return a matrix in the layout that is best for the goal in a file.

    For size that is archive, too, where it is smaller than all that are for memory.
    """
    if goal is None:
        return matrix
    best = matrix.to(goal=goal, taps=taps(shape))
    return archived(best, shape, level) if goal == "size" else best


def check_level(what: str, goal: str | None, level: str) -> None:
    """Refuse a level that does not exist, or that the goal has none of.

    Raises:
        ValueError: if it is so.
    """
    if level not in ("best", "fast"):
        raise ValueError(f"{what}: level is {level!r}, expected 'best' or 'fast'")
    if level == "fast" and goal != "size":
        raise ValueError(f"{what}: level is 'fast' for goal {goal!r}, expected goal 'size'")


def taps(shape: Sequence[int]) -> int | None:
    """Return the positions of a kernel of this shape, [out, in, ...]; None for a matrix."""
    return max(prod(shape[2:]), 1) if len(shape) > 2 else None


def archived(
    matrix: CompressedMatrix, shape: tuple[int, ...], level: Level = "best"
) -> CompressedMatrix:
    """Return a matrix as an archive, or as it is where that takes no fewer bytes."""
    if matrix.codebook.size > _MAX_ARCHIVED:
        return matrix
    goal: Goal = "size" if level == "best" else "speed"
    archive = matrix.to("archive", goal=goal, taps=taps(shape))
    return archive if archive.nbytes < matrix.nbytes else matrix


def _written(name: str, known: Typed, goal: Goal | None, level: Level, codes: bool) -> Written:
    value = known.value
    if isinstance(value, CompressedMatrix):
        return name, known.dtype, known.shape, laid_out(value, known.shape, goal, level)
    if codes and not isinstance(value, CodedArray):
        value = coded(value, known.dtype)
    stored = value if isinstance(value, CodedArray) else dtypes.to_bytes(value)
    return name, known.dtype, known.shape, stored


def coded(array: Array, dtype: str) -> CodedArray | Array:
    """Return an array coded, or as it is where it takes no more bytes so.

    Args:
        array: any shape; of bfloat16 and 8-bit floats the bit patterns.
        dtype: the type that the file shall name.
    """
    smaller = CodedArray.encode(dtypes.to_bytes(array), dtype)
    return array if smaller is None else smaller


def strings(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Return metadata as a dict.

    Raises:
        ValueError: if a key or a value is no str.
    """
    strings = dict(metadata or {})
    for key, value in strings.items():
        if type(key) is not str or type(value) is not str:
            raise ValueError(f"save: metadata holds {key!r}: {value!r}, expected str and str")
    return strings
