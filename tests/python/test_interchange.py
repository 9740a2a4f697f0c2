"""To and from safetensors, checked with that library."""

from __future__ import annotations

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")
st_torch = pytest.importorskip("safetensors.torch")

from arrays import sparse
from models import SmallNet, small_net

from tersenet import io as terse
from tersenet.compression import decompress
from tersenet.errors import FormatError


def test_every_type_goes_there_and_back_bit_by_bit(tmp_path):

    generator = torch.manual_seed(0)
    tensors = {
        "sparse": torch.from_numpy(sparse(64, 64)),
        "conv": torch.from_numpy(sparse(64, 72)).reshape(64, 8, 3, 3),
        "bf16": torch.from_numpy(sparse(64, 64)).to(torch.bfloat16),
        "f16": torch.from_numpy(sparse(64, 64)).to(torch.float16),
        "dense": torch.randn(9, 7, generator=generator),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "long": torch.arange(5),
        "flags": torch.tensor([True, False]),
        "f8": torch.randn(5, generator=generator).to(torch.float8_e4m3fn),
    }
    nan = np.resize(np.array([0x7FC1, 0x7F81, 0x8000], np.uint16), (30, 30)).view(np.int16)
    tensors["nan"] = torch.from_numpy(nan).view(torch.bfloat16)
    st_torch.save_file(tensors, tmp_path / "a.safetensors", metadata={"by": "test"})
    size = terse.from_safetensors(tmp_path / "a.safetensors", tmp_path / "a.terse")
    assert size == os.path.getsize(tmp_path / "a.terse")
    with terse.open(tmp_path / "a.terse") as file:
        assert file.metadata() == {"by": "test"}
        kinds = {name: file.info(name)["kind"] for name in file}
        matrices = {"sparse", "conv", "bf16", "f16", "nan"}
        assert {name for name, kind in kinds.items() if kind == "matrix"} == matrices
        assert file.info("conv")["shape"] == (64, 8, 3, 3)
    terse.to_safetensors(tmp_path / "a.terse", tmp_path / "b.safetensors")
    back = st_torch.load_file(tmp_path / "b.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        assert back[name].flatten().view(torch.uint8).tolist() == (
            tensor.flatten().view(torch.uint8).tolist()
        )


def test_a_compressed_model_becomes_dense_safetensors(tmp_path):

    small = small_net()
    terse.save(small, tmp_path / "net.terse")
    terse.to_safetensors(tmp_path / "net.terse", tmp_path / "net.safetensors")
    net = SmallNet()
    net.load_state_dict(st_torch.load_file(tmp_path / "net.safetensors"))
    expected = decompress(small).state_dict()
    assert all(torch.equal(a, expected[k]) for k, a in net.state_dict().items())


def test_damaged_safetensors_are_refused(tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "a.terse"

    def header(text: str, data: bytes = b"") -> bytes:
        return len(text).to_bytes(8, "little") + text.encode() + data

    entry = '{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
    source.write_bytes(header(entry, bytes(8)))
    terse.from_safetensors(source, target)
    for bad, message in (
        (b"", "a header of 0 bytes in a file of 0"),
        (b"version https://git-lfs.github.com/spec/v1", "a header of"),
        (header("{"), "no JSON"),
        (header("[]"), "no object"),
        (header("[" * 100_000), "no JSON"),
        (header(entry, bytes(7)), "end at byte"),
        (header(entry, bytes(9)), "end at byte"),
        (header(entry.replace("F32", "F31"), bytes(8)), "dtype 'F31'"),
        (header(entry.replace("[2]", "[3]"), bytes(8)), "has 8 bytes, expected 12"),
        (header(entry.replace("[2]", "[-2]"), bytes(8)), "has shape"),
        (header(entry.replace("[0, 8]", "[4, 12]"), bytes(12)), "starts at 4, expected 0"),
        (header(entry.replace("[0, 8]", "[0]"), bytes(8)), "data_offsets"),
        (header('{"w": 3}'), "'w' is 3"),
        (header('{"__metadata__": {"a": 1}}'), "object of strings"),
        (header('{"w": 1, "w": 2}'), "a name twice"),
    ):
        source.write_bytes(bad)
        with pytest.raises(FormatError, match=message.replace("[", r"\[")):
            terse.from_safetensors(source, target)
    with terse.open(target) as file:
        assert list(file) == ["w"]


def test_what_safetensors_cannot_hold_is_named(tmp_path):
    terse.save({"x": np.zeros(3, np.complex128)}, tmp_path / "a.terse")
    with pytest.raises(ValueError, match="x is complex128"):
        terse.to_safetensors(tmp_path / "a.terse", tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()
    with pytest.raises(ValueError, match="zip"):
        terse.from_safetensors("missing", tmp_path / "b.terse", layout="zip")
    with pytest.raises(FileNotFoundError):
        terse.from_safetensors(tmp_path / "missing", tmp_path / "b.terse")
