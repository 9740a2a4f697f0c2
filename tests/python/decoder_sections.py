"""What the layouts share, written from FORMAT.md alone: words, fields, Offsets, and how to refuse.

::

    refuse_if(condition, reason)      wherever the page says that a reader must refuse
    words, fields, offsets            a section's numbers, checked as the page says of each
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

ROWS_PER_BASE = 64


class Refused(ValueError):
    """The bytes are not a file that a reader may take; the message says why."""


def refuse_if(condition: object, reason: str) -> None:
    """Raise Refused for a condition that holds."""
    if condition:
        raise Refused(reason)


@dataclass(frozen=True)
class Matrix:
    """What the header says of a compressed matrix."""

    name: str
    layout: int
    coder: int
    nrows: int
    ncols: int
    nnz: int
    parameters: list[int]

    @property
    def is_archive(self) -> bool:
        return self.layout == 9

    @property
    def apart(self) -> int:
        """How many entries of the file before is the one that it goes on from; 0 without one."""
        return self.parameters[2] if self.is_archive and len(self.parameters) > 2 else 0


def word(x: int) -> np.dtype:
    """Return the smallest unsigned type that holds x."""
    return np.dtype(next(t for t in ("u1", "<u2", "<u4", "<u8") if x <= np.iinfo(t).max))


def words(section: bytes, x: int, count: int, what: str) -> np.ndarray:
    """Return word(x) × count."""
    dtype = word(x)
    expected = count * dtype.itemsize
    refuse_if(len(section) != expected, f"{what}: {len(section)} bytes, expected {expected}")
    found = np.frombuffer(section, dtype)
    refuse_if((found > 1 << 62).any(), f"{what}: a number over 2^62")
    return found.astype(np.int64)


def column_words(matrix: Matrix, section: bytes, count: int, what: str) -> np.ndarray:
    """Return word(ncols − 1) × count, checked to be columns."""
    cols = words(section, max(matrix.ncols - 1, 0), count, what)
    refuse_if((cols >= matrix.ncols).any(), f"{what}: a column ≥ ncols = {matrix.ncols}")
    return cols


def bit_array(section: bytes) -> np.ndarray:
    """Return the bits of a section of `fields`, lowest first."""
    return np.unpackbits(np.frombuffer(section, np.uint8), bitorder="little")


def fields(bits: np.ndarray, start: int, width: int, count: int) -> np.ndarray:
    """Return `count` fields of `width` bits from bit `start` on."""
    taken = bits[start : start + count * width].reshape(count, width).astype(np.int64)
    return taken @ (np.int64(1) << np.arange(width, dtype=np.int64))


def rises(numbers: np.ndarray) -> bool:
    """Tell whether each number is over the one before it."""
    return len(numbers) < 2 or bool((numbers[1:] > numbers[:-1]).all())


def check_starts(numbers: np.ndarray, end: int, what: str) -> None:
    """Refuse numbers that do not start with 0, fall, or do not end with `end`."""
    refuse_if(numbers[0] != 0, f"{what}: starts with {numbers[0]}, expected 0")
    refuse_if((np.diff(numbers) < 0).any(), f"{what}: falls")
    refuse_if(numbers[-1] != end, f"{what}: ends with {numbers[-1]}, expected {end}")


def offsets(
    section: bytes, parameters: list[int], n: int, end: int, what: str, *, shortest: bool = False
) -> list[int]:
    """Return the n + 1 Offsets that `section` and (min, w, v) hold."""
    least, width, base_width = parameters
    refuse_if(max(width, base_width) > 56, f"{what}: a width over 56")
    refuse_if(least >= 1 << 56, f"{what}: min ≥ 2^56")
    nbases = -(-n // ROWS_PER_BASE) + 1
    nbits = nbases * base_width + n * width
    refuse_if(len(section) != -(-nbits // 8), f"{what}: {len(section)} bytes for {nbits} bits")
    bits = bit_array(section)
    bases = fields(bits, 0, base_width, nbases).tolist()
    lengths = [least + x for x in fields(bits, nbases * base_width, width, n).tolist()]
    found = list(accumulate(lengths, initial=0))
    refuse_if(bases != [*found[:n:ROWS_PER_BASE], found[n]], f"{what}: a base is not the sum")
    refuse_if(found[n] != end, f"{what}: ends with {found[n]}, expected {end}")
    if shortest:
        greatest, lowest = max(lengths, default=0), min(lengths, default=0)
        form = [lowest, (greatest - lowest).bit_length(), end.bit_length()]
        refuse_if(parameters != form, f"{what}: parameters {parameters}, expected {form}")
        refuse_if(bits[nbits:].any(), f"{what}: padding is not zero")
    return found
