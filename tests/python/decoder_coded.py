"""Decodes layout 8, coded, written from FORMAT.md alone.

::

    counts ──▶ State of each of 128 ──┐
    block = gap classes │ rank classes │ gap planes │ rank planes │ first states
          ──▶ classes and plain bits of each element ──▶ positions, numbers

One bit, one state, one element at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from decoder_sections import Matrix, bit_array, fields, offsets, refuse_if

STATES = 128
LANES = 64
NAMES = ("counts", "order", "lengths", "gap_ends", "ends", "blocks")


class State(NamedTuple):
    """What a state stands for."""

    symbol: int
    nbits: int
    base: int


def states_of(counts: list[int]) -> list[State]:
    """Return the 128 states of a code."""
    parts = [
        (Fraction(2 * j + 1, count), c, j) for c, count in enumerate(counts) for j in range(count)
    ]
    states = []
    for _, c, j in sorted(parts):
        x = counts[c] + j
        nbits = 8 - x.bit_length()
        states.append(State(c, nbits, (x << nbits) - STATES))
    return states


def number(bits: list[int]) -> int:
    """Return the number whose bits these are, lowest first."""
    return sum(bit << i for i, bit in enumerate(bits))


def steps(n: int) -> Iterator[list[int]]:
    """Yield the elements of each step in the order of their lanes."""
    for first in range(0, n, LANES):
        of_lanes = [first + lane // 4 + lane % 4 * 16 for lane in range(LANES)]
        yield [element for element in of_lanes if element < n]


class Bits:
    """Bytes read bit by bit."""

    def __init__(self, data: bytes, what: str) -> None:
        self.bits = bit_array(data).tolist()
        self.at = 0
        self.what = what

    def take(self, n: int) -> int:
        refuse_if(self.at + n > len(self.bits), f"{self.what}: ends too early")
        taken = self.bits[self.at : self.at + n]
        self.at += n
        return number(taken)

    def finish(self) -> None:
        rest = self.bits[self.at :]
        refuse_if(len(rest) >= 8 or any(rest), f"{self.what}: ends too late")


def read_classes(code: list[State] | None, first: list[int], data: bytes, n: int) -> list[int]:
    """Return the class of each element of a block."""
    bits = Bits(data, "classes")
    classes = [0] * n
    if code is not None:
        states = list(first)
        for step in steps(n):
            for element in step:
                state = code[states[element % LANES]]
                classes[element] = state.symbol
                states[element % LANES] = state.base + bits.take(state.nbits)
        refuse_if(any(states), "a lane does not end in state 0")
    bits.finish()
    return classes


def read_planes(nbits: int, data: bytes, n: int) -> list[int]:
    """Return the plain bits of each element of a block."""
    bits = Bits(data, "planes")
    plain = [0] * n
    for step in steps(n):
        for bit in range(nbits):
            for element in step:
                plain[element] |= bits.take(1) << bit
    bits.finish()
    return plain


def coded(matrix: Matrix, k: int, sections: list[bytes]) -> np.ndarray:
    nrows, ncols, nnz = matrix.nrows, matrix.ncols, matrix.nnz
    parameters = matrix.parameters
    out = np.zeros(nrows * ncols, np.int64)
    if nnz == 0:
        refuse_if(any(parameters) or any(sections), "something where nothing is kept")
        return out.reshape(nrows, ncols)
    form, block_rows, gap_low, gap_classes = parameters[:4]
    rank_low, is_ordered, nelements, gap_nbytes = parameters[4:8]
    refuse_if(form > 1 or is_ordered > 1, "a flag over 1")
    refuse_if(not 1 <= block_rows <= 65_536, f"blocks of {block_rows} rows")
    refuse_if(block_rows * ncols >= 1 << 32, "blocks of 2^32 positions")
    refuse_if(gap_low > 14 or rank_low > 15, "too many plain bits")
    refuse_if(not 1 <= gap_classes <= STATES, f"{gap_classes} gap classes")
    refuse_if(form == 1 and (gap_low, gap_classes) != (0, 1), "gaps where every entry is coded")
    alphabet = k + form
    rank_classes = -(-alphabet // (1 << rank_low))
    refuse_if(alphabet > 65_536 or rank_classes > STATES, f"{rank_classes} rank classes")
    refuse_if(nelements < nnz, "fewer elements than nnz")
    refuse_if(form == 1 and nelements != nrows * ncols, "not an element for each entry")
    refuse_if(form == 0 and gap_classes == 1 and nelements != nnz, "an escape without a class")

    stored = [n if n > 1 else 0 for n in (gap_classes, rank_classes)]
    refuse_if(len(sections[0]) != -(-7 * sum(stored) // 8), f"counts: {len(sections[0])} bytes")
    bits = bit_array(sections[0])
    refuse_if(bits[7 * sum(stored) :].any(), "counts: padding is not zero")
    counts = fields(bits, 0, 7, sum(stored)).tolist()
    codes: list[list[State] | None] = []
    for n in stored:
        mine, counts = counts[:n], counts[n:]
        refuse_if(n and (sum(mine) != STATES or max(mine) > 64), "counts: not those of a code")
        codes.append(states_of(mine) if n else None)

    width = (alphabet - 1).bit_length() if is_ordered else 0
    refuse_if(len(sections[1]) != -(-alphabet * width // 8), f"order: {len(sections[1])} bytes")
    order = list(range(alphabet))
    if is_ordered:
        bits = bit_array(sections[1])
        refuse_if(bits[alphabet * width :].any(), "order: padding is not zero")
        found = fields(bits, 0, width, alphabet).tolist()
        refuse_if(sorted(found) != order, "order: not each number once")
        order = found

    nblocks = -(-nrows // block_rows)
    totals = (nelements, gap_nbytes, len(sections[5]))
    lengths, gap_ends, ends = (
        offsets(sections[2 + i], parameters[8 + 3 * i : 11 + 3 * i], nblocks, total, NAMES[2 + i])
        for i, total in enumerate(totals)
    )
    for block in range(nblocks):
        first = block * block_rows * ncols
        limit = min(block_rows, nrows - block * block_rows) * ncols
        n = lengths[block + 1] - lengths[block]
        refuse_if(form == 1 and n != limit, f"block {block}: another number of elements")
        data = sections[5][ends[block] : ends[block + 1]]
        nstates = min(n, LANES) * sum(code is not None for code in codes)
        gap_size = gap_ends[block + 1] - gap_ends[block]
        rest = [-(-n * gap_low // 8), -(-n * rank_low // 8), -(-nstates * 7 // 8)]
        rank_size = len(data) - gap_size - sum(rest)
        refuse_if(rank_size < 0, f"block {block}: too short")
        # A block of so many elements as to take long would be refused for its size or positions.
        refuse_if(n > limit, f"block {block}: more elements than positions")
        parts = []
        for size in (gap_size, rank_size, *rest):
            parts.append(data[:size])
            data = data[size:]
        bits = Bits(parts[4], "states")
        firsts = [
            [bits.take(7) for _ in range(min(n, LANES))] if code is not None else []
            for code in codes
        ]
        bits.finish()
        highs = read_classes(codes[0], firsts[0], parts[0], n)
        lows = read_planes(gap_low, parts[2], n)
        classes = read_classes(codes[1], firsts[1], parts[1], n)
        plain = read_planes(rank_low, parts[3], n)
        position = 0
        for i in range(n):
            position += (highs[i] << gap_low) + lows[i]
            rank = (classes[i] << rank_low) + plain[i]
            if gap_classes > 1 and highs[i] == gap_classes - 1:
                continue
            refuse_if(position >= limit, f"block {block}: a position past its end")
            refuse_if(rank >= alphabet, f"block {block}: a rank past the last")
            # Numbers of form 1 are 0 or symbol + 1 already.
            out[first + position] = order[rank] + 1 - form
            position += 1
        refuse_if(position > limit, f"block {block}: a gap past its end")
    return out.reshape(nrows, ncols)
