"""What the bytes of a `.terse` file are: streams of weights, and everything beside them."""

from __future__ import annotations

from pathlib import Path

import tersenet

START = 16  # magic, size and checksum of the header
CHECKSUM = 4
ALIGNMENT = 64  # of the data, and of what has as many bytes as this in it:
ALIGNED_FROM = 1024


def parts(path: Path) -> dict[str, int]:
    """Return the bytes of each part of a file for size, which add up to the file.

    Nothing in its data is aligned, unless a plain tensor of 1,024 bytes or more is stored as it is: then
    the bytes before that count as codebooks.
    """
    data = path.read_bytes()
    header = int.from_bytes(data[8:12], "little")
    block = 1 << data[START + 2]
    found = dict.fromkeys(("streams", "codebooks", "plain tensors"), 0)
    with tersenet.open(path) as file:
        names = file.keys()
        for name in names:
            entry = file.info(name)
            if "alias_of" not in entry:
                kind = "streams" if entry["kind"] == "matrix" else "plain tensors"
                found[kind] += entry["nbytes"]
    nbytes = _data_nbytes(len(data), header)
    found["codebooks"] = nbytes - found["streams"] - found["plain tensors"]
    found["names"] = sum(len(name.encode()) for name in names)
    found["checksums"] = CHECKSUM * (1 + -(-nbytes // block))
    found["shapes and sizes"] = header + START - found["names"] - found["checksums"]
    found["alignment"] = len(data) - sum(found.values())
    return found


def _data_nbytes(size: int, header: int) -> int:
    """Return how much of a file is data, which start aligned unless they are small."""
    small = size - START - header
    aligned = size - -(-(START + header) // ALIGNMENT) * ALIGNMENT
    return aligned if aligned >= ALIGNED_FROM else small
