"""Decodes codebooks that are coded together, written from FORMAT.md alone.

In the letters of the page; the bits and slots are those of layout 9.
"""

from __future__ import annotations

import numpy as np
from decoder_archive import Bits, Slot, Slots, lg
from decoder_sections import refuse_if

SIGN = 1 << 31


class Codebooks:
    """What numbers are expected, after those before."""

    def __init__(self, section: bytes) -> None:
        self.bits = Bits(section)
        self.f, self.g, self.s = 0x3C000000, 1 << 20, 1 << 20
        self.z = 0
        self.as_many, self.is_under = Slot(), Slot()
        self.same = Slots(1 << 20)
        self.slots = Slots()

    def plain(self, n: int) -> int:
        number = 0
        for _ in range(n):
            number = number << 1 | self.bits.take(32_768)
        return number

    def number(self, kind: int, expected: int) -> int:
        q = lg(expected)
        if not self.same[kind].code(self.bits):
            is_under = self.slots[kind].code(self.bits)
            apart = 1
            while self.slots[kind, is_under, min(apart, 16)].code(self.bits):
                apart += 1
                refuse_if(apart > 127, "codebook: a step too far")
            q += -apart if is_under else apart
        b = q >> 2
        refuse_if(not 0 <= b <= 31, "codebook: a number of no bits or over 32")
        top = 4 | q & 3
        number = top << b - 2 | self.plain(b - 2) if b >= 2 else top >> 2 - b
        refuse_if(lg(number) != q, "codebook: no such number")
        return number

    def sign(self, n: int) -> list[int]:
        magnitudes: list[int] = []
        expected = 0
        for i in range(n):
            if i == 0:
                is_under = self.is_under.code(self.bits)
                d = self.number(0, (self.g >> self.z) + 1) - 1
                self.f = (self.f >> self.z) + (-d if is_under else d) << self.z
                self.g = d << self.z
                magnitudes.append(self.f)
            else:
                expected = max(1, (self.s if i == 1 else expected) >> self.z)
                step = self.number(min(i, 2), expected) << self.z
                if i == 1:
                    self.s = step
                magnitudes.append(magnitudes[-1] + step)
            refuse_if(not 0 <= magnitudes[-1] < SIGN, "codebook: a magnitude of over 31 bits")
            if i:
                octaves = (magnitudes[-1] >> 23) - (magnitudes[-2] >> 23)
                expected = step >> octaves
        return magnitudes

    def codebook(self, k: int) -> np.ndarray:
        if not self.as_many.code(self.bits):
            self.z = self.plain(5)
        negatives = self.plain(k.bit_length())
        refuse_if(negatives > k, f"codebook: {negatives} of {k} values are negative")
        below = [SIGN | magnitude for magnitude in reversed(self.sign(negatives))]
        values = np.array(below + self.sign(k - negatives), "<u4")
        self.bits.check()
        return values


def decode(section: bytes, sizes: list[int]) -> list[np.ndarray]:
    """Return the bit patterns of codebooks of `sizes` values."""
    codebooks = Codebooks(section)
    values = [codebooks.codebook(k) for k in sizes]
    codebooks.bits.finish()
    return values
