"""What the bytes of a `.terse` file are: streams of weights, and everything beside them."""

from __future__ import annotations

from pathlib import Path

import tersenet
from tersenet import CompressedMatrix
from tersenet._core import CodedArray

START = 16  # magic, size and checksum of the header
CHECKSUM = 4
ALIGNMENT = 64  # of the data, and of what has as many bytes as this in it:
ALIGNED_FROM = 1024


def parts(path: Path) -> dict[str, int]:
    """Return the bytes of each part of a file, which add up to the file."""
    data = path.read_bytes()
    header = int.from_bytes(data[8:12], "little")
    block = 1 << data[START + 2]
    found = dict.fromkeys(("streams", "codebooks", "plain tensors"), 0)
    books = set()
    with tersenet.open(path) as file:
        names = file.keys()
        for name in names:
            entry, value = file.info(name), file.get(name)
            if "alias_of" in entry:
                continue
            found["streams" if entry["kind"] == "matrix" else "plain tensors"] += entry["nbytes"]
            if isinstance(value, CompressedMatrix):
                books.add(value.codebook.tobytes())
    found["codebooks"] = sum(map(_codebook_nbytes, books))
    found["names"] = sum(len(name.encode()) for name in names)
    found["checksums"] = CHECKSUM * (1 + -(-_data_nbytes(len(data), header) // block))
    found["shapes and sizes"] = header + START - found["names"] - found["checksums"]
    found["alignment"] = len(data) - sum(found.values())
    return found


def _codebook_nbytes(values: bytes) -> int:
    """Return the bytes of a codebook in a file for size: coded where that is smaller."""
    coded = CodedArray.encode(values, "float32")
    return len(values) if coded is None else coded.nbytes


def _data_nbytes(size: int, header: int) -> int:
    """Return how much of a file is data, which start aligned unless they are small."""
    small = size - START - header
    aligned = size - -(-(START + header) // ALIGNMENT) * ALIGNMENT
    return aligned if aligned >= ALIGNED_FROM else small
