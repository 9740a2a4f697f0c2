"""Golden files are read for ever, by tersenet and by the decoder of FORMAT.md, and never damaged.

Each file of tests/golden stands beside what it holds (tests/golden/generate.py says how that is
written). Damage is every truncation and every flipped bit of the header, and a sample of flipped
bits of the data; all of it is an error.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import decoder
import numpy as np
import pytest

import tersenet
from tersenet import CompressedMatrix, FormatError, _core

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted(GOLDEN.glob("v*/*.terse"))
DATA_FLIPS = 64
DECODER_FLIPS = 200

golden = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def expected(path: Path) -> dict:
    return json.loads(path.with_suffix(".json").read_text("utf-8"))


def matrix_content(dense: np.ndarray, like: dict) -> dict:
    """Return a dense matrix in the words of the json: bits or sha256, as `like` has it."""
    patterns = np.ascontiguousarray(dense).view("<u4")
    if "sha256" in like:
        return {"sha256": hashlib.sha256(patterns.tobytes()).hexdigest()}
    return {"bits": [" ".join(f"{bits:08x}" for bits in row) for row in patterns]}


def flipped(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def header_end(data: bytes) -> int:
    return 16 + int.from_bytes(data[8:12], "little")


def sample(start: int, stop: int, n: int) -> list[int]:
    """Return about n numbers of [start, stop), the first and the last among them."""
    return np.unique(np.linspace(start, stop - 1, n).astype(int)).tolist() if stop > start else []


class Damaged:
    """A file to damage in place, and to check with tersenet."""

    def __init__(self, folder: Path, data: bytes) -> None:
        self.path, self.data = folder / "damaged.terse", data
        self.path.write_bytes(data)

    def is_refused(self) -> bool:
        limits = vars(tersenet.Limits(max_tensor_nbytes=1 << 24))
        try:
            _core.Reader(str(self.path), **limits).verify()
        except FormatError:
            return True
        return False

    def is_refused_with_bit_flipped(self, bit: int) -> bool:
        with open(self.path, "r+b", buffering=0) as file:
            file.seek(bit // 8)
            file.write(flipped(self.data, bit)[bit // 8 :][:1])
        refused = self.is_refused()
        with open(self.path, "r+b", buffering=0) as file:
            file.seek(bit // 8)
            file.write(self.data[bit // 8 :][:1])
        return refused


def test_golden_files_are_there_in_pairs_and_small():
    assert len(FILES) >= 40
    assert sorted(GOLDEN.glob("v*/*.json")) == [path.with_suffix(".json") for path in FILES]
    assert max(path.stat().st_size for path in FILES) <= 4096
    tensors = [tensor for path in FILES for tensor in expected(path)["tensors"].values()]
    matrices = [tensor for tensor in tensors if "layout" in tensor]
    assert {(m["layout"], m["coder"]) for m in matrices} == set(_core.PAIRS)


@golden
def test_tersenet_reads_what_was_put_in(path):
    with tersenet.open(path) as file:
        file.verify()
        assert file.metadata() == expected(path)["metadata"]
        assert list(file) == list(expected(path)["tensors"])
        for name, tensor in expected(path)["tensors"].items():
            info, value = file.info(name), file.get(name)
            if "alias_of" in tensor:
                assert info["alias_of"] == tensor["alias_of"]
                tensor = expected(path)["tensors"][tensor["alias_of"]]
            assert (info["dtype"], list(info["shape"])) == (tensor["dtype"], tensor["shape"])
            if isinstance(value, CompressedMatrix):
                found = [info["layout"], info["coder"], info["nnz"]]
                assert found == [tensor["layout"], tensor["coder"], tensor["nnz"]]
                assert matrix_content(value.decompress(), tensor).items() <= tensor.items()
            else:
                assert list(value.shape) == tensor["shape"]
                assert value.tobytes().hex() == tensor["bytes"]


@golden
def test_the_decoder_reads_what_was_put_in(path):
    container = decoder.read(path.read_bytes())
    assert container.metadata == expected(path)["metadata"]
    assert list(container.tensors) == list(expected(path)["tensors"])
    for name, tensor in expected(path)["tensors"].items():
        found = container.tensors[name]
        if "alias_of" in tensor:
            assert found is container.tensors[tensor["alias_of"]]
            continue
        assert (found.dtype, list(found.shape)) == (tensor["dtype"], tensor["shape"])
        assert list(found.array.shape) == tensor["shape"]
        if "layout" in tensor:
            nrows = tensor["shape"][0]
            dense = found.array.reshape(nrows, found.array.size // nrows if nrows else 0)
            assert matrix_content(dense, tensor).items() <= tensor.items()
        else:
            assert found.array.tobytes().hex() == tensor["bytes"]


@golden
def test_a_file_truncated_anywhere_is_an_error(path, tmp_path):
    data = path.read_bytes()
    file = Damaged(tmp_path, data)
    assert not file.is_refused()
    for nbytes in reversed(range(len(data))):
        os.truncate(file.path, nbytes)
        assert file.is_refused(), f"{nbytes} of {len(data)} bytes"
        with pytest.raises(decoder.Refused):
            decoder.read(data[:nbytes])


@golden
def test_a_file_that_goes_on_is_an_error(path, tmp_path):
    data = path.read_bytes() + b"\0"
    assert Damaged(tmp_path, data).is_refused()
    with pytest.raises(decoder.Refused):
        decoder.read(data)


@golden
def test_every_flipped_bit_of_the_header_is_an_error(path, tmp_path):
    data = path.read_bytes()
    file = Damaged(tmp_path, data)
    nbits = 8 * header_end(data)
    for bit in range(nbits):
        assert file.is_refused_with_bit_flipped(bit), f"bit {bit % 8} of byte {bit // 8}"
    for bit in sample(0, nbits, DECODER_FLIPS):
        with pytest.raises(decoder.Refused):
            decoder.read(flipped(data, bit))
    assert not file.is_refused()


@golden
def test_flipped_bits_after_the_header_are_errors(path, tmp_path):
    data = path.read_bytes()
    file = Damaged(tmp_path, data)
    for bit in sample(8 * header_end(data), 8 * len(data), DATA_FLIPS):
        assert file.is_refused_with_bit_flipped(bit), f"bit {bit % 8} of byte {bit // 8}"
        with pytest.raises(decoder.Refused):
            decoder.read(flipped(data, bit))
    assert not file.is_refused()
