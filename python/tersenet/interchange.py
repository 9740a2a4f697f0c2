"""Between `.terse` and safetensors files, without torch and without that library.

::

    safetensors:  u64 size of the header │ JSON header, padded │ data
                  {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...,
                   "__metadata__": {"key": "value"}}

Reading goes tensor by tensor, so that one dense tensor at a time is in memory; the compressed ones
are kept until the file is written. Writing decompresses one tensor at a time. Both ways every bit
of every tensor stays. A safetensors file has no second names, so tied tensors are written under
each name.

Why not the library: it holds all tensors in memory to write a file, and its NumPy face has no
bfloat16.

Source: the format's description in the documentation of safetensors.
"""

from __future__ import annotations

import json
import os
from builtins import open as open_file
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TypeGuard

import numpy as np

from tersenet._core import CompressedMatrix
from tersenet.dtypes import (
    MATRIX_NAMES,
    NUMPY_NAMES,
    Array,
    from_bytes,
    narrowed,
    to_bytes,
    widened,
)
from tersenet.errors import FormatError
from tersenet.files import File, Limits, Path, Typed, Value, archived, coded, taps, write
from tersenet.replacing import Replacing

if TYPE_CHECKING:
    from tersenet._core import Goal

_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
_CODES = {name: code for code, name in _NAMES.items()}


class SafetensorsFile:
    """A safetensors file, whose header is checked when opened and whose tensors are read one by one.

    `types` are the type and the shape of each tensor, `metadata` the file's own strings.
    """

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        """Open a file and check its header.

        Raises:
            OSError: if it cannot be read.
            FormatError: if it is no safetensors file, or beyond the limits.
        """
        self.path = os.fspath(path)
        self._limits = limits or Limits()
        with open_file(self.path, "rb") as file:
            nbytes = os.fstat(file.fileno()).st_size
            self._start, header = self._header(file, nbytes)
        self.metadata = self._strings(header.pop("__metadata__", {}))
        entries = {name: self._entry(name, entry) for name, entry in header.items()}
        self.types = {name: (dtype, shape) for name, (dtype, shape, *_) in entries.items()}
        self._places = {name: (start, stop) for name, (*_, start, stop) in entries.items()}
        end = 0
        for name, (start, stop) in sorted(self._places.items(), key=lambda item: item[1]):
            if start != end:
                self._fail(f"tensor {name!r} starts at {start}, expected {end}")
            end = stop
        if self._start + end != nbytes:
            self._fail(f"the tensors end at byte {self._start + end}, expected {nbytes}")

    def tensors(self) -> Iterator[tuple[str, str, Array]]:
        """Yield name, type and values of each tensor, reading one at a time.

        Raises:
            OSError: if the file cannot be read.
            FormatError: if it is shorter than it was.
        """
        for name, (dtype, _) in self.types.items():
            yield name, dtype, self.get(name)

    def get(self, name: str) -> Array:
        """Return the values of one tensor, read now; 16-bit and 8-bit floats as bit patterns.

        Raises:
            KeyError: if there is no such name.
            OSError: if the file cannot be read.
            FormatError: if it is shorter than it was.
        """
        dtype, shape = self.types[name]
        start, stop = self._places[name]
        with open_file(self.path, "rb") as file:
            file.seek(self._start + start)
            data = file.read(stop - start)
        if len(data) != stop - start:
            self._fail(f"tensor {name!r} has {len(data)} bytes, expected {stop - start}")
        return from_bytes(data, dtype, shape)

    def _header(self, file: BinaryIO, nbytes: int) -> tuple[int, dict[str, Any]]:
        size = int.from_bytes(file.read(8), "little")
        if nbytes < 8 or size > nbytes - 8:
            self._fail(f"a header of {size} bytes in a file of {nbytes}")
        if size > self._limits.max_header_nbytes:
            found = f"a header of {size} bytes"
            self._fail(
                f"{found}, expected at most {self._limits.max_header_nbytes}: raise the limit"
            )
        try:
            header = json.loads(file.read(size).decode(), object_pairs_hook=self._unique)
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            self._fail(f"the header is no JSON: {error}")
        if not isinstance(header, dict) or len(header) > self._limits.max_tensors:
            self._fail(f"the header is no object of at most {self._limits.max_tensors} entries")
        return 8 + size, header

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            self._fail("the header holds a name twice")
        return entries

    def _strings(self, metadata: object) -> dict[str, str]:
        if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
            self._fail("__metadata__ is no object of strings")
        return metadata

    def _entry(self, name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
        if not isinstance(entry, dict):
            self._fail(f"tensor {name!r} is {entry!r}, expected an object")
        dtype = _NAMES.get(str(entry.get("dtype")))
        shape, offsets = entry.get("shape"), entry.get("data_offsets")
        if dtype is None:
            expected = ", ".join(_NAMES)
            self._fail(f"tensor {name!r} has dtype {entry.get('dtype')!r}, expected {expected}")
        if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
            self._fail(f"tensor {name!r} has shape {shape!r} and data_offsets {offsets!r}")
        nbytes = prod(shape) * np.dtype(NUMPY_NAMES[dtype]).itemsize
        start, stop = offsets
        if stop - start != nbytes or nbytes > self._limits.max_tensor_nbytes:
            self._fail(
                f"tensor {name!r} has {stop - start} bytes, expected {nbytes}, "
                f"and at most {self._limits.max_tensor_nbytes}"
            )
        return dtype, tuple(shape), start, stop

    def _fail(self, what: str) -> NoReturn:
        raise FormatError(f"{self.path}: no valid safetensors file: {what}")


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)


def from_safetensors(
    source: Path,
    target: Path,
    *,
    goal: Goal = "size",
    layout: str = "auto",
    coder: str = "auto",
    limits: Limits | None = None,
) -> int:
    """Write a safetensors file as a `.terse` file, losslessly; return the bytes.

    Float tensors of two dimensions or more become compressed matrices where that is smaller and
    the layout can hold them; the others stay plain. For the goal "size" plain tensors and codebooks
    are coded where that is smaller; a matrix whose layout is "auto" must beat that. Metadata is
    kept.

    Raises:
        OSError: if a file cannot be read or written; an old target is still there.
        FormatError: if the source is damaged.
        ValueError: if the layout, coder or goal does not exist.
    """
    CompressedMatrix.compress(np.zeros((1, 1), np.float32), layout, coder, goal)
    file = SafetensorsFile(source, limits)
    tensors: dict[str, Typed] = {}
    for name, dtype, array in file.tensors():
        plain = coded(array, dtype) if goal == "size" else array
        most = plain.nbytes if layout == "auto" else array.nbytes
        matrix = _smaller(array, dtype, layout, coder, goal, most)
        value = plain if matrix is None else matrix
        tensors[name] = Typed(value, dtype, array.shape, object())
    return write(target, tensors, metadata=file.metadata, codes=goal == "size")


def to_safetensors(source: Path, target: Path, *, limits: Limits | None = None) -> int:
    """Write a `.terse` file as a safetensors file of dense tensors; return the bytes.

    Raises:
        OSError: if a file cannot be read or written; an old target is still there.
        FormatError: if the source is damaged.
        ValueError: if a type or a name does not exist in safetensors.
    """
    if os.path.exists(target) and os.path.samefile(source, target):
        found = f"{os.fspath(target)} is the source"
        raise ValueError(f"to_safetensors: {found}, expected another file to write")
    with File(source, False, limits or Limits()) as file:
        infos = {name: file.info(name) for name in file}
        header: dict[str, Any] = {}
        if metadata := file.metadata():
            header["__metadata__"] = metadata
        end = 0
        order = sorted(infos, key=lambda name: -_itemsize(infos[name]))  # large types stay aligned
        for name in order:
            info = infos[name]
            if info["dtype"] not in _CODES or name == "__metadata__":
                raise ValueError(
                    f"to_safetensors: {name} is {info['dtype']}, expected another name than "
                    f"__metadata__ and one of {', '.join(_CODES)}"
                )
            start, end = end, end + prod(info["shape"]) * _itemsize(info)
            shape, offsets = list(info["shape"]), [start, end]
            header[name] = {
                "dtype": _CODES[info["dtype"]],
                "shape": shape,
                "data_offsets": offsets,
            }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with Replacing(target) as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                out.write(_dense_bytes(file.get(name), infos[name]["dtype"]))
        return 8 + len(text) + end


def _smaller(
    array: Array, dtype: str, layout: str, coder: str, goal: Goal, most: int
) -> CompressedMatrix | None:
    """Return the matrix of a tensor if it takes fewer bytes than `most`, else None."""
    if dtype not in MATRIX_NAMES or array.ndim < 2 or array.size == 0:
        return None
    values = widened(array, dtype)
    if values is None:
        return None
    flat = np.ascontiguousarray(values.reshape(array.shape[0], -1))
    try:
        matrix = CompressedMatrix.compress(flat, layout, coder, goal, taps=taps(array.shape))
    except ValueError:
        return None
    if (layout, coder, goal) == ("auto", "auto", "size"):
        matrix = archived(matrix, array.shape)
    return matrix if matrix.nbytes < most else None


def _itemsize(info: dict[str, Any]) -> int:
    return np.dtype(NUMPY_NAMES[info["dtype"]]).itemsize


def _dense_bytes(value: Value, dtype: str) -> bytes:
    if isinstance(value, CompressedMatrix):
        value = narrowed(value.decompress(), dtype)
    return to_bytes(value)
