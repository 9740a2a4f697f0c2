"""Decodes one compressed matrix from its sections, written from FORMAT.md alone.

::

    layout ──▶ values, u32 [nrows, ncols]                           dense, csr
           ──▶ words, [nrows, ncols]: 0 or symbol + 1 ──codebook──▶ values      the others

A function for each layout, in the order of the page; what several of them share is in
decoder_sections.py, layout 8 in decoder_coded.py and layout 9 in decoder_archive.py. Values are bit
patterns (u32) throughout, so that NaN payloads and −0.0 pass untouched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from decoder_archive import Learnt, archive
from decoder_coded import coded
from decoder_sections import (
    Matrix,
    Refused,
    bit_array,
    check_starts,
    column_words,
    fields,
    offsets,
    refuse_if,
    rises,
    word,
    words,
)

__all__ = ["LAYOUTS", "Learnt", "Matrix", "Refused", "decode", "refuse_if"]

MAX_CODEWORD = 24
ROWS_PER_BLOCK = 64
ROWS_PER_SEGMENT = 65_535


def decode(
    matrix: Matrix, codebook: np.ndarray, sections: list[bytes], before: Learnt | None = None
) -> tuple[np.ndarray, Learnt | None]:
    """Return the matrix as bit patterns, u32 [nrows, ncols], and what an archive has learnt.

    Args:
        matrix: its entry of the header.
        codebook: bit patterns, u32 [k]; k = 0 where it has none.
        sections: the layout's, in order.
        before: what was learnt up to the end of the archive that it goes on from.

    Raises:
        Refused: wherever FORMAT.md says that a reader must refuse.
    """
    layout, learnt = LAYOUTS[matrix.layout], None
    try:
        npar = len(matrix.parameters)
        refuse_if(npar not in layout.nparameters, f"{npar} parameters")
        if layout.has_codebook:
            refuse_if((len(codebook) > 0) != (matrix.nnz > 0), "a codebook without nnz or reverse")
            table = np.concatenate([np.zeros(1, np.uint32), codebook.astype(np.uint32)])
            if layout.decode is None:
                words, learnt = archive(matrix, codebook, sections, before)
            else:
                words = layout.decode(matrix, len(codebook), sections)
            refuse_if((words > len(codebook)).any(), "a symbol beyond the codebook")
            values = table[words]
        else:
            assert layout.decode is not None
            refuse_if(len(codebook), "a codebook beside values")
            values = layout.decode(matrix, 0, sections)
        kept = np.count_nonzero(values)
        refuse_if(kept != matrix.nnz, f"{kept} weights are kept, expected nnz = {matrix.nnz}")
    except Refused as error:
        raise Refused(f"{matrix.name!r}: {layout.name}: {error}") from error
    return values, learnt


# Layouts that hold values.


def dense(matrix: Matrix, k: int, sections: list[bytes]) -> np.ndarray:
    del k
    nwords = matrix.nrows * matrix.ncols
    refuse_if(len(sections[0]) != 4 * nwords, f"values: {len(sections[0])} bytes")
    return np.frombuffer(sections[0], "<u4").reshape(matrix.nrows, matrix.ncols)


def csr(matrix: Matrix, k: int, sections: list[bytes]) -> np.ndarray:
    del k
    indptr = words(sections[0], matrix.nnz, matrix.nrows + 1, "indptr")
    check_starts(indptr, matrix.nnz, "indptr")
    cols = column_words(matrix, sections[1], matrix.nnz, "cols")
    refuse_if(len(sections[2]) != 4 * matrix.nnz, f"values: {len(sections[2])} bytes")
    values = np.frombuffer(sections[2], "<u4")
    refuse_if((values == 0).any(), "values: +0.0")
    out = np.zeros((matrix.nrows, matrix.ncols), np.uint32)
    for row in range(matrix.nrows):
        part = slice(indptr[row], indptr[row + 1])
        refuse_if(not rises(cols[part]), f"cols: row {row} does not rise")
        out[row, cols[part]] = values[part]
    return out


# Layouts that hold words of 0 or symbol + 1.


def index_map(matrix: Matrix, k: int, sections: list[bytes]) -> np.ndarray:
    found = words(sections[0], k, matrix.nrows * matrix.ncols, "symbols")
    return found.reshape(matrix.nrows, matrix.ncols)


def cser(matrix: Matrix, k: int, sections: list[bytes]) -> np.ndarray:
    cols = column_words(matrix, sections[0], matrix.nnz, "colI")
    ngroups, rest = divmod(len(sections[1]), word(k).itemsize)
    refuse_if(rest, "OI: no whole number of words")
    group_values = words(sections[1], k, ngroups, "OI")
    group_starts = words(sections[2], matrix.nnz, ngroups + 1, "OPtr")
    check_starts(group_starts, matrix.nnz, "OPtr")
    refuse_if(not rises(group_starts), "OPtr: an empty group")
    first_groups = words(sections[3], ngroups, matrix.nrows + 1, "rowPtr")
    check_starts(first_groups, ngroups, "rowPtr")
    refuse_if((group_values == 0).any() or (group_values > k).any(), "OI: a value not in 1 … k")
    out = np.zeros((matrix.nrows, matrix.ncols), np.int64)
    for row in range(matrix.nrows):
        refuse_if(
            not rises(group_values[first_groups[row] : first_groups[row + 1]]),
            f"OI: row {row} does not rise",
        )
        for group in range(first_groups[row], first_groups[row + 1]):
            part = cols[group_starts[group] : group_starts[group + 1]]
            refuse_if(not rises(part), f"colI: group {group} does not rise")
            refuse_if(out[row, part].any(), f"colI: a column twice in row {row}")
            out[row, part] = group_values[group]
    return out


def cla(matrix: Matrix, k: int, sections: list[bytes]) -> np.ndarray:
    nrows = matrix.nrows
    kinds = list(sections[0])
    sizes = words(sections[1], max(nrows, matrix.ncols), 2 * len(kinds), "sizes").tolist()
    widths, ntuples = sizes[0::2], sizes[1::2]
    for kind, w, t in zip(kinds, widths, ntuples, strict=True):
        refuse_if(kind > 3, f"kinds: {kind}")
        refuse_if(w == 0, "sizes: a group without columns")
        most = (nrows, nrows, min(nrows, 65_536), 0)[kind]
        refuse_if(not (kind < 3) <= t <= most, f"sizes: {t} tuples in a group of kind {kind}")
    shapes = list(zip(kinds, widths, ntuples, strict=True))
    cols = column_words(matrix, sections[2], sum(widths), "cols")
    tuples = words(sections[3], k, sum(w * t for _, w, t in shapes), "tuples")
    nlists = sum(t for kind, _, t in shapes if kind < 2)
    refuse_if(len(sections[5]) % 2, "lists: an odd number of bytes")
    lists = np.frombuffer(sections[5], "<u2").tolist()
    starts = words(sections[4], len(lists), nlists + 1, "starts")
    check_starts(starts, len(lists), "starts")
    codes = {
        np.dtype("u1"): words(sections[6], 255, nrows * _count_codes(shapes, wide=False), "codes8"),
        np.dtype("<u2"): words(
            sections[7], 65_535, nrows * _count_codes(shapes, wide=True), "codes16"
        ),
    }
    nplain = sum(w * nrows for kind, w, _ in shapes if kind == 3)
    symbols = words(sections[8], k, nplain, "symbols")

    out = np.zeros((nrows, matrix.ncols), np.int64)
    is_grouped = np.zeros(matrix.ncols, bool)
    list_number = 0
    for kind, w, t in shapes:
        group_cols, cols = cols[:w], cols[w:]
        refuse_if(not rises(group_cols), "cols: a group does not rise")
        refuse_if(is_grouped[group_cols].any(), "cols: a column in two groups")
        is_grouped[group_cols] = True
        group_tuples, tuples = tuples[: w * t].reshape(t, w), tuples[w * t :]
        if kind == 3:
            out[:, group_cols] = symbols[: w * nrows].reshape(w, nrows).T
            symbols = symbols[w * nrows :]
        elif kind == 2:
            dtype = word(t - 1)
            group_codes, codes[dtype] = codes[dtype][:nrows], codes[dtype][nrows:]
            refuse_if((group_codes >= t).any(), f"codes: a code ≥ {t}")
            out[:, group_cols] = group_tuples[group_codes]
        else:
            refuse_if((group_tuples == 0).all(axis=1).any(), "tuples: one that is all 0")
            is_listed = np.zeros(nrows, bool)
            for one in group_tuples:
                start, end = starts[list_number], starts[list_number + 1]
                rows = _rows_of_list(lists[start:end], kind, nrows)
                refuse_if(is_listed[rows].any(), "lists: a row in two lists of a group")
                is_listed[rows] = True
                out[np.ix_(rows, group_cols)] = one
                list_number += 1
    return out


def _count_codes(shapes: list[tuple[int, int, int]], *, wide: bool) -> int:
    return sum(kind == 2 and (t > 256) == wide for kind, _, t in shapes)


def _rows_of_list(numbers: list[int], kind: int, nrows: int) -> list[int]:
    refuse_if(not numbers, "lists: an empty list")
    rows: list[int] = []
    at, first, count = 0, 0, 0
    while at < len(numbers):
        refuse_if(first >= nrows, "lists: a segment past the last row")
        count, at = numbers[at], at + 1
        step = 2 if kind == 1 else 1
        refuse_if(at + step * count > len(numbers), "lists: a list ends inside a segment")
        nrows_here = min(ROWS_PER_SEGMENT, nrows - first)
        end = 0
        for i in range(at, at + step * count, step):
            offset, length = numbers[i], numbers[i + 1] if kind == 1 else 1
            refuse_if(offset < end, "lists: offsets do not rise")
            refuse_if(length == 0, "lists: a run of length 0")
            end = offset + length
            refuse_if(end > nrows_here, "lists: rows past the segment or the last row")
            rows.extend(range(first + offset, first + end))
        at += step * count
        first += ROWS_PER_SEGMENT
    refuse_if(count == 0, "lists: a last segment without rows")
    return rows


# Codes and streams.


class Code:
    """A prefix code, from the length of each symbol's codeword (0: it has none)."""

    def __init__(self, lengths: list[int]) -> None:
        refuse_if(max(lengths, default=0) > MAX_CODEWORD, "a codeword over 24 bits")
        ranked = sorted((length, symbol) for symbol, length in enumerate(lengths) if length)
        self.symbols: dict[str, int] = {}
        if len(ranked) == 1:
            refuse_if(ranked[0][0] != 1, "a symbol alone with a length that is not 1")
            self.symbols[""] = ranked[0][1]
        elif ranked:
            refuse_if(sum(2.0**-length for length, _ in ranked) != 1, "lengths that are no code")
            codeword, before = -1, ranked[0][0]
            for length, symbol in ranked:
                codeword = (codeword + 1) << (length - before)
                self.symbols[f"{codeword:0{length}b}"] = symbol
                before = length
        self.widths = sorted({len(codeword) for codeword in self.symbols})

    def __len__(self) -> int:
        return len(self.symbols)

    def read(self, bits: str, at: int, count: int) -> tuple[list[int], int]:
        """Return `count` symbols from bit `at` on, and where they end."""
        found = []
        for _ in range(count):
            for width in self.widths:
                symbol = self.symbols.get(bits[at : at + width])
                if symbol is not None:
                    break
            else:
                raise Refused("stream: a row's codewords go past its end")
            found.append(symbol)
            at += width
        return found, at


def packed_lengths(section: bytes, width: int, n: int, what: str) -> list[int]:
    """Return Packed lengths of n symbols."""
    refuse_if(width > MAX_CODEWORD.bit_length(), f"{what}: w is {width}")
    refuse_if(len(section) != -(-n * width // 8), f"{what}: {len(section)} bytes")
    bits = bit_array(section)
    refuse_if(bits[n * width :].any(), f"{what}: padding is not zero")
    lengths = fields(bits, 0, width, n).tolist()
    expected = max(max(lengths).bit_length(), 1) if n else 0
    refuse_if(width != expected, f"{what}: w is {width}, expected {expected}")
    return lengths


def published_code(sections: list[bytes], n: int, longest: int) -> Code:
    """Return the code of n ranks that the three Published arrays hold."""
    refuse_if(longest > MAX_CODEWORD, f"L is {longest}, expected at most {MAX_CODEWORD}")
    refuse_if((longest == 0) != (n <= 1), f"L is {longest} for {n} codewords")
    first_symbols = words(sections[0], n, longest + 1, "first_symbols")
    lengths = [0] * n
    for length in range(1, longest + 1):
        for rank in range(first_symbols[length], n):
            lengths[rank] = length
    refuse_if(longest and 0 in lengths, "first_symbols: a rank before those of length 1")
    code = Code(lengths if longest else [1] * n)
    refuse_if(max(lengths, default=0) != longest, f"L is {longest}, and no codeword is as long")
    shares = [(length, 1 << (longest - length)) for length in lengths]
    starts = [sum(length < l for length, _ in shares) for l in range(longest + 1)]
    firsts = [sum(share for length, share in shares if length < l) for l in range(longest + 2)]
    lookup_bits = (longest - 1).bit_length()
    shortest = [
        next(l for l in range(longest + 1) if firsts[l + 1] > i << (longest - lookup_bits))
        for i in range(1 << lookup_bits if longest > 1 else 0)
    ]
    for section, numbers, most, what in (
        (sections[0], starts, n, "first_symbols"),
        (sections[1], firsts, 1 << longest, "first_codewords"),
        (sections[2], shortest, longest, "length_starts"),
    ):
        expected = np.array(numbers, word(most)).tobytes()
        refuse_if(section != expected, f"{what}: not those of the lengths")
    return code


def stream_bits(section: bytes, nbits: int) -> str:
    """Return the first `nbits` bits of Stream as text of 0 and 1."""
    expected = 4 * -(-nbits // 32)
    refuse_if(len(section) != expected, f"stream: {len(section)} bytes, expected {expected}")
    bits = "".join(f"{x:032b}" for x in np.frombuffer(section, "<u4").tolist())
    refuse_if("1" in bits[nbits:], "stream: a bit after the last is not zero")
    return bits[:nbits]


def row_ends(matrix: Matrix, section: bytes, nbits: int, coded: list[int] | None) -> list[int]:
    """Return the nrows + 1 bits between rows: published, or coded with (min, w, v)."""
    if coded is not None:
        return offsets(section, coded, matrix.nrows, nbits, "row_ends", shortest=True)
    least_of_type = (1 << 32) if nbits >= 1 << 32 else (1 << 32) - 1
    ends = words(section, least_of_type, matrix.nrows, "row_ends")
    ends = np.concatenate([np.zeros(1, np.int64), ends])
    check_starts(ends, nbits, "row_ends")
    return ends.tolist()


def arrangement(
    matrix: Matrix, sections: list[bytes], *, published: tuple[int, ...], coded: tuple[int, ...]
) -> bool:
    """Tell whether the arrangement is the published one, whose sections then stand alone."""
    number = matrix.parameters[0]
    refuse_if(number > 1, f"arrangement {number}")
    nparameters = LAYOUTS[matrix.layout].nparameters[number]
    refuse_if(len(matrix.parameters) != nparameters, f"{len(matrix.parameters)} parameters")
    for i in coded if number == 1 else published:
        refuse_if(sections[i], f"section {i} is of the other arrangement and not empty")
    return number == 1


def hac(matrix: Matrix, k: int, sections: list[bytes]) -> np.ndarray:
    nentries = matrix.nrows * matrix.ncols
    nbits = matrix.parameters[1]
    if arrangement(matrix, sections, published=(0, 1, 2, 3), coded=(4,)):
        # Ranks in order, with the pruned entry's taken out, are 1 … k.
        has_pruned = matrix.nnz < nentries
        ranks = np.arange(1, k + 1)
        refuse_if(len(sections[0]) != 4 * has_pruned, f"zero_rank: {len(sections[0])} bytes")
        if has_pruned:
            zero_rank = int.from_bytes(sections[0], "little")
            refuse_if(zero_rank > k, f"zero_rank is {zero_rank}, expected at most {k}")
            ranks = np.insert(ranks, zero_rank, 0)
        code = published_code(sections[1:4], len(ranks), matrix.parameters[2])
        ends = row_ends(matrix, sections[5], nbits, None)
    else:
        ranks = np.arange(k + 1)
        code = Code(packed_lengths(sections[4], matrix.parameters[2], k + 1, "code_lengths"))
        ends = row_ends(matrix, sections[5], nbits, matrix.parameters[3:6])
    refuse_if((len(code) > 0) != (nentries > 0), f"{len(code)} codewords for {nentries} entries")
    refuse_if(len(code) < 2 and nbits > 0, "bits without two codewords")
    refuse_if(len(code) >= 2 and nbits < nentries, f"{nbits} bits for {nentries} entries")
    bits = stream_bits(sections[6], nbits)
    out = np.zeros((matrix.nrows, matrix.ncols), np.int64)
    for row in range(matrix.nrows):
        found, end = code.read(bits[: ends[row + 1]], ends[row], matrix.ncols)
        refuse_if(end != ends[row + 1], f"stream: row {row} ends at {end}")
        out[row] = ranks[found]
    return out


def shac(matrix: Matrix, k: int, sections: list[bytes]) -> np.ndarray:
    nbits = matrix.parameters[1]
    if arrangement(matrix, sections, published=(0, 1, 2, 6), coded=(3, 4)):
        code = published_code(sections[0:3], k, matrix.parameters[2])
        counts = words(sections[5], matrix.ncols, matrix.nrows, "row_counts").tolist()
        cols = words(sections[6], matrix.ncols, matrix.nnz, "cols")
        refuse_if(sum(counts) != matrix.nnz, f"row_counts: {sum(counts)}, expected {matrix.nnz}")
        ends = row_ends(matrix, sections[7], nbits, None)
        gaps = None
    else:
        width, precision, nbuckets, gap_width = matrix.parameters[2:6]
        code = Code(packed_lengths(sections[3], width, k, "code_lengths"))
        gaps = Gaps(sections[4], precision, nbuckets, gap_width)
        starts = offsets(
            sections[5], matrix.parameters[6:9], matrix.nrows, matrix.nnz, "row_counts",
            shortest=True,
        )  # fmt: skip
        counts = np.diff(starts).tolist()
        cols = np.zeros(0, np.int64)
        ends = row_ends(matrix, sections[7], nbits, matrix.parameters[9:12])
        refuse_if((len(gaps.code) > 0) != (matrix.nnz > 0), "gaps without nnz or the reverse")
        if len(gaps.code) == 1 and len(code) == 1 and not gaps.has_plain_bits:
            refuse_if(nbits > 0, f"{nbits} bits where no codeword has any")
        else:
            refuse_if(nbits < matrix.nnz, f"{nbits} bits for {matrix.nnz} weights")
    refuse_if((len(code) > 0) != (matrix.nnz > 0), "codewords without nnz or the reverse")
    refuse_if(matrix.nnz == 0 and nbits > 0, "bits without a kept weight")
    bits = stream_bits(sections[8], nbits)
    out = np.zeros((matrix.nrows, matrix.ncols), np.int64)
    for row, count in enumerate(counts):
        row_bits, at = bits[: ends[row + 1]], ends[row]
        if gaps is None:
            row_cols, cols = cols[:count], cols[count:]
        else:
            row_cols, at = gaps.read(row_bits, at, count)
        check_row(row_cols, matrix.ncols, row)
        symbols, at = code.read(row_bits, at, count)
        refuse_if(at != ends[row + 1], f"stream: row {row} ends at {at}")
        out[row, row_cols] = np.array(symbols, np.int64) + 1
    return out


def check_row(cols: np.ndarray, ncols: int, row: int) -> None:
    """Refuse columns of a row that do not rise or reach ncols."""
    refuse_if(not rises(cols), f"columns of row {row} do not rise")
    refuse_if(len(cols) and cols[-1] >= ncols, f"a column of row {row} ≥ ncols = {ncols}")


class Gaps:
    """The code of shac's gaps: buckets, each with plain bits."""

    def __init__(self, section: bytes, precision: int, nbuckets: int, width: int) -> None:
        refuse_if(precision > 11, f"p is {precision}, expected at most 11")
        refuse_if(nbuckets > 65_536, f"b is {nbuckets}, expected at most 65,536")
        self.precision = precision
        refuse_if(nbuckets and self.least(nbuckets - 1) >= 1 << 32, "a bucket of gaps ≥ 2^32")
        lengths = packed_lengths(section, width, nbuckets, "gap_lengths")
        self.code = Code(lengths)
        self.has_plain_bits = any(self.plain_bits(j) for j, length in enumerate(lengths) if length)

    def plain_bits(self, bucket: int) -> int:
        return max((bucket >> self.precision) - 1, 0)

    def least(self, bucket: int) -> int:
        e = self.plain_bits(bucket)
        return (bucket - (e << self.precision)) << e

    def read(self, bits: str, at: int, count: int) -> tuple[np.ndarray, int]:
        """Return the columns of a row of `count` weights from bit `at` on, and where they end."""
        buckets, at = self.code.read(bits, at, count)
        cols, col = [], 0
        for bucket in buckets:
            e = self.plain_bits(bucket)
            refuse_if(at + e > len(bits), "stream: a row's plain bits go past its end")
            col += self.least(bucket) + int(bits[at : at + e] or "0", 2)
            cols.append(col)
            at, col = at + e, col + 1
        return np.array(cols, np.int64), at


def packed(matrix: Matrix, k: int, sections: list[bytes]) -> np.ndarray:
    nrows, ncols = matrix.nrows, matrix.ncols
    counts = np.diff(
        offsets(sections[0], matrix.parameters[0:3], nrows, matrix.nnz, "row_nnz")
    ).tolist()
    forms = list(sections[1])
    nblocks = -(-nrows // ROWS_PER_BLOCK)
    refuse_if(len(forms) != nblocks, f"forms: {len(forms)} blocks, expected {nblocks}")
    ends = offsets(sections[2], matrix.parameters[3:6], nblocks, len(sections[3]), "ends")
    width = matrix.parameters[6]
    least = (k - 1).bit_length() if k else 0
    refuse_if(not least <= width <= 16, f"s is {width}, expected {least} … 16")
    nbits = width * matrix.nnz
    refuse_if(len(sections[4]) != -(-nbits // 8), f"symbols: {len(sections[4])} bytes")
    bits = bit_array(sections[4])
    refuse_if(bits[nbits:].any(), "symbols: padding is not zero")
    symbols = fields(bits, 0, width, matrix.nnz) + 1
    out = np.zeros((nrows, ncols), np.int64)
    for block, form in enumerate(forms):
        first = block * ROWS_PER_BLOCK
        block_counts = counts[first : first + ROWS_PER_BLOCK]
        columns = sections[3][ends[block] : ends[block + 1]]
        for row, cols in enumerate(_block_columns(form, columns, block_counts, ncols), first):
            check_row(cols, ncols, row)
            out[row, cols], symbols = symbols[: len(cols)], symbols[len(cols) :]
    return out


def _block_columns(form: int, columns: bytes, counts: list[int], ncols: int) -> list[np.ndarray]:
    total = sum(counts)
    splits = np.cumsum(counts)[:-1]
    if form == 0:
        nbits = len(counts) * ncols
        refuse_if(len(columns) != -(-nbits // 8), f"positions: a bitmap of {len(columns)} bytes")
        bitmap = bit_array(columns)[:nbits].reshape(len(counts), ncols)
        refuse_if(bitmap.sum(axis=1).tolist() != counts, "positions: a row with another count")
        return [np.flatnonzero(row) for row in bitmap]
    if form == 64:
        width = 64 * -(-ncols // 64)
        nbytes = len(counts) * width // 8
        refuse_if(len(columns) != nbytes, f"positions: words of {len(columns)} bytes")
        bitmap = bit_array(columns).reshape(len(counts), width)
        refuse_if(bitmap.sum(axis=1).tolist() != counts, "positions: a row with another count")
        refuse_if(bitmap[:, ncols:].any(), "positions: a bit past the last column")
        return [np.flatnonzero(row) for row in bitmap]
    if form in (144, 160):
        dtype = np.dtype("<u2" if form == 144 else "<u4")
        refuse_if(len(columns) != total * dtype.itemsize, "positions: another size of a block")
        found = np.frombuffer(columns, dtype, total).astype(np.int64)
        return np.split(found, splits)
    refuse_if(not 1 <= form <= 31, f"forms: {form}")
    # A field that is not all ones ends a gap; the sum of fields so far is the sum of gaps. That
    # the bytes end with the last column need not be checked, and is.
    bits = bit_array(columns)
    skips = fields(bits, 0, form, len(bits) // form)
    last_fields = np.flatnonzero(skips != (1 << form) - 1)[:total]
    refuse_if(len(last_fields) < total, "positions: gaps past the block")
    end = form * (last_fields[-1] + 1) if total else 0
    refuse_if(len(columns) != -(-end // 8) or bits[end:].any(), "positions: gaps end early")
    gaps = np.diff(np.cumsum(skips)[last_fields], prepend=0)
    return [np.cumsum(row + 1) - 1 for row in np.split(gaps, splits)]


def grouped(matrix: Matrix, k: int, sections: list[bytes]) -> np.ndarray:
    ngroups, width, inner_nnz, *parameters = matrix.parameters
    least, most = ngroups.bit_length(), 16 if ngroups else 0
    refuse_if(ngroups > matrix.nrows, f"{ngroups} groups of {matrix.nrows} rows")
    refuse_if(not least <= width <= most, f"w is {width}, expected {least} … {most}")
    nbits = width * matrix.nrows
    refuse_if(len(sections[0]) != -(-nbits // 8), f"groups: {len(sections[0])} bytes")
    bits = bit_array(sections[0])
    refuse_if(bits[nbits:].any(), "groups: padding is not zero")
    numbers = fields(bits, 0, width, matrix.nrows)
    refuse_if((numbers > ngroups).any(), "groups: a number over g")
    nrows = ngroups + matrix.nrows
    refuse_if(nrows >= 1 << 32, f"{nrows} rows of the inner matrix")
    refuse_if(inner_nnz > nrows * matrix.ncols, f"the inner nnz is {inner_nnz}")
    refuse_if((inner_nnz > 0) != (k > 0), f"the inner nnz is {inner_nnz} with k = {k}")
    if matrix.coder == 0:
        layout, inner_sections, others = 7, sections[1:6], sections[6:]
    else:
        counts, order, lengths, gap_ends, blocks = sections[6:]
        inner_sections = [counts, order, lengths, gap_ends, sections[3], blocks]
        layout, others = 8, [*sections[1:3], *sections[4:6]]
    refuse_if(any(others), "a section of the other inner layout")
    refuse_if(len(parameters) not in LAYOUTS[layout].nparameters, f"{len(parameters)} parameters")
    inner = Matrix(matrix.name, layout, matrix.coder, nrows, matrix.ncols, inner_nnz, parameters)
    found = LAYOUTS[layout].decode(inner, k, inner_sections)
    refuse_if((found > k).any(), "a symbol beyond the codebook")
    refuse_if(np.count_nonzero(found) != inner_nnz, f"not {inner_nnz} in the inner matrix")
    common = np.concatenate([np.zeros((1, matrix.ncols), np.int64), found[:ngroups]])[numbers]
    own = found[ngroups:]
    refuse_if(((common > 0) & (own > 0)).any(), "a column both common and a row's own")
    return common + own


ROWS_PER_WINDOW, LANES, COLUMNS_PER_BLOCK, EMPTY_SLOT = 128, 16, 32, 32768


def sell(matrix: Matrix, k: int, sections: list[bytes]) -> np.ndarray:
    nrows, ncols = matrix.nrows, matrix.ncols
    row_order, _, stored_blocks, _, stored_slots, stored_symbols = sections
    refuse_if(len(row_order) != nrows, f"row_order: {len(row_order)} bytes")
    refuse_if(len(stored_blocks) % 4, "blocks: no whole number of u32")
    refuse_if(len(stored_slots) % (2 * LANES), "slots: no whole steps")
    blocks = np.frombuffer(stored_blocks, "<u4").tolist()
    slots = np.frombuffer(stored_slots, "<u2").reshape(-1, LANES).astype(np.int64)
    nbytes = len(stored_slots) if k > 256 else 0
    refuse_if(len(stored_symbols) != nbytes, f"symbols: {len(stored_symbols)} bytes")
    wide = np.frombuffer(stored_symbols, "<u2").reshape(-1, LANES).astype(np.int64)
    nslices = -(-nrows // LANES)
    counts = offsets(sections[1], matrix.parameters[0:3], nslices, len(blocks), "counts")
    heights = offsets(sections[3], matrix.parameters[3:6], nslices, len(slots), "heights")
    out = np.zeros((nrows, ncols), np.int64)
    for start in range(0, nrows, ROWS_PER_WINDOW):
        rows = list(row_order[start : start + ROWS_PER_WINDOW])
        refuse_if(sorted(rows) != list(range(len(rows))), f"row_order: window of row {start}")
        for first in range(0, len(rows), LANES):
            slice_, lanes = (start + first) // LANES, rows[first : first + LANES]
            mine = [(b % 32 + 1, b >> 5) for b in blocks[counts[slice_] : counts[slice_ + 1]]]
            refuse_if(mine != sorted(mine), f"blocks: those of slice {slice_} do not rise")
            numbers = [number for _, number in mine]
            refuse_if(len(set(numbers)) != len(numbers), "blocks: one twice in a slice")
            refuse_if(any(32 * number >= ncols for number in numbers), "blocks: past the columns")
            step, end = heights[slice_], heights[slice_ + 1]
            refuse_if(step + sum(n for n, _ in mine) != end, "heights: not those of the blocks")
            for nsteps, number in mine:
                _fill_block(
                    out[:, COLUMNS_PER_BLOCK * number :][:, :COLUMNS_PER_BLOCK],
                    [start + row for row in lanes],
                    slots[step : step + nsteps],
                    wide[step : step + nsteps] if k > 256 else None,
                )
                step += nsteps
    return out


def _fill_block(
    out: np.ndarray, rows: list[int], slots: np.ndarray, wide: np.ndarray | None
) -> None:
    is_empty = slots == EMPTY_SLOT
    refuse_if(is_empty.all(axis=1).any(), "slots: a step without a weight")
    refuse_if((is_empty[:-1] & ~is_empty[1:]).any(), "slots: a weight after an empty slot")
    refuse_if(not is_empty[:, len(rows) :].all(), "slots: a weight in no row")
    refuse_if((slots > EMPTY_SLOT).any(), "slots: other bits")
    symbols = slots >> 5
    if wide is not None:
        refuse_if((symbols[~is_empty] > 0).any(), "slots: a symbol beside `symbols`")
        refuse_if((wide[is_empty] > 0).any(), "symbols: one of an empty slot")
        symbols = wide
    for lane, row in enumerate(rows):
        kept = ~is_empty[:, lane]
        cols = slots[kept, lane] % COLUMNS_PER_BLOCK
        refuse_if(not rises(cols), f"slots: row {row} does not rise")
        refuse_if((cols >= out.shape[1]).any(), f"slots: row {row} goes past the columns")
        out[row, cols] = symbols[kept, lane] + 1


class Layout(NamedTuple):
    """A layout's name, coders, numbers of parameters and of sections, and how to decode it.

    Without a function it is the archive, which needs the codebook's values.
    """

    name: str
    coders: tuple[int, ...]
    nparameters: tuple[int, ...]
    nsections: int
    has_codebook: bool
    decode: Callable[[Matrix, int, list[bytes]], np.ndarray] | None


# The numbers of parameters of layouts 5 and 6 are those of arrangements 0 (coded), 1 (published).
LAYOUTS = (
    Layout("dense", (0,), (0,), 1, False, dense),
    Layout("csr", (0,), (0,), 3, False, csr),
    Layout("index_map", (0,), (0,), 1, True, index_map),
    Layout("cser", (0,), (0,), 4, True, cser),
    Layout("cla", (0,), (0,), 9, True, cla),
    Layout("hac", (1,), (6, 3), 7, True, hac),
    Layout("shac", (1,), (12, 3), 9, True, shac),
    Layout("packed", (0,), (7,), 5, True, packed),
    Layout("coded", (2,), (17,), 6, True, coded),
    Layout("archive", (3,), (3,), 1, True, None),
    Layout("grouped", (0, 2), (10, 20), 11, True, grouped),
    Layout("sell", (0,), (6,), 6, True, sell),
)
