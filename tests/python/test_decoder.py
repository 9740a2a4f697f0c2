"""What tersenet writes, the decoder made from FORMAT.md alone reads: the same bits, or an error.

Random models go through a file: matrices of every layout, arrangement and goal over codebooks of
their own and shared ones, plain tensors, other names, strings. MAX_EXAMPLES models run here; 2,000
were run by hand when the decoder was written. Of MAX_DAMAGED golden files with changed bytes under
right checksums the two must refuse the same ones, and read the same from the others; over 100,000
were run by hand, with fields of the header and sections changed in length among them.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import decoder
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tersenet
from tersenet import Codebook, CompressedMatrix, FormatError, _core

MAX_EXAMPLES = 300
MAX_DAMAGED = 1500
FORMAT = Path(__file__).parents[2] / "FORMAT.md"
GOLDEN = Path(__file__).parents[1] / "golden" / "v1"
LIMITS = vars(tersenet.Limits(max_tensor_nbytes=1 << 24))

SIDES = st.integers(0, 12) | st.sampled_from([63, 64, 65, 130])
LONG_SIDES = st.sampled_from([255, 256, 257, 1000, 65_535, 65_536, 65_537, 132_000])
SIZES = st.sampled_from([1, 1, 2, 3, 5, 16, 17, 40, 255, 256, 257, 300])
DENSITIES = st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0])
ODD_BITS = [0x80000000, 0x7FC12345, 0xFF800001, 0x7F800000, 0xFF800000, 1, 0x807FFFFF, 0xFFFFFFFF]
VARIANTS = st.sampled_from(
    [
        (layout, coder, goal, columns)
        for layout, coder in _core.PAIRS
        for goal in ("size", "speed")
        for columns in ("coded", "raw")
    ]
)
TEXTS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=9)
PLAIN = {name: np.dtype(numpy_dtype) for name, numpy_dtype in decoder.DTYPES}

relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck))


def codebook_bits(rng: np.random.Generator, k: int, dtype: str) -> np.ndarray:
    """Return k distinct bit patterns of float32 that `dtype` holds, without +0.0."""
    if dtype == "float16":
        bits = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32).view("u4")
    elif dtype == "bfloat16":
        bits = np.arange(1, 1 << 16, dtype=np.uint32) << 16
    else:
        bits = np.unique(rng.integers(1, 1 << 32, k + 9, dtype=np.uint32))
        bits = np.union1d(bits, np.array(ODD_BITS, np.uint32)[: rng.integers(0, 9)])
    return rng.permutation(bits)[:k].astype(np.uint32)


@st.composite
def patterns(draw, codebook: np.ndarray, long: bool) -> np.ndarray:
    """Draw a matrix of a codebook's values, as bit patterns: noise, equal columns, or runs."""
    if long and draw(st.integers(0, 19)) == 0:
        shape = (draw(LONG_SIDES), draw(st.integers(1, 2)))
        nrows, ncols = shape if draw(st.booleans()) else shape[::-1]
        density = draw(st.sampled_from([0.0, 2e-5, 1e-3, 0.02]))
    else:
        nrows, ncols, density = draw(SIDES), draw(SIDES), draw(DENSITIES)
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    symbols = rng.integers(0, len(codebook), (nrows, ncols))
    if draw(st.booleans()):
        symbols = np.minimum(symbols, rng.integers(0, len(codebook), (nrows, ncols)))
    kept = rng.random((nrows, ncols)) < density
    pattern = draw(st.sampled_from(["noise", "noise", "columns", "runs"]))
    if pattern != "noise" and ncols:
        symbols, kept = symbols[:, :1].repeat(ncols, 1), kept[:, :1].repeat(ncols, 1)
    if pattern == "runs" and nrows:
        starts = np.arange(nrows) // 7 * 7
        symbols, kept = symbols[starts], kept[starts]
    return np.where(kept, codebook[symbols], 0).astype(np.uint32)


@st.composite
def matrices(draw, shared: list[np.ndarray]):
    """Draw a tensor that is a matrix: its type, logical shape, bytes and stored form."""
    variant = draw(VARIANTS)
    layout, coder, goal, columns = variant
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    long = layout != "archive"  # the decoder takes 0.1 ms for each entry of it
    if shared and draw(st.booleans()):
        dtype, codebook = "float32", draw(st.sampled_from(shared))
        bits = draw(patterns(codebook, long))
        order = np.argsort(codebook)
        places = np.searchsorted(codebook, bits, sorter=order).clip(0, len(codebook) - 1)
        matrix = CompressedMatrix.from_symbols(
            order[places].astype(np.uint16),
            Codebook(codebook.view(np.float32)),
            bits != 0,
            layout,
            coder,
            goal,
            columns=columns,
        )
    else:
        dtype = draw(st.sampled_from(["float32", "float32", "float16", "bfloat16"]))
        bits = draw(patterns(codebook_bits(rng, draw(SIZES), dtype), long))
        taps = draw(st.sampled_from([n for n in (1, 1, 2, 9, 25) if bits.shape[1] % n == 0]))
        matrix = CompressedMatrix.compress(
            bits.view(np.float32), layout, coder, goal, columns=columns, taps=taps
        )
    nrows, ncols = bits.shape
    shapes = [(nrows, ncols), (nrows, ncols), (nrows, 1, ncols), (nrows, ncols, 1, 1)]
    if ncols % 4 == 0:
        shapes.append((nrows, ncols // 4, 2, 2))
    if ncols == 1:
        shapes.append((nrows,))
    return dtype, draw(st.sampled_from(shapes)), bits.tobytes(), matrix


@st.composite
def arrays(draw):
    """Draw a plain tensor: its type, shape, bytes and stored form."""
    dtype = draw(st.sampled_from(list(PLAIN)))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4) | st.just([50, 3, 4])))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    itemsize = PLAIN[dtype].itemsize
    words = rng.integers(0, 256, (int(np.prod(shape)), itemsize), np.uint8)
    kind = draw(st.sampled_from(["noise", "few", "pruned"]))
    if kind != "noise":
        words[:, -1] = 62 + rng.binomial(4, 0.5, len(words))
    if kind == "pruned":
        words[rng.random(len(words)) < draw(st.sampled_from([0.05, 0.5, 0.98, 1.0]))] = 0
        words[:, -1] |= (words[:, -1] == 0) & (rng.random(len(words)) < 0.1) * np.uint8(128)
    data = (words & 1 if dtype == "bool" else words).tobytes()
    coded = _core.CodedArray.encode(data, dtype) if draw(st.booleans()) else None
    return dtype, shape, data, coded or data


@st.composite
def models(draw):
    """Draw what a file holds: tensors by name, other names, metadata."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    shared = [codebook_bits(rng, k, "float32") for k in draw(st.lists(SIZES, max_size=2))]
    tensors = draw(st.lists(matrices(shared), min_size=1, max_size=4))
    tensors += draw(st.lists(arrays(), max_size=3))
    tensors = draw(st.permutations(tensors))
    count = len(tensors) + draw(st.integers(0, 2))
    names = draw(st.lists(TEXTS, min_size=count, max_size=count, unique=True))
    targets = names[: len(tensors)]
    aliases = {name: draw(st.sampled_from(targets)) for name in names[len(tensors) :]}
    return (
        dict(zip(targets, tensors, strict=True)),
        aliases,
        draw(st.dictionaries(TEXTS, TEXTS, max_size=3)),
        draw(st.booleans()),
    )


@given(models())
@settings(relaxed, max_examples=MAX_EXAMPLES)
def test_the_decoder_reads_the_bits_that_tersenet_wrote(tmp_path_factory, model):
    tensors, aliases, metadata, for_size = model
    path = tmp_path_factory.getbasetemp() / "decoder.terse"
    _core.write(
        str(path),
        [(name, dtype, shape, v) for name, (dtype, shape, _, v) in tensors.items()],
        list(aliases.items()),
        metadata,
        for_size=for_size,
    )
    found = decoder.read(path.read_bytes())
    assert found.metadata == metadata
    assert set(found.tensors) == {*tensors, *aliases}
    for name, (dtype, shape, content, _) in tensors.items():
        tensor = found.tensors[name]
        assert (tensor.dtype, tensor.shape, tensor.array.shape) == (dtype, shape, shape)
        assert tensor.array.tobytes() == content
    for name, target in aliases.items():
        assert found.tensors[name] is found.tensors[target]


def test_the_example_of_the_page_is_what_the_page_says():
    page = FORMAT.read_text("utf-8").partition("## Example")[2]
    lines = re.findall(r"^ +\d+  ((?:[0-9A-F]{2} ?)+)$", page, re.MULTILINE)
    tensors = decoder.read(bytes.fromhex("".join(lines))).tensors
    assert list(tensors) == ["fc"]
    np.testing.assert_array_equal(tensors["fc"].array, [[0, 0.5, -1], [0.5, 0, 0.5]])


def resealed(data: bytes) -> bytes:
    """Return a file with the checksums that its bytes should have, as far as the header tells."""
    end = 16 + int.from_bytes(data[8:12], "little")
    cursor = decoder.Cursor(data[16:end])
    try:
        cursor.take(1, "version")
        cursor.varint("required")
        block = 1 << cursor.u8("block size")
        nbytes = cursor.varint("data size")
        checksums = b""
        body = data[decoder.aligned(end, nbytes) :]
        for start in range(0, min(nbytes, len(body)), block):
            checksums += zlib.crc32(body[start : start + block]).to_bytes(4, "little")
        cursor.take(len(checksums), "checksums")
        at = 16 + cursor.at
        data = data[: at - len(checksums)] + checksums + data[at:]
    except decoder.Refused:
        pass
    return data[:12] + zlib.crc32(data[16:end]).to_bytes(4, "little") + data[16:]


def read_by_tersenet(path: Path):
    try:
        reader = _core.Reader(str(path), **LIMITS)
        reader.verify()
        tensors = {}
        names = reader.keys()
        for name in names:
            entry, value = reader.entry(name), reader.get(name)
            if isinstance(value, CompressedMatrix):
                value = value.decompress().tobytes()
            tensors[name] = (entry["dtype"], tuple(entry["shape"]), value)
        return reader.metadata(), tensors
    except FormatError:
        return "refused"


def read_by_the_decoder(path: Path):
    try:
        container = decoder.read(path.read_bytes(), decoder.Limits(tensor_nbytes=1 << 24))
    except decoder.Refused:
        return "refused"
    tensors = container.tensors.items()
    return container.metadata, {n: (t.dtype, t.shape, t.array.tobytes()) for n, t in tensors}


@pytest.mark.parametrize("goal", ["size", "speed"])
def test_the_decoder_reads_an_archive_of_several_blocks(tmp_path, goal):
    weights = np.zeros((4096, 8192), np.float32)
    rng = np.random.default_rng(4)
    places = rng.choice(300, 20, replace=False)
    for row in (0, 1, 2047, 2048, 2050, 4095):
        weights[row, places] = rng.integers(1, 4, 20)
    matrix = CompressedMatrix.compress(weights, "archive", goal=goal)
    path = tmp_path / "blocks.terse"
    tersenet.save({"w": matrix}, path)
    found = decoder.read(path.read_bytes(), decoder.Limits()).tensors["w"].array
    assert found.tobytes() == weights.tobytes()


def test_both_refuse_the_same_damage_under_right_checksums(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.terse"
    slow = {"cla_kinds.terse", "packed_forms.terse", "archive_parts.terse", "archive_places.terse"}
    golden = sorted(file for file in GOLDEN.glob("*.terse") if file.name not in slow)
    files = [file.read_bytes() for file in golden]
    read = 0
    for _ in range(MAX_DAMAGED):
        data = bytearray(files[rng.integers(len(files))])
        header_end = 16 + int.from_bytes(data[8:12], "little")
        for _ in range(rng.integers(1, 3)):
            in_header = rng.random() < 0.5 or len(data) == header_end
            part = (16, header_end) if in_header else (header_end, len(data))
            at = rng.integers(*part)
            data[at] = (
                rng.choice([data[at] ^ 1 << rng.integers(8), data[at] + 1, data[at] - 1]) % 256
            )
        path.write_bytes(resealed(bytes(data)))
        found = read_by_the_decoder(path)
        assert found == read_by_tersenet(path), bytes(data).hex()
        read += found != "refused"
    assert MAX_DAMAGED // 10 < read < MAX_DAMAGED * 9 // 10
