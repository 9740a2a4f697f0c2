"""Decodes layout 9, archive, written from FORMAT.md alone.

::

    Bits ◀── Slot, Predictor ◀── Model: line by line, entry by entry
                                   References, Network or repeats, Values

Plain integers throughout, in the words and letters of the page.
"""

from __future__ import annotations

from copy import deepcopy
from math import isqrt

import numpy as np
from decoder_sections import Matrix, refuse_if

# fmt: off
FALL = (
    32768, 28693, 24743, 21025, 17625, 14595, 11955, 9702, 7812, 6249, 4971, 3938, 3108, 2446,
    1921, 1506, 1179, 922, 720, 562, 439, 342, 267, 208, 162, 126, 98, 77, 60, 47, 36, 28, 22, 17,
    13, 10, 8, 6, 5, 4, 3, 2, 2, 1, 1, 1, 1, 1, 1,
)
# fmt: on
PIECE = 32


def clamp(x: int, low: int, high: int) -> int:
    """Return the nearest number in low … high."""
    return low if x < low else min(x, high)


def _squash(x: int) -> int:
    i, j = abs(x) >> 6, abs(x) & 63
    low = FALL[48] if i == 48 else (FALL[i] * (64 - j) + FALL[i + 1] * j + 32) >> 6
    return max(1, low) if x < 0 else 65_536 - max(1, low)


SQUASH = [_squash(x) for x in range(-3072, 3072)]


def squash(x: int) -> int:
    """Return the probability, of 65,536, of a logit."""
    return SQUASH[clamp(x, -3072, 3071) + 3072]


STRETCH = [
    clamp(
        next((x for x in range(-3072, 3072) if SQUASH[x + 3072] >= 16 * q + 8), 3071), -2047, 2047
    )
    for q in range(4096)
]


def lg(x: int) -> int:
    """Return about four times the logarithm of x > 0 to base 2."""
    b = x.bit_length() - 1
    return 4 * b + (x << 2 >> b & 3)


def bucket(a: int, b: int) -> int:
    """Return the B of the page."""
    return clamp(a - b + 16, 0, 31)


class Bits:
    """The arithmetic decoder."""

    def __init__(self, stream: bytes) -> None:
        self.stream = stream
        self.low, self.high = 0, 0xFFFFFFFF
        self.number = int.from_bytes(stream[:4].ljust(4, b"\0"))
        self.read = 4

    def take(self, p: int) -> int:
        mid = self.low + ((self.high - self.low) * p >> 16)
        bit = int(self.number <= mid)
        if bit:
            self.high = mid
        else:
            self.low = mid + 1
        while (self.low ^ self.high) >> 24 == 0:
            byte = self.stream[self.read] if self.read < len(self.stream) else 0
            self.read += 1
            self.low = self.low << 8 & 0xFFFFFFFF
            self.high = self.high << 8 & 0xFFFFFFFF | 255
            self.number = self.number << 8 & 0xFFFFFFFF | byte
        return bit

    def check(self) -> None:
        refuse_if(self.read > len(self.stream) + 4, "stream: ends too early")

    def finish(self) -> None:
        self.check()
        for size in range(5):
            unit = 1 << 8 * (4 - size)
            least = -(-self.low // unit) * unit
            if least <= self.high:
                end = least.to_bytes(4)[:size]
                refuse_if(self.stream[self.read - 4 :] != end, "stream: another end")
                return
        raise AssertionError


class Slot:
    """An adaptive probability."""

    __slots__ = ("c", "p")

    def __init__(self, p: int = 1 << 21) -> None:
        self.p, self.c = p, 0

    def calm(self) -> None:
        self.c = min(self.c, 60)

    def learn(self, bit: int) -> None:
        self.p += (bit * 0x3FFFFF - self.p) * (131_072 // (2 * self.c + 3)) >> 16
        self.c = min(self.c + 1, 1023)

    def code(self, bits: Bits) -> int:
        bit = bits.take(clamp(self.p >> 6, 3, 65_533))
        self.learn(bit)
        return bit


class Slots(dict):
    """Slots by whatever chooses one."""

    def __init__(self, p: int = 1 << 21) -> None:
        super().__init__()
        self.p = p

    def __missing__(self, key: object) -> Slot:
        slot = self[key] = Slot(self.p)
        return slot


def signed32(x: int) -> int:
    """Return x modulo 2³² as a signed number."""
    return (x + (1 << 31) & 0xFFFFFFFF) - (1 << 31)


class Predictor:
    """Mixes slots and a logit."""

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self.u: dict[object, list[int]] = {}
        self.v: dict[object, list[int]] = {}
        self.c: dict[object, int] = {}
        self.maps: dict[object, list[int]] = {}
        self.first_map = [squash((b - 20) * 128) for b in range(41)]

    def code(
        self, bits: Bits, slots: list[Slot], logit: int, u: object, v: object, m: object
    ) -> int:
        x = [STRETCH[slot.p >> 10] for slot in slots] + [logit]
        first = self.u.setdefault(u, [72_000 // self.inputs] * self.inputs)
        second = self.v.setdefault(v, [0] * self.inputs)
        bins = self.maps.get(m)
        if bins is None:
            bins = self.maps[m] = list(self.first_map)
        total = sum(a * signed32(b + c) for a, b, c in zip(x, first, second, strict=True))
        y = clamp(total >> 16, -2559, 2559)
        q = squash(y)
        i, j = y + 2560 >> 7, y + 2560 & 127
        r = bins[i] * (128 - j) + bins[i + 1] * j >> 7
        bit = bits.take(clamp(q + r >> 1, 8, 65_528))
        bins[i + (j >> 6)] += bit * 65_535 - bins[i + (j >> 6)] >> 6
        c = self.c.get(u, 0)
        e = (bit * 65_536 - q) * (24 + (5120 // (32 + c) if c < 4096 else 0)) >> 8
        self.c[u] = min(c + 1, 4096)
        for n in range(self.inputs):
            step = x[n] * e + 8192 >> 14
            first[n], second[n] = signed32(first[n] + step), signed32(second[n] + step)
        for slot in slots:
            slot.learn(bit)
        return bit


class Values:
    """The codebook's entries, signs and levels."""

    def __init__(self, codebook: np.ndarray) -> None:
        patterns = codebook.tolist()
        self.k = len(patterns)
        self.symbols: dict[int, int] = {}
        self.counts = [0, 0]
        for symbol in sorted(range(self.k), key=lambda i: patterns[i] & 0x7FFFFFFF):
            positive = 1 - (patterns[symbol] >> 31)
            self.symbols[1 + positive + 2 * self.counts[positive]] = symbol
            self.counts[positive] += 1
        fields = [max(1, pattern >> 23 & 255) for pattern in patterns]
        largest = max((x for x in fields if x < 255), default=1)
        magnitudes = []
        for pattern, x in zip(patterns, fields, strict=True):
            f = (pattern & 0x7FFFFF) + (1 << 23 if pattern >> 23 & 255 else 0)
            magnitudes.append(1 << 24 if x == 255 else f >> largest - x)
        mean = max(1, sum(magnitudes) // self.k)
        levels = [clamp(x * 32 // mean, 1, 255) for x in magnitudes]
        self.levels = {0: 0} | {e: levels[symbol] for e, symbol in self.symbols.items()}

    def signed(self, e: int) -> int:
        return -self.levels[e] if e % 2 else self.levels[e]


def sign(e: int) -> int:
    """Return 0 for what is not kept, 1 with the sign bit, 2 without."""
    return 0 if e == 0 else 2 - e % 2


def step(y: int) -> int:
    """Return the A of the page."""
    if y == 0:
        return 16
    size = min(15, (lg(abs(y) // 8 + 1) + 1) // 2)
    return 16 + size if y > 0 else 16 - size


def planes(entries: list[int]) -> tuple[int, int, int]:
    """Return a bit for each entry over 0, bit 1 of each, and bit 0 ^ bit 2."""
    return (
        sum((e > 0) << i for i, e in enumerate(entries)),
        sum((e >> 1 & 1) << i for i, e in enumerate(entries)),
        sum(((e ^ e >> 2) & 1) << i for i, e in enumerate(entries)),
    )


class References:
    """Lines by place, and those that are like the current one."""

    def __init__(self, m: int, n: int) -> None:
        self.most = min(m, max(16, min(4096, (1 << 26) // n)))
        self.lines: list[list[int]] = []
        self.planes: list[list[tuple[int, int, int]]] = []
        self.last = self.newest = 0

    def start_line(self) -> None:
        count = len(self.lines)
        self.places = [(self.last - i) % count for i in range(min(16, count))]
        self.scores = [0] * len(self.places)
        self.penalties = dict.fromkeys(range(count), 0)

    def best(self, start: int, end: int) -> tuple[list[int], int]:
        place = self.places[0]
        there = [min(entry, 65_535) for entry in self.lines[place][start:end]]
        return there, self.penalties[place] if start else 0

    def column(self, j: int) -> list[int]:
        return [min(self.lines[place][j], 65_535) for place in self.places]

    def hints(self, column: list[int]) -> list[int]:
        order = sorted(range(len(self.places)), key=lambda i: (self.scores[i], i))[:3]
        return [column[i] for i in order] + [0] * (3 - len(order))

    def learn(self, column: list[int], entry: int) -> None:
        entry = min(entry, 65_535)
        for i, other in enumerate(column):
            if entry != other:
                self.scores[i] += 6 if entry == 0 else 8 if other == 0 else 4

    def end_piece(self, piece: int, entries: list[int]) -> None:
        kept, one, two = planes(entries)
        for place in self.penalties:
            kept_there, one_there, two_there = self.planes[place][piece]
            unlike = (one ^ one_there) | (two ^ two_there)
            self.penalties[place] += 7 * (kept ^ kept_there).bit_count()
            self.penalties[place] += 4 * (kept & kept_there & unlike).bit_count()
        best = sorted((penalty, place) for place, penalty in self.penalties.items())[:16]
        self.places = [place for _, place in best]
        self.scores = [min(penalty - best[0][0], 200) for penalty, _ in best]
        if best:
            limit = best[-1][0] + 12
            self.penalties = {i: p for i, p in self.penalties.items() if p <= limit}

    def end_line(self, line: list[int]) -> None:
        if self.places:
            there = self.lines[self.places[0]]
            if all(min(a, 65_535) == min(b, 65_535) for a, b in zip(there, line, strict=True)):
                self.last = self.places[0]
                return
        pieces = [planes(line[i : i + PIECE]) for i in range(0, len(line), PIECE)]
        if len(self.lines) < self.most:
            self.newest = len(self.lines)
            self.lines.append(list(line))
            self.planes.append(pieces)
        else:
            self.newest = (self.newest + 1) % self.most
            self.lines[self.newest], self.planes[self.newest] = list(line), pieces
        self.last = self.newest


def added(to: np.ndarray, what: np.ndarray) -> np.ndarray:
    """Return the sum, clamped to 16 bits."""
    return np.clip(to + what, -32_768, 32_767)


class Network:
    """The linear network over the columns."""

    def __init__(self, n: int) -> None:
        self.n, self.q = n, 0
        self.b, self.b1 = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.w, self.w1 = np.zeros((n, n), np.int64), np.zeros((n, n), np.int64)

    def start_line(self) -> None:
        self.l, self.l1 = self.b.copy(), self.b1.copy()

    def keep(self, i: int, signed: int) -> None:
        self.l[i + 1 :] = added(self.l[i + 1 :], self.w[i, i + 1 :])
        self.l1[i + 1 :] = added(self.l1[i + 1 :], self.w1[i, i + 1 :] * 128 * signed >> 16)

    def end_line(self, line: list[int], values: Values) -> None:
        self.q += 1
        signed = np.array([values.signed(e) for e in line], np.int64)
        kept = np.array(line) > 0
        energy = 1024 + int((signed**2).sum())
        o = -(np.array([squash(int(x) >> 4) for x in self.l]) // 2) + 32_767 * kept
        o1 = np.clip(signed * 32 - self.l1, -32_768, 32_767)
        o = o * (60 + 200_000 // (256 + min(self.q, 200_000))) + 16_384 >> 15
        self.b, self.b1 = added(self.b, o), added(self.b1, o1 * 655 >> 16)
        for i in np.flatnonzero(kept).tolist():
            f = abs(int(signed[i])) * 10_066_329 // energy
            f = min(f, 32_767) * (1 if signed[i] > 0 else -1)
            self.w[i, i + 1 :] = added(self.w[i, i + 1 :], o[i + 1 :])
            self.w1[i, i + 1 :] = added(self.w1[i, i + 1 :], o1[i + 1 :] * f >> 16)


def hashed(c: int, node: int, bits: int) -> int:
    """Return H >> (32 − bits)."""
    y = (c ^ node * 0x9E3779B1 & 0xFFFFFFFF) * 0x85EBCA6B & 0xFFFFFFFF
    return ((y ^ y >> 15) * 0xC2B2AE35 & 0xFFFFFFFF) >> 32 - bits


class Learnt:
    """What matrices that go on from each other share."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.empty = [Slot(1 << 16), Slot()]
        self.certain, self.slots = Slots(1 << 17), Slots()
        self.kept, self.value = Predictor(5), Predictor(8)
        self.value_slots, self.low = Slots(), Slots()
        self.slot_bits = clamp(k.bit_length() + 6, 13, 18)
        self.kernels: Network | None = None

    def calmed(self) -> Learnt:
        """Return it as the start of a matrix that goes on."""
        start = deepcopy(self)
        for slots in (start.certain, start.slots, start.value_slots):
            for slot in slots.values():
                slot.calm()
        for slot in start.empty:
            slot.calm()
        start.kept.c.clear()
        start.value.c.clear()
        return start


class Model:
    """What is expected of each entry, and the entries."""

    def __init__(
        self, bits: Bits, values: Values, m: int, n: int, t: int, fast: bool, learnt: Learnt
    ) -> None:
        self.bits, self.values, self.n, self.t, self.learnt = bits, values, n, t, learnt
        self.side = isqrt(t) if isqrt(t) ** 2 == t else t
        self.references = References(m, n)
        has_network = t == 1 and n <= 1024 and m >= 192 and not fast
        self.network = Network(n) if has_network else None
        self.repeats = Slots() if fast else None
        if t > 1:
            if learnt.kernels is None or learnt.kernels.n != t:
                learnt.kernels = Network(t) if t <= 1024 else None
            self.network = learnt.kernels
        self.was_empty = 0
        self.total = self.nlines = 0
        self.columns, self.channels = [0] * n, [0] * (n // t)
        self.densities = [16] * n
        self.before = [0] * n

    def mean(self, lines: int) -> int:
        return lg((64 * self.total + 10_240) // (self.n * lines + 16) + 1)

    def line(self) -> list[int]:
        line = [0] * self.n
        self.was_empty = self.learnt.empty[self.was_empty].code(self.bits)
        if not self.was_empty:
            self.entries(line)
            self.bits.check()
            if self.network:
                self.network.end_line(line[-self.t :] if self.t > 1 else line, self.values)
            self.references.end_line(line)
            levels = [self.values.levels[e] for e in line]
            self.total += sum(levels)
            self.columns = [a + b for a, b in zip(self.columns, levels, strict=True)]
        self.bits.check()
        self.nlines += 1
        return line

    def entries(self, line: list[int]) -> None:
        if self.nlines:
            expected = lg(16 * self.nlines + 8) + self.mean(self.nlines) - 40
            self.densities = [bucket(lg(c + 5), expected) for c in self.columns]
        self.references.start_line()
        if self.network:
            self.network.start_line()
        self.g = self.mean(self.nlines + 1)
        self.s = self.h = self.z = self.w = 0
        last = (0, 0)
        for start in range(0, self.n, PIECE):
            end = min(start + PIECE, self.n)
            repeats = 0
            if self.repeats is not None and self.references.places:
                there, penalty = self.references.best(start, end)
                slot = self.repeats[last, not any(there), min(7, lg(penalty + 1) // 4)]
                repeats = slot.code(self.bits)
                last = (last[1], repeats)
            if repeats:
                line[start:end] = there
                for j, entry in enumerate(there, start):
                    self.w = (self.w << 1 | (entry > 0)) & 15
                    if entry:
                        self.s += self.values.levels[entry]
                        self.z = self.before[j] = entry
            for j in () if repeats else range(start, end):
                if j % self.t == 0:
                    self.h = 0
                    if self.t > 1 and j and self.network:
                        self.network.end_line(line[j - self.t : j], self.values)
                        self.network.start_line()
                column = self.references.column(j)
                entry = line[j] = self.entry(line, j, column)
                self.w = (self.w << 1 | (entry > 0)) & 15
                if any(column):
                    self.references.learn(column, entry)
                if entry:
                    level = self.values.levels[entry]
                    self.s += level
                    self.h += level
                    self.channels[j // self.t] += level
                    self.z = self.before[j] = entry
                    if self.network:
                        self.network.keep(
                            j % self.t if self.t > 1 else j, self.values.signed(entry)
                        )
            if end < self.n:
                self.references.end_piece(start // PIECE, line[start:end])

    def entry(self, line: list[int], j: int, column: list[int]) -> int:
        t, g, pi = self.t, self.g, j % self.t
        d1 = bucket(lg(self.s + 32), lg(16 * j + 64) + g - 40)
        d2 = d3 = self.densities[j]
        kappa = 0
        if t > 1:
            expected = lg(16 * (self.nlines * t + pi) + 16) + g - 40
            d3 = bucket(lg(self.channels[j // t] + 10), expected)
            if pi:
                kappa = 1 + clamp(lg(self.h + 2) - lg(16 * pi + 64) - g + 56, 0, 30)
        unit = pi if t > 1 else j
        x = int(self.network.l[unit]) >> 4 if self.network else 0
        l1 = int(self.network.l1[unit]) if self.network else 0
        big_x = x + 2048 >> 7
        if not any(column) and (x < -1024 if self.network and t == 1 else d3 < 6):
            if not self.learnt.certain[big_x, d3].code(self.bits):
                return 0
            a = [0, 0, 0]
        else:
            a = self.references.hints(column)
            alpha = 4 * (a[0] > 0) + 2 * (a[1] > 0) + (a[2] > 0)
            if t == 1:
                place: object = (2 * j + (a[0] > 0)) % 32_768
            else:
                side = self.side
                place = (
                    kappa,
                    min(pi, 63),
                    pi >= side and line[j - side] > 0,
                    pi % side > 0 and line[j - 1] > 0,
                    j >= t and line[j - t] > 0,
                )
            numbered = self.learnt.slots
            slots = [
                numbered[1, big_x, alpha],
                numbered[2, d3, d1, a[0] > 0],
                numbered[3, self.w, alpha],
                numbered[4, t > 1, place],
            ]
            sets = (alpha, min(pi, 8)), d1, (big_x, alpha)
            if not self.learnt.kept.code(self.bits, slots, x, *sets):
                return 0
        expected = clamp(l1 + 64 >> 6, -120, 120) + 128
        first = next((hint for hint in a if hint), 0)
        contexts = [
            0,
            a[0] << 20 ^ a[1] << 10 ^ a[2],
            self.z,
            (32 * d3 + d1) * 8 + kappa // 4,
            expected,
            (expected // 2) * 64 + d2,
            (expected // 2) * 1024 + first,
        ]
        if t > 1:
            contexts[1], contexts[6] = self.around(line, j, pi)
        return self.entry_value(contexts, a, j, (min(pi, 8), kappa, d1))

    def around(self, line: list[int], j: int, pi: int) -> tuple[int, int]:
        side, across = self.side, pi % self.side

        def level(apart: int, is_there: bool) -> int:
            return self.values.signed(line[j - apart]) if is_there else 0

        above, beside = level(side, pi >= side), level(1, across > 0)
        corners = level(side + 1, pi >= side and across > 0)
        corners += level(side - 1, pi >= side and across + 1 < side)
        around = step(2 * (above + beside) + corners) * 16 + min(pi, 8)
        return around, step(above) * 32 + step(beside)

    def bit(self, contexts: list[int], node: int, u: int, v: int, m: int) -> int:
        slots = [
            self.learnt.value_slots[i, hashed(c, node, self.learnt.slot_bits)]
            for i, c in enumerate(contexts)
        ]
        return self.learnt.value.code(self.bits, slots, 256, u, v, m)

    def entry_value(
        self, contexts: list[int], a: list[int], j: int, near: tuple[int, int, int]
    ) -> int:
        pi, kappa, d1 = near
        negatives, positives = self.values.counts
        is_positive = int(positives > 0)
        if negatives and positives:
            sigma = 3 * sign(a[0]) + sign(a[1])
            last = 3 * sign(self.before[j]) + sign(self.z)
            is_positive = self.bit(contexts, 1, sigma * 9 + pi, kappa, sigma * 9 + last)
        count = positives if is_positive else negatives
        negative = 1 - is_positive
        agrees = int(sign(a[0]) == 1 + is_positive)
        nbits = (self.values.k - 1).bit_length()
        number, theta = 0, 1
        for place in reversed(range(nbits)):
            bit = 0
            if number + (1 << place) < count:
                if nbits - place > 9:
                    bit = self.learnt.low[theta, negative].code(self.bits)
                else:
                    u = 96 + (2 * min(theta, 63) + negative) * 2 + agrees
                    m = 96 + 2 * min(theta, 127) + negative
                    bit = self.bit(contexts, 2 + 2 * theta + negative, u, 32 + d1, m)
            theta = 2 * theta + bit
            number += bit << place
        return 1 + is_positive + 2 * number


def blocks(stream: bytes, m: int, n: int) -> list[tuple[int, int, bytes]]:
    """Return of each block its first line, the one after its last, and its bytes."""
    most = min(m * n >> 24, m // 256)
    size = -(-m // max(most, 1))
    firsts = range(0, m, size)
    at = 8 * (len(firsts) - 1)
    refuse_if(at > len(stream), "stream: too short for the sizes of its blocks")
    found = []
    for i, first in enumerate(firsts):
        is_last = first + size >= m
        end = len(stream) if is_last else at + int.from_bytes(stream[8 * i : 8 * i + 8], "little")
        refuse_if(end > len(stream), f"stream: block {i} goes beyond it")
        found.append((first, min(first + size, m), stream[at:end]))
        at = end
    return found


def archive(
    matrix: Matrix, codebook: np.ndarray, sections: list[bytes], before: Learnt | None
) -> tuple[np.ndarray, Learnt | None]:
    """Return words: 0 or symbol + 1; and what is learnt, of a matrix that keeps something.

    Args:
        matrix: its entry of the header.
        codebook: bit patterns, u32 [k].
        sections: the layout's.
        before: what is learnt up to the end of the matrix that it goes on from, if it does.
    """
    nrows, ncols, nnz = matrix.nrows, matrix.ncols, matrix.nnz
    d, t, apart = matrix.parameters
    stream = sections[0]
    out = np.zeros((nrows, ncols), np.int64)
    if nnz == 0:
        refuse_if(d or t or apart or stream, "something where nothing is kept")
        return out, None
    refuse_if(t == 0 or ncols % t, f"{t} taps")
    refuse_if(d > (3 if t == 1 else 1), f"form {d} with {t} taps")
    m, n = (ncols // t, nrows * t) if d % 2 else (nrows, ncols)
    refuse_if(n >= 1 << 32, f"lines of {n} entries")
    refuse_if(max(m, n) > (len(stream) + 8) << 17, "stream: too short for the shape")
    values = Values(codebook)
    refuse_if(before is not None and max(values.k, before.k) > 512, "too many values to go on")
    symbols = np.zeros(1 + max(values.symbols), np.int32)
    symbols[list(values.symbols)] = [symbol + 1 for symbol in values.symbols.values()]
    lines = np.zeros((m, n), np.int32)
    found = 0
    for first, last, part in blocks(stream, m, n):
        learnt = Learnt(values.k) if before is None else before.calmed()
        model = Model(Bits(part), values, last - first, n, t, d > 1, learnt)
        for line in lines[first:last]:
            entries = model.line()
            if any(entries):
                line[:] = entries
                found += int((line > 0).sum())
            refuse_if(found > nnz, "more than nnz entries")
        model.bits.finish()
    refuse_if(found != nnz, "fewer than nnz entries")
    learnt.k = max(learnt.k, values.k)
    if d % 2:
        lines = lines.reshape(m, nrows, t).transpose(1, 0, 2).reshape(nrows, ncols)
    return symbols[lines], learnt
