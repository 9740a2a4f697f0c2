"""Reads a `.terse` file into arrays, written from FORMAT.md alone.

::

    magic │ H │ CRC │ header │ zeros │ data = codebooks, then sections, in header order

    read = check the first 16 bytes and the header's CRC
           walk the header once, with every count checked against the bytes left
           check each block's CRC, cut the data into codebooks and sections, check the zeros
           decode each tensor (decoder_layouts.py, decoder_planes.py, decoder_codebooks.py)

It shares nothing with tersenet, so where the two agree the page is what they agree on. It is meant
to be read beside FORMAT.md: each check is there in words. It reads codewords one by one in plain
Python, and is of no use for large files.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from math import prod

import decoder_codebooks
import decoder_planes
import numpy as np
from decoder_layouts import LAYOUTS, Learnt, Matrix, Refused, decode, refuse_if

__all__ = ["Container", "Limits", "Refused", "Tensor", "read"]

MAGIC = b"\x89TRS\r\n\x1a\n"
TEXT_MODE = (b"\x89TRS\n\x1a\n", b"\x89TRS\r\r\n\x1a\r\n", b"\x89TRS\r\n\x1a\r\n", b"\x09TRS\r\n")
ALIGNED_FROM = 1024
ALIGNMENT = 64
MAX_RANK = 64
MAX_PARAMETERS = 64
MAX_CODEBOOK = 65_536
MAX_CHAIN = 1 << 22

# name, and the numpy type of an element; bfloat16 and float8 have none and stay bit patterns.
DTYPES = (
    ("float32", "<f4"),
    ("float64", "<f8"),
    ("float16", "<f2"),
    ("bfloat16", "<u2"),
    ("int8", "i1"),
    ("int16", "<i2"),
    ("int32", "<i4"),
    ("int64", "<i8"),
    ("uint8", "u1"),
    ("uint16", "<u2"),
    ("uint32", "<u4"),
    ("uint64", "<u8"),
    ("bool", "?"),
    ("complex64", "<c8"),
    ("complex128", "<c16"),
    ("float8_e4m3fn", "u1"),
    ("float8_e5m2", "u1"),
)
MATRIX_DTYPES = (0, 2, 3)
FLOATS = (0, 1, 2, 3, 13, 14, 15, 16)
COMPLEX = (13, 14)


@dataclass(frozen=True)
class Limits:
    """What a file may ask for; `tensor_nbytes` holds for each section and each dense matrix."""

    header_nbytes: int = 1 << 24
    tensor_nbytes: int = 1 << 28
    tensors: int = 1 << 16


@dataclass(frozen=True)
class Tensor:
    """One tensor: a compressed matrix is dense float32 of the logical shape."""

    dtype: str
    shape: tuple[int, ...]
    array: np.ndarray


@dataclass(frozen=True)
class Container:
    """What a file holds; an alias is the same Tensor under another name."""

    metadata: dict[str, str]
    tensors: dict[str, Tensor]


def read(data: bytes, limits: Limits | None = None) -> Container:
    """Decode and check a whole file.

    Raises:
        Refused: wherever FORMAT.md says that a reader must refuse.
    """
    limits = limits or Limits()
    header = Header(_header_bytes(data, limits), limits)
    body = _data(data, header)
    codebooks, sections = _cut(body, header)
    for values in codebooks:
        refuse_if((values == 0).any(), "codebook: +0.0, which means pruned")
        refuse_if(len(np.unique(values)) != len(values), "codebook: a repeated value")
    tensors: dict[str, Tensor] = {}
    learnt: list[Learnt | None] = []
    for entry, parts in zip(header.entries, sections, strict=True):
        tensors[entry.name], end = _tensor(entry, parts, header, tensors, codebooks, learnt)
        learnt.append(end)
    return Container(header.metadata, tensors)


class Cursor:
    """Walks the header's bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, n: int, what: str) -> bytes:
        refuse_if(n > self.left, f"header: {what} takes {n} bytes and {self.left} are left")
        self.at += n
        return self.data[self.at - n : self.at]

    def u8(self, what: str) -> int:
        return self.take(1, what)[0]

    def varint(self, what: str) -> int:
        value = shift = 0
        while True:
            byte = self.u8(what)
            value |= (byte & 0x7F) << shift
            refuse_if(value >= 1 << 64 or shift > 63, f"header: {what} has more than 64 bits")
            if byte < 0x80:
                refuse_if(byte == 0 and shift > 0, f"header: {what} ends with an empty byte")
                return value
            shift += 7

    def count(self, what: str) -> int:
        n = self.varint(what)
        refuse_if(n > self.left, f"header: {n} {what}, with {self.left} bytes left")
        return n

    def string(self, what: str) -> str:
        raw = self.take(self.varint(what), what)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused(f"header: {what} is not UTF-8") from error
        refuse_if("\0" in text, f"header: {what} holds a NUL")
        return text


@dataclass
class Entry:
    """What the header says of one name: a plain tensor, a matrix, or an alias."""

    name: str
    dtype: int = 0
    shape: tuple[int, ...] = ()
    matrix: Matrix | None = None
    codebook: int = 0
    alias_of: int | None = None
    is_coded: bool = False
    sizes: list[int] = field(default_factory=list)


class Header:
    """The parsed header; its fields are in the order of FORMAT.md."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        cursor = Cursor(data)
        version = cursor.u8("version")
        refuse_if(version != 1, f"version {version}: a newer version reads it")
        required = cursor.varint("required features")
        refuse_if(required, f"required features {required:#x}: a newer version reads it")
        log2_block = cursor.u8("block size")
        refuse_if(not 10 <= log2_block <= 20, f"block size: 2^{log2_block}, expected 2^10 … 2^20")
        self.block = 1 << log2_block
        self.data_nbytes = cursor.varint("size of the data")
        checksums = cursor.take(4 * -(-self.data_nbytes // self.block), "checksums")
        self.checksums = np.frombuffer(checksums, "<u4").tolist()
        self.metadata: dict[str, str] = {}
        for _ in range(cursor.count("strings of metadata")):
            key = cursor.string("metadata key")
            refuse_if(key in self.metadata, f"metadata: key {key!r} twice")
            self.metadata[key] = cursor.string("metadata value")
        self.codebooks: list[tuple[list[int], int | None]] = []
        left = cursor.count("codebooks")
        while left:
            sizes, size = [cursor.varint("codebook size")], None
            if sizes == [0]:
                count = cursor.count("codebooks coded together")
                refuse_if(not 1 <= count <= left, f"{count} codebooks coded together")
                sizes = [cursor.varint("codebook size") for _ in range(count)]
                size = cursor.varint("codebook bytes")
                refuse_if(sum(sizes) > min(16 * size, MAX_CODEBOOK), "codebooks: too many values")
            refuse_if(any(not 1 <= k <= MAX_CODEBOOK for k in sizes), f"codebooks: {sizes} values")
            self.codebooks.append((sizes, size))
            left -= len(sizes)
        self.entries: list[Entry] = []
        n = cursor.count("entries")
        refuse_if(n > limits.tensors, f"{n} tensors, over the limit of {limits.tensors}")
        names: set[str] = set()
        for _ in range(n):
            entry = self._entry(cursor, limits)
            refuse_if(entry.name in names, f"two tensors are called {entry.name!r}")
            names.add(entry.name)
            self.entries.append(entry)
        while cursor.left:
            cursor.varint("extension tag")
            cursor.take(cursor.varint("extension size"), "extension")

    def _entry(self, cursor: Cursor, limits: Limits) -> Entry:
        name = cursor.string("name")
        kind = cursor.u8("kind")
        if kind == 0:
            entry = self._plain(name, cursor)
        elif kind == 1:
            entry = self._matrix(name, cursor, limits)
        elif kind == 2:
            target = cursor.varint("alias")
            refuse_if(target >= len(self.entries), f"{name!r}: alias of a later entry")
            refuse_if(self.entries[target].alias_of is not None, f"{name!r}: alias of an alias")
            entry = Entry(name, alias_of=target)
        elif kind == 3:
            entry = self._plain(name, cursor)
            coder = cursor.u8("coder")
            refuse_if(coder != 1, f"{name!r}: coder {coder}: a newer version reads it")
            dense_nbytes = entry.sizes[0]
            refuse_if(dense_nbytes > limits.tensor_nbytes, f"{name!r}: {dense_nbytes} bytes")
            entry.is_coded, entry.sizes = True, [cursor.varint("coded bytes")]
        else:
            raise Refused(f"{name!r}: kind {kind}: a newer version reads it")
        for size in entry.sizes:
            refuse_if(size > limits.tensor_nbytes, f"{name!r}: {size} bytes, over the limit")
        return entry

    def _plain(self, name: str, cursor: Cursor) -> Entry:
        dtype, shape = _dtype(name, cursor), _shape(cursor)
        itemsize = np.dtype(DTYPES[dtype][1]).itemsize
        return Entry(name, dtype, shape, sizes=[_checked_product(name, shape, itemsize) * itemsize])

    def _matrix(self, name: str, cursor: Cursor, limits: Limits) -> Entry:
        dtype = _dtype(name, cursor)
        refuse_if(dtype not in MATRIX_DTYPES, f"{name!r}: a matrix of dtype {DTYPES[dtype][0]}")
        shape = _shape(cursor)
        nelements = _checked_product(name, shape, np.dtype(DTYPES[dtype][1]).itemsize)
        codebook = cursor.varint("codebook number")
        ncodebooks = sum(len(sizes) for sizes, _ in self.codebooks)
        refuse_if(codebook > ncodebooks, f"{name!r}: codebook {codebook} is not there")
        layout, coder = cursor.u8("layout"), cursor.u8("coder")
        refuse_if(layout >= len(LAYOUTS), f"{name!r}: layout {layout}: a newer version reads it")
        refuse_if(coder > 3, f"{name!r}: coder {coder}: a newer version reads it")
        refuse_if(
            coder not in LAYOUTS[layout].coders, f"{name!r}: layout {layout} with coder {coder}"
        )
        nrows, ncols, nnz = (cursor.varint(what) for what in ("nrows", "ncols", "nnz"))
        refuse_if(max(nrows, ncols) >= 1 << 32, f"{name!r}: {nrows} x {ncols} is too large")
        refuse_if(nrows * ncols > 1 << 62, f"{name!r}: {nrows} x {ncols} is too large")
        refuse_if(nnz > nrows * ncols, f"{name!r}: nnz is {nnz} of {nrows} x {ncols}")
        dense_nbytes = 4 * max(nrows * ncols, nrows, ncols)
        refuse_if(dense_nbytes > limits.tensor_nbytes, f"{name!r}: {dense_nbytes} bytes, too many")
        if shape:
            refuse_if(shape[0] != nrows or nelements != nrows * ncols, f"{name!r}: shape {shape}")
        nparameters = cursor.varint("number of parameters")
        refuse_if(nparameters > MAX_PARAMETERS, f"{name!r}: {nparameters} parameters")
        parameters = [cursor.varint("parameter") for _ in range(nparameters)]
        matrix = Matrix(name, layout, coder, nrows, ncols, nnz, parameters)
        before, total = self._before(matrix), 0
        link = before
        while link is not None:
            assert link.matrix is not None
            total += link.matrix.nrows * link.matrix.ncols
            link = self._before(link.matrix, self.entries.index(link))
        refuse_if(total > MAX_CHAIN, f"{name!r}: goes on from {total} entries")
        if before is not None:
            goes_on = [entry.matrix for entry in self.entries if entry.matrix is not None]
            others = [self._before(other, self._number(other)) for other in goes_on]
            refuse_if(any(o is before for o in others), f"{name!r}: goes on as another one does")
        sizes = [cursor.varint("section size") for _ in range(LAYOUTS[layout].nsections)]
        return Entry(name, dtype, shape or (nrows, ncols), matrix, codebook, sizes=sizes)

    def _number(self, matrix: Matrix) -> int:
        return next(i for i, entry in enumerate(self.entries) if entry.matrix is matrix)

    def _before(self, matrix: Matrix, number: int | None = None) -> Entry | None:
        """Return the entry that a matrix goes on from, which is entry `number` or the next one."""
        number = len(self.entries) if number is None else number
        apart = matrix.apart
        if not apart:
            return None
        refuse_if(apart > number, f"{matrix.name!r}: goes on from no entry")
        entry = self.entries[number - apart]
        is_archive = entry.matrix is not None and entry.matrix.is_archive and entry.matrix.nnz > 0
        refuse_if(not is_archive, f"{matrix.name!r}: goes on from no archive")
        return entry


def _dtype(name: str, cursor: Cursor) -> int:
    dtype = cursor.u8("dtype")
    refuse_if(dtype >= len(DTYPES), f"{name!r}: dtype {dtype}: a newer version reads it")
    return dtype


def _shape(cursor: Cursor) -> tuple[int, ...]:
    rank = cursor.varint("rank")
    refuse_if(rank > MAX_RANK, f"header: rank {rank}, expected at most {MAX_RANK}")
    return tuple(cursor.varint("dimension") for _ in range(rank))


def _checked_product(name: str, shape: tuple[int, ...], itemsize: int) -> int:
    products = [prod(shape[:end]) for end in range(len(shape) + 1)]
    largest = max(*products, products[-1] * itemsize)
    refuse_if(largest >= 1 << 64, f"{name!r}: shape {shape} is too large")
    return products[-1]


def _header_bytes(data: bytes, limits: Limits) -> bytes:
    if data[:8] != MAGIC:
        refuse_if(MAGIC.startswith(data), f"truncated: {len(data)} bytes, expected at least 16")
        refuse_if(data.startswith(TEXT_MODE), "a .terse file damaged by a copy in text mode")
        raise Refused(f"not a .terse file: it starts with {data[:8]!r}")
    refuse_if(len(data) < 16, f"truncated: {len(data)} bytes, expected at least 16")
    size, checksum = (int(word) for word in np.frombuffer(data[8:16], "<u4"))
    refuse_if(size > limits.header_nbytes, f"header: {size} bytes, over the limit")
    refuse_if(16 + size > len(data), f"truncated: {len(data)} bytes, expected {16 + size} or more")
    header = data[16 : 16 + size]
    refuse_if(zlib.crc32(header) != checksum, "header: wrong CRC")
    return header


def aligned(at: int, size: int) -> int:
    """Return where `size` bytes start that may start at `at`."""
    return at if size < ALIGNED_FROM else -(-at // ALIGNMENT) * ALIGNMENT


def _data(data: bytes, header: Header) -> bytes:
    header_end = 16 + int.from_bytes(data[8:12], "little")
    start = aligned(header_end, header.data_nbytes)
    end = start + header.data_nbytes
    refuse_if(len(data) < end, f"truncated: {len(data)} bytes, expected {end}")
    refuse_if(len(data) > end, f"{len(data)} bytes, expected {end}: the file goes on after it")
    refuse_if(any(data[header_end:start]), "padding after the header is not zero")
    body = data[start:]
    for i, checksum in enumerate(header.checksums):
        block = body[i * header.block : (i + 1) * header.block]
        refuse_if(zlib.crc32(block) != checksum, f"data: wrong CRC of block {i}")
    return body


def _cut(body: bytes, header: Header) -> tuple[list[np.ndarray], list[list[bytes]]]:
    at = 0

    def cut(size: int, is_coded: bool) -> bytes:
        nonlocal at
        start = at if is_coded else aligned(at, size)
        end = start + size
        refuse_if(end > len(body), f"data: a section ends at {end} of {len(body)} bytes")
        refuse_if(any(body[at:start]), f"data: padding at {at} is not zero")
        at = end
        return body[start:end]

    codebooks = []
    for ks, nbytes in header.codebooks:
        if nbytes is None:
            codebooks.append(np.frombuffer(cut(4 * ks[0], False), "<u4"))
        else:
            codebooks += decoder_codebooks.decode(cut(nbytes, True), ks)
    sections = []
    for entry in header.entries:
        is_coded = entry.is_coded or (entry.matrix is not None and entry.matrix.is_archive)
        sections.append([cut(size, is_coded) for size in entry.sizes])
    refuse_if(at != len(body), f"data: sections end at {at} of {len(body)} bytes")
    return codebooks, sections


def _tensor(
    entry: Entry,
    sections: list[bytes],
    header: Header,
    before: dict[str, Tensor],
    codebooks: list[np.ndarray],
    learnt: list[Learnt | None],
) -> tuple[Tensor, Learnt | None]:
    if entry.alias_of is not None:
        return before[header.entries[entry.alias_of].name], None
    dtype, numpy_dtype = DTYPES[entry.dtype]
    end = None
    if entry.matrix is not None:
        codebook = codebooks[entry.codebook - 1] if entry.codebook else np.zeros(0, "<u4")
        apart = entry.matrix.apart
        start = learnt[len(learnt) - apart] if apart else None
        values, end = decode(entry.matrix, codebook, sections, start)
        flat = values.view("<f4").reshape(-1)
    else:
        elements = _plain_bytes(entry, sections[0])
        if dtype == "bool":
            refuse_if(max(elements, default=0) > 1, f"{entry.name!r}: a bool over 1")
        flat = np.frombuffer(elements, numpy_dtype)
    # An empty tensor may have a side that NumPy does not take.
    fits = flat.size > 0 or prod(max(side, 1) for side in entry.shape) < 1 << 48
    return Tensor(dtype, entry.shape, flat.reshape(entry.shape) if fits else flat), end


def _plain_bytes(entry: Entry, section: bytes) -> bytes:
    if not entry.is_coded:
        return section
    itemsize = np.dtype(DTYPES[entry.dtype][1]).itemsize
    word_nbytes = itemsize // 2 if entry.dtype in COMPLEX else itemsize
    nbytes = prod(entry.shape) * itemsize
    return decoder_planes.decode(section, nbytes, word_nbytes, entry.dtype in FLOATS)
