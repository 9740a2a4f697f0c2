"""Decodes what is coded by planes, written from FORMAT.md alone.

::

    sizes of the chunks ─▶ chunk = form │ (kept │ ones │) a plane for each byte of a word
                           plane = form │ bytes, one byte, or a code and four lanes of codewords
          ─▶ words, rotated back ─▶ bytes of elements

Codewords are read one by one.
"""

from __future__ import annotations

import numpy as np
from decoder_layouts import Code, stream_bits
from decoder_sections import bit_array, fields, refuse_if

CHUNK_WORDS = 1 << 18
LONGEST = 11
LANES = 4


class Cursor:
    """Walks bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, n: int) -> bytes:
        refuse_if(n > len(self.data) - self.at, f"planes: {n} bytes are wanted at {self.at}")
        self.at += n
        return self.data[self.at - n : self.at]

    def u8(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            refuse_if(value >= 1 << 64 or shift > 63, "planes: a varint of more than 64 bits")
            if byte < 0x80:
                refuse_if(byte == 0 and shift > 0, "planes: a varint that ends with an empty byte")
                return value
            shift += 7

    def end(self, what: str) -> None:
        refuse_if(self.at != len(self.data), f"planes: {what} ends at {self.at}")


def decode(section: bytes, nbytes: int, word_nbytes: int, is_float: bool) -> bytes:
    """Return the `nbytes` bytes of elements whose words take `word_nbytes` each."""
    cursor = Cursor(section)
    n = nbytes // word_nbytes
    counts = [min(CHUNK_WORDS, n - first) for first in range(0, n, CHUNK_WORDS)]
    sizes = [cursor.varint() for _ in counts[1:]]
    left = len(section) - cursor.at - sum(sizes)
    refuse_if(left < 0, "planes: chunks that pass the end")
    sizes += [left] if counts else []
    words = [
        _chunk(Cursor(cursor.take(size)), count, word_nbytes)
        for size, count in zip(sizes, counts, strict=True)
    ]
    cursor.end("the section")
    flat = np.concatenate([np.zeros(0, np.uint64), *words])
    if is_float:
        bits = np.uint64(8 * word_nbytes - 1)
        flat = flat >> np.uint64(1) | (flat & np.uint64(1)) << bits
    return flat.astype(f"<u{word_nbytes}").tobytes()


def _chunk(cursor: Cursor, n: int, word_nbytes: int) -> np.ndarray:
    form = cursor.u8()
    refuse_if(form > 1, f"planes: a chunk of form {form}")
    kept = np.ones(n, bool)
    words = np.zeros(n, np.uint64)
    if form == 1:
        kept = _bits(cursor, n)
        words[~kept] = _bits(cursor, n - int(kept.sum()))
    for byte in range(word_nbytes):
        plane = _plane(cursor, int(kept.sum()))
        words[kept] |= np.frombuffer(plane, "u1").astype(np.uint64) << np.uint64(8 * byte)
    cursor.end("a chunk")
    return words


def _bits(cursor: Cursor, n: int) -> np.ndarray:
    bits = bit_array(_plane(cursor, -(-n // 8)))
    refuse_if(bits[n:].any(), "planes: a bit after the last is not zero")
    return bits[:n].astype(bool)


def _plane(cursor: Cursor, c: int) -> bytes:
    form = cursor.u8()
    if form == 0:
        return cursor.take(c)
    if form == 1:
        return cursor.take(1) * c
    refuse_if(form != 2, f"planes: a plane of form {form}")
    first, count = cursor.u8(), cursor.u8() + 1
    bits = bit_array(cursor.take(-(-count // 2)))
    lengths = fields(bits, 0, 4, count).tolist()
    refuse_if(bits[4 * count :].any(), "planes: padding of code lengths is not zero")
    refuse_if(max(lengths) > LONGEST, "planes: a codeword over 11 bits")
    of_byte = [0] * 256
    for i, length in enumerate(lengths):
        of_byte[(first + i) % 256] = length
    code = Code(of_byte)
    refuse_if(len(code) < 2, "planes: fewer than two codewords")
    sizes = [cursor.varint() for _ in range(LANES)]
    nbits = sum(sizes)
    stream = stream_bits(cursor.take(4 * -(-nbits // 32)), nbits)
    quarter = -(-c // LANES)
    found: list[int] = []
    start = 0
    for lane, size in enumerate(sizes):
        length = min(c, (lane + 1) * quarter) - min(c, lane * quarter)
        symbols, at = code.read(stream, start, length)
        start += size
        refuse_if(at != start, f"planes: lane {lane} ends at {at}, expected {start}")
        found += symbols
    return bytes(found)
