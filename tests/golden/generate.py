"""Writes the golden files: one set for each version of the container, kept for ever.

::

    an array ──tersenet──▶ v1/<name>.terse           at most 4 KB each
             ──NumPy─────▶ v1/<name>.json            what a reader must find there, bit by bit

    json      {"metadata": {key: value}, "tensors": {name: tensor, in the order of the file}}
    tensor    {"alias_of": name}
              {"dtype", "shape", "bytes": hex}                                    a plain tensor
              {"dtype", "shape", "layout", "coder", "nnz", "bits" or "sha256"}    a matrix
    bits      a string for each row of the matrix: its float32 bit patterns, in hex
    sha256    that of the dense matrix as little-endian float32, where it has over 64 entries

The expected contents come from the arrays that go in; nothing is read back. A golden file that is
there is never written again, even where a newer tersenet would write other bytes: that files of
old stay readable is what they are for. A new case is a new name. The one file that tersenet does
not write is `example.terse`, the example at the end of FORMAT.md.

    python tests/golden/generate.py
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tersenet import Codebook, CompressedMatrix, _core
from tersenet._core import CodedArray

GOLDEN = Path(__file__).parent / "v1"
MAX_NBYTES = 4096
MAX_BITS_SHOWN = 64

# Every pair of layout and coder, in both arrangements and for both goals where those differ.
VARIANTS = {
    "dense": ("dense", "size", "coded"),
    "csr": ("csr", "size", "coded"),
    "index_map": ("index_map", "size", "coded"),
    "cser": ("cser", "size", "coded"),
    "cla": ("cla", "size", "coded"),
    "hac_coded": ("hac", "size", "coded"),
    "hac_published": ("hac", "size", "raw"),
    "shac_coded": ("shac", "size", "coded"),
    "shac_coded_for_speed": ("shac", "speed", "coded"),
    "shac_published": ("shac", "size", "raw"),
    "packed": ("packed", "size", "coded"),
    "packed_for_speed": ("packed", "speed", "coded"),
}
# What came later: cases of its own, since the files of the others stay as they are.
LATER_VARIANTS = {
    "coded": ("coded", "size", "coded"),
    "archive": ("archive", "size", "coded"),
    # Written before there was a fast level, files of this variant are rows at the other one.
    "archive_of_rows": ("archive", "speed", "coded"),
    "archive_fast": ("archive", "speed", "coded"),
    "grouped_packed": ("grouped", "size", "coded"),
    "grouped_packed_for_speed": ("grouped", "speed", "coded"),
    "grouped_coded": ("grouped", "size", "coded"),
    "sell": ("sell", "speed", "coded"),
}
# Of a layout that goes with several the last one, but for these variants.
CODERS = dict(_core.PAIRS)
OTHER_CODERS = {"grouped_packed": "fixed", "grouped_packed_for_speed": "fixed"}

EXAMPLE = """
    89 54 52 53 0D 0A 1A 0A 2E 00 00 00 5E D7 23 A6
    01 00 10 10 28 28 BC 5F 00 01 02 01 02 66 63 01
    00 00 01 06 01 02 03 04 0C 00 08 01 00 02 01 02
    00 03 04 00 04 00 00 00 01 01 01 00 01 04 00 00
    80 BF 00 00 00 3F 03 03 20 80 00 00 00 A7
"""


@dataclass
class Case:
    """One golden file: tensors as tersenet takes them, and as the json names them."""

    name: str
    metadata: dict[str, str] = field(default_factory=dict)
    tensors: list[tuple[str, str, tuple[int, ...], CompressedMatrix | CodedArray | bytes]] = field(
        default_factory=list
    )
    expected: dict[str, dict] = field(default_factory=dict)
    is_coded: bool = False

    def add_matrix(
        self,
        name: str,
        weights: np.ndarray,
        variant: str,
        dtype: str = "float32",
        shape: tuple[int, ...] | None = None,
        codebook: np.ndarray | None = None,
        taps: int = 1,
    ) -> None:
        """Add float32 weights in a variant, with a codebook of that order if one is given."""
        layout, goal, columns = (VARIANTS | LATER_VARIANTS)[variant]
        coder = OTHER_CODERS.get(variant, CODERS[layout])
        if codebook is None:
            matrix = CompressedMatrix.compress(
                weights, layout, coder, goal, columns=columns, taps=taps
            )
        else:
            order = {bits: symbol for symbol, bits in enumerate(codebook.view("u4").tolist())}
            symbols = [order.get(bits, 0) for bits in weights.view("u4").ravel().tolist()]
            matrix = CompressedMatrix.from_symbols(
                np.array(symbols, np.uint16).reshape(weights.shape),
                Codebook(codebook),
                weights.view("u4") != 0,
                layout,
                coder,
                goal,
                columns=columns,
            )
        shape = shape or weights.shape
        self.tensors.append((name, dtype, shape, matrix))
        patterns = weights.view("u4")
        if weights.size <= MAX_BITS_SHOWN:
            content = {"bits": [" ".join(f"{bits:08x}" for bits in row) for row in patterns]}
        else:
            content = {"sha256": hashlib.sha256(patterns.astype("<u4").tobytes()).hexdigest()}
        self.expected[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "layout": layout,
            "coder": coder,
            "nnz": int(np.count_nonzero(patterns)),
            **content,
        }

    def add_plain(self, name: str, array: np.ndarray, dtype: str | None = None) -> None:
        """Add an array; of a type that NumPy lacks, its bit patterns."""
        dtype = dtype or array.dtype.name
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        coded = CodedArray.encode(data, dtype) if self.is_coded else None
        self.tensors.append((name, dtype, array.shape, coded or data))
        self.expected[name] = {"dtype": dtype, "shape": list(array.shape), "bytes": data.hex()}

    def add_alias(self, name: str, target: str) -> None:
        """Add another name of a tensor."""
        self.expected[name] = {"alias_of": target}

    def write(self) -> None:
        """Write the file and what is expected of it, unless they are there."""
        path, expectation = GOLDEN / f"{self.name}.terse", GOLDEN / f"{self.name}.json"
        if path.exists() or expectation.exists():
            return
        if self.name == "example":
            path.write_bytes(bytes.fromhex(EXAMPLE))
        else:
            aliases = [(n, t["alias_of"]) for n, t in self.expected.items() if "alias_of" in t]
            _core.write(str(path), self.tensors, aliases, self.metadata, for_size=self.is_coded)
        if path.stat().st_size > MAX_NBYTES:
            path.unlink()
            raise ValueError(f"{self.name}: over {MAX_NBYTES} bytes")
        tensors = [f"{_json(name)}: {_json(tensor)}" for name, tensor in self.expected.items()]
        text = f'{{"metadata": {_json(self.metadata)},\n "tensors": {{\n  '
        expectation.write_text(text + ",\n  ".join(tensors) + "\n}}\n", "utf-8")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def few_values(nrows: int, ncols: int, k: int, density: float, seed: int) -> np.ndarray:
    """Return weights of k values, of which `density` is kept."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(k).astype(np.float32)
    kept = rng.random((nrows, ncols)) < density
    return np.where(kept, values[rng.integers(0, k, (nrows, ncols))], np.float32(0))


def distinct(k: int) -> np.ndarray:
    """Return k values, neither zero nor equal."""
    return np.arange(1, k + 1, dtype=np.float32) / 8


def odd_values() -> np.ndarray:
    """Return weights that arithmetic would not keep, a single +0.0 among them."""
    bits = [
        [0x80000000, 0x7FC00000, 0x7FC12345, 0xFFC00001, 0x7F800001],
        [0x7F800000, 0xFF800000, 0x00000001, 0x80000001, 0x007FFFFF],
        [0x00000000, 0x00800000, 0x7F7FFFFF, 0x80000000, 0xFFFFFFFF],
    ]
    return np.array(bits, np.uint32).view(np.float32)


def edges() -> Iterator[tuple[str, np.ndarray]]:
    """Yield the matrices that stand at an end of something."""
    yield "zero_rows", np.zeros((0, 5), np.float32)
    yield "zero_columns", np.zeros((5, 0), np.float32)
    yield "nothing", np.zeros((0, 0), np.float32)
    yield "all_pruned", np.zeros((5, 7), np.float32)
    yield "all_kept", distinct(3)[np.arange(35).reshape(5, 7) % 3]
    yield "one_symbol", np.where(np.arange(35).reshape(5, 7) % 3 == 0, np.float32(-2.5), 0)
    yield "one_symbol_all_kept", np.full((5, 7), -2.5, np.float32)
    yield "one_entry", np.array([[0.5]], np.float32)
    yield "one_row", few_values(1, 60, 4, 0.5, 3)
    yield "one_column", few_values(60, 1, 4, 0.5, 4)
    yield "odd_values", odd_values()


def cla_kinds() -> Iterator[tuple[str, np.ndarray]]:
    """Yield matrices whose columns group in each of the ways that cla has."""
    rows = np.arange(300)
    yield "offsets", np.where(rows % 61 == 0, np.float32(1.5), 0)[:, None].repeat(3, axis=1)
    yield "runs", np.where(rows % 150 < 100, np.float32(1.5), 0)[:, None].repeat(3, axis=1)
    yield "codes8", distinct(5)[rows * rows % 5][:, None].repeat(3, axis=1)
    yield "plain", distinct(7)[(rows[:40] * rows[:40] * 3 + rows[:40] // 7) % 7][:, None]
    sparse = np.zeros((140_000, 1), np.float32)
    sparse[[0, 65_534, 131_070, 139_999]] = 1.5
    yield "three_segments_of_offsets", sparse
    sparse = np.zeros((140_000, 1), np.float32)
    sparse[60_000:65_535] = sparse[131_070:139_999] = 1.5
    yield "three_segments_of_runs", sparse


def packed_forms() -> Iterator[tuple[str, np.ndarray, str]]:
    """Yield matrices whose columns take each form that packed has, and the variant."""
    yield "bitmap", few_values(70, 13, 1, 0.5, 5), "packed"
    narrow, escapes = np.zeros((2, 200), np.float32), np.zeros((1, 1200), np.float32)
    narrow[:, [0, 1, 2, 4, 5, 6, 8, 9]] = 1
    escapes[0, [*range(0, 360, 6), 1100]] = 1
    yield "gaps_of_1_bit", narrow, "packed"
    yield "gaps_of_6_bits", few_values(20, 300, 2, 0.05, 7), "packed"
    yield "gaps_with_escapes", escapes, "packed"
    wide = np.zeros((3, 70_000), np.float32)
    wide[:, ::9973], wide[1, 69_999] = 1, 2
    yield "gaps_of_14_bits", wide, "packed"
    yield "u16", few_values(66, 40, 3, 0.05, 8), "packed_for_speed"
    yield "u32", wide, "packed_for_speed"


def packed_words() -> Iterator[tuple[str, np.ndarray]]:
    """Yield matrices whose bitmaps are words, beside columns, and every width of symbols."""
    yield "u8", few_values(40, 70, 5, 0.25, 9)
    yield "no_symbols", few_values(20, 64, 1, 0.5, 10)
    yield "u16", few_values(4, 70, 300, 0.95, 11)
    blocks = few_values(66, 30, 3, 0.3, 12)
    blocks[:64, np.arange(30) % 16 != 3] = 0
    yield "among_columns", blocks


def cases() -> Iterator[Case]:
    """Yield every golden file."""
    case = Case("example")
    case.add_matrix("fc", np.array([[0, 0.5, -1], [0.5, 0, 0.5]], np.float32), "shac_coded")
    yield case

    weights, many = few_values(70, 11, 5, 0.25, 1), np.zeros((19, 17), np.float32)
    many.ravel()[:257] = distinct(257)[np.arange(257) * 101 % 257]
    many[-1] = distinct(1)
    for variant in VARIANTS:
        case = Case(f"layout_{variant}")
        case.add_matrix("w", weights, variant)
        yield case
        case = Case(f"k257_{variant}")
        case.add_matrix("", many, variant)
        yield case

    for name, edge in edges():
        case = Case(f"edge_{name}")
        for variant in VARIANTS:
            case.add_matrix(variant, edge, variant)
        yield case

    case = Case("cla_kinds")
    for name, weights in cla_kinds():
        case.add_matrix(name, weights, "cla")
    yield case
    case = Case("cla_kind_codes16")
    rows = np.arange(700)
    codes = np.concatenate([np.zeros(1, np.float32), distinct(256)])[rows * 101 % 257]
    case.add_matrix("codes16", codes[:, None].repeat(2, axis=1), "cla")
    yield case
    case = Case("packed_forms")
    for name, weights, variant in packed_forms():
        case.add_matrix(name, weights, variant)
    yield case

    case = Case("packed_words")
    for name, weights in packed_words():
        case.add_matrix(name, weights, "packed_for_speed")
    yield case

    yield whole_model()
    yield planes()
    yield from coded_cases(weights, many)
    yield from archive_cases(weights, many)
    yield from grouped_cases(weights, many)
    yield from sell_cases(weights, many)


def coded_cases(weights: np.ndarray, many: np.ndarray) -> Iterator[Case]:
    """Yield the layout coded: what the others have, and each form and width of its own."""
    case = Case("layout_coded")
    case.add_matrix("w", weights, "coded")
    yield case
    case = Case("k257_coded")
    case.add_matrix("", many, "coded")
    yield case
    case = Case("edges_coded")
    for name, edge in edges():
        case.add_matrix(name, edge, "coded")
    yield case
    case = Case("coded_forms")
    rng = np.random.default_rng(9)
    ranked = distinct(300)[np.minimum(rng.integers(0, 300, 500), rng.integers(0, 300, 500))]
    case.add_matrix("gaps", few_values(40, 40, 5, 0.2, 10), "coded")
    case.add_matrix("plain_bits_and_escapes", few_values(90, 120, 3, 0.03, 11), "coded")
    case.add_matrix("every_entry", few_values(30, 25, 6, 0.8, 12), "coded")
    case.add_matrix("plain_bits_of_ranks", ranked.reshape(20, 25), "coded")
    wide = np.zeros((2, 70_000), np.float32)
    wide[:, ::9973], wide[1, 69_999] = 1, 2
    case.add_matrix("wide_gaps", wide, "coded")
    yield case


def archive_cases(weights: np.ndarray, many: np.ndarray) -> Iterator[Case]:
    """Yield the layout archive: what the others have, and each part of its model."""
    case = Case("layout_archive")
    case.add_matrix("w", weights, "archive")
    yield case
    case = Case("k257_archive")
    case.add_matrix("", many, "archive")
    yield case
    case = Case("edges_archive")
    for name, edge in edges():
        case.add_matrix(name, edge, "archive")
    yield case
    case = Case("archive_parts")
    rng = np.random.default_rng(13)
    square, line = few_values(12, 54, 7, 0.3, 14), few_values(12, 56, 7, 0.3, 15)
    case.add_matrix("square_kernels", square, "archive_of_rows", shape=(12, 6, 3, 3), taps=9)
    case.add_matrix("kernels_of_a_line", line, "archive_of_rows", shape=(12, 8, 7), taps=7)
    few = few_values(4, 70, 6, 0.2, 16)
    case.add_matrix("network", few[rng.integers(0, 4, 220)][:, :40], "archive_of_rows")
    repeated = few[rng.integers(0, 4, 60)]
    repeated[rng.random(repeated.shape) < 0.02] = few[0, np.flatnonzero(few[0])[0]]
    case.add_matrix("references", repeated, "archive_of_rows")
    case.add_matrix("columns", np.ascontiguousarray(repeated.T), "archive")
    yield case
    yield archive_chain()
    case = Case("archive_low_bits")
    case.add_matrix("w", distinct(700)[np.minimum(*rng.integers(0, 700, (2, 20, 35)))], "archive")
    yield case
    case = Case("archive_places")
    places = np.zeros((4200, 9), np.float32)
    places[np.arange(4200), rng.integers(0, 9, 4200)] = distinct(2)[rng.integers(0, 2, 4200)]
    case.add_matrix("w", places, "archive_of_rows")
    yield case
    case = Case("archive_fast")
    case.add_matrix("noise", few_values(14, 70, 7, 0.4, 26), "archive_fast")
    near = np.where(
        rng.random((40, 70)) < 0.01, few_values(40, 70, 6, 0.2, 27), few[np.arange(40) % 4]
    )
    near[5:7] = 0
    case.add_matrix("repeats", near.astype(np.float32), "archive_fast")
    case.add_matrix("square_kernels", square, "archive_fast", shape=(12, 6, 3, 3), taps=9)
    yield case


def grouped_cases(weights: np.ndarray, many: np.ndarray) -> Iterator[Case]:
    """Yield the layout grouped: what the others have, and rows that share all or much."""
    rng = np.random.default_rng(17)
    shared = few_values(5, 50, 6, 0.3, 18)[rng.integers(0, 5, 67)]
    near = np.where(rng.random(shared.shape) < 0.1, few_values(67, 50, 6, 0.2, 19), shared)
    near[9] = 0
    rows = {
        "w": weights,
        "equal rows": shared[:30],
        "alike rows": near.astype(np.float32),
        "one symbol": np.where(shared > 0, np.float32(1.5), 0),
        "hardly pruned": np.where(shared[:14, :33] == 0, np.float32(0.25), shared[:14, :33]),
    }
    for variant in OTHER_CODERS | {"grouped_coded": "tans"}:
        case = Case(f"layout_{variant}")
        for name, alike in rows.items():
            case.add_matrix(name, alike, variant)
        yield case
        case = Case(f"k257_{variant}")
        case.add_matrix("", np.concatenate([many, many[:7]]), variant)
        yield case
        case = Case(f"edges_{variant}")
        for name, edge in edges():
            case.add_matrix(name, edge, variant)
        yield case


def sell_cases(weights: np.ndarray, many: np.ndarray) -> Iterator[Case]:
    """Yield the layout sell: what the others have, several windows, and several blocks."""
    case = Case("layout_sell")
    case.add_matrix("w", weights, "sell")
    case.add_matrix("windows", few_values(130, 3, 4, 0.2, 21), "sell")
    case.add_matrix("blocks", few_values(17, 70, 32, 0.15, 22), "sell")
    yield case
    case = Case("k257_sell")
    case.add_matrix("", many, "sell")
    yield case
    case = Case("edges_sell")
    for name, edge in edges():
        case.add_matrix(name, edge, "sell")
    yield case


def archive_chain() -> Case:
    """Return archives that go on from each other, and some between that do not."""
    case = Case("archive_chain", is_coded=True)
    weights = [np.sort(few_values(12, 54, 9, 0.4, seed)) for seed in range(20, 25)]
    case.add_matrix("first", weights[0], "archive_of_rows", shape=(12, 6, 3, 3), taps=9)
    case.add_plain("bias", np.arange(12, dtype=np.float32) / 7)
    case.add_matrix("second", weights[1], "archive", shape=(12, 6, 3, 3), taps=9)
    case.add_matrix("nothing", np.zeros((12, 54), np.float32), "archive")
    case.add_matrix("dense", weights[2], "archive")
    case.add_matrix("packed", weights[3], "packed")
    many = distinct(600)[np.arange(720) * 7 % 600].reshape(12, 60)
    case.add_matrix("too many values", many, "archive_of_rows")
    case.add_matrix("other taps", weights[3], "archive", shape=(12, 27, 2), taps=2)
    case.add_matrix("taps again", weights[4], "archive", shape=(12, 6, 9), taps=9)
    case.add_alias("tied", "second")
    return case


def planes() -> Case:
    """Return plain tensors that are coded by planes, in every form, and codebooks."""
    case = Case("planes", is_coded=True)
    rng = np.random.default_rng(9)
    values = (rng.standard_normal(150) / 8).astype(np.float32)
    pruned = values * (rng.random(150) < 0.2)  # with zeros of either sign
    case.add_plain("float32", values.reshape(10, 15))
    case.add_plain("pruned", pruned.reshape(15, 10))
    case.add_plain("float64", pruned[:60].astype(np.float64))
    case.add_plain("float16", np.round(values * 64).astype(np.float16))
    case.add_plain("bfloat16", (values.view(np.uint32) >> 16).astype(np.uint16), "bfloat16")
    case.add_plain("float8_e4m3fn", np.arange(200, dtype=np.uint8) % 5 + 0x38, "float8_e4m3fn")
    case.add_plain("complex64", (pruned[:60] + 1j).astype(np.complex64))
    case.add_plain("int64", np.arange(40).reshape(2, 5, 4))
    case.add_plain("int8", rng.integers(-3, 4, 200).astype(np.int8))
    case.add_plain("bool", rng.random(300) < 0.03)
    case.add_plain("zeros", np.zeros(200, np.int16))
    case.add_plain("small", values[:3])
    codebook = np.unique(values[:80])
    case.add_matrix(
        "codebook", rng.permutation(codebook).reshape(8, 10), "packed", codebook=codebook
    )
    near = np.arange(1, 9, dtype=np.float32)[:, None] ** 3 * np.float32([-0.01, 0.013])
    near = np.unique(near)
    case.add_matrix("beside", rng.permutation(near).reshape(4, 4), "packed", codebook=near)
    descending = near[::-1].copy()
    case.add_matrix("as it is", near.reshape(4, 4), "packed", codebook=descending)
    assert all(isinstance(v, CodedArray) for name, *_, v in case.tensors[:-4])
    return case


def whole_model() -> Case:
    """Return every layout over one codebook, every type, other names, and strings."""
    case = Case(
        "whole_model",
        metadata={"": "", "épaisseur": "naïve ⊕ 🙂", "b": "line\nline", "a": "after b"},
    )
    codebook = np.array([0.5, -1.0, 3.0, -0.0, 9.0], np.float32)
    taken = np.array([[0, 1, 0, 2, 0, 0, 1, 4], [4, 0, 0, 1, 2, 2, 0, 1], [0] * 8, [1] * 8])
    weights = np.concatenate([np.zeros(1, np.float32), codebook])[taken]
    for variant in VARIANTS:
        case.add_matrix(variant, weights, variant, codebook=codebook)
    case.add_matrix("conv", weights.reshape(2, 16), "packed", "float32", (2, 4, 2, 2), codebook)
    case.add_matrix("half", weights, "hac_coded", "float16", None, codebook)
    case.add_matrix("brain", weights, "shac_coded", "bfloat16", (4, 8, 1), codebook)
    case.add_plain("float32", odd_values())
    case.add_plain("float64", np.array([1 / 3, -0.0, np.inf]))
    case.add_plain("float16", np.array([[0.1], [6e-8]], np.float16))
    case.add_plain("bfloat16", np.array([0x3F80, 0x7FC1, 0x8000], np.uint16), "bfloat16")
    for bits in (8, 16, 32, 64):
        signed = np.iinfo(f"int{bits}")
        case.add_plain(f"int{bits}", np.array([signed.min, -1, signed.max], f"int{bits}"))
        case.add_plain(f"uint{bits}", np.array([1, 2 * signed.max + 1], f"uint{bits}"))
    case.add_plain("bool", np.array([[True, False], [False, True]]))
    case.add_plain("complex64", np.array([1 - 2j], np.complex64))
    case.add_plain("complex128", np.array([1 / 3 - 2j]))
    case.add_plain("float8_e4m3fn", np.array([0x38, 0x7F], np.uint8), "float8_e4m3fn")
    case.add_plain("float8_e5m2", np.array([0x3C, 0xFC], np.uint8), "float8_e5m2")
    case.add_plain("scalar", np.array(7, np.int64))
    case.add_plain("empty", np.zeros((2, 0, 3), np.float32))
    case.add_alias("tied matrix", "conv")
    case.add_alias("tied array", "bool")
    return case


def main() -> None:
    """Write what is not there yet."""
    GOLDEN.mkdir(exist_ok=True)
    for case in cases():
        case.write()
    sys.stdout.write(f"{len(list(GOLDEN.glob('*.terse')))} golden files in {GOLDEN}\n")


if __name__ == "__main__":
    main()
