"""Files: what goes in comes out, in another process, and nothing is lost on the way."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tersenet import CompressedMatrix
from tersenet import io as terse
from tersenet.errors import FormatError
from tersenet.io import Limits

settings.register_profile("tersenet", deadline=None, max_examples=60)
settings.load_profile("tersenet")

DTYPES = ["float32", "float64", "float16", "int8", "int64", "uint16", "bool", "complex64"]


def sparse(nrows: int = 30, ncols: int = 20, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(6).astype(np.float32)
    return values[rng.integers(0, 6, (nrows, ncols))] * (rng.random((nrows, ncols)) < 0.2)


arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=4, min_side=0))
)
names = st.text(
    st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=9
)


@given(st.dictionaries(names, arrays, max_size=5), st.dictionaries(names, names, max_size=3))
def test_arrays_and_metadata_come_back_bit_by_bit(tmp_path_factory, values, metadata):
    path = tmp_path_factory.mktemp("io") / "model.terse"
    nbytes = terse.save(values, path, metadata=metadata)
    assert os.path.getsize(path) == nbytes
    with terse.open(path) as file:
        assert file.metadata() == metadata
        assert file.keys() == list(values)
        file.verify()
    loaded = terse.load(path)
    assert list(loaded) == list(values)
    for name, array in values.items():
        assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape)
        assert loaded[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("mmap", [False, True])
def test_matrices_come_back_equal_and_readable_one_by_one(tmp_path, mmap):
    a, b = CompressedMatrix.compress(sparse()), CompressedMatrix.compress(sparse(seed=1), "csr")
    terse.save({"a": a, "b": b}, tmp_path / "m.terse")
    with terse.open(tmp_path / "m.terse", mmap=mmap) as file:
        assert len(file) == 2
        assert "a" in file
        assert "c" not in file
        assert list(file) == ["a", "b"]
        info = file.info("b")
        assert (info["kind"], info["dtype"], info["shape"]) == ("matrix", "float32", (30, 20))
        assert (info["layout"], info["nnz"]) == ("csr", b.nnz)
        found = file.get("b")
        with pytest.raises(KeyError, match="no tensor 'c'"):
            file.get("c")
    assert found == b
    np.testing.assert_array_equal(found.decompress(), sparse(seed=1))
    with pytest.raises(ValueError, match="closed"):
        file.get("a")


def test_a_goal_transcodes_and_none_keeps_the_layout(tmp_path):
    matrix = CompressedMatrix.compress(sparse(200, 300), "dense")
    for goal, layout in ((None, "dense"), ("size", None), ("speed", None)):
        terse.save({"m": matrix}, tmp_path / "m.terse", goal=goal)
        found = terse.load(tmp_path / "m.terse")["m"]
        np.testing.assert_array_equal(found.decompress(), sparse(200, 300))
        assert found.layout == (layout or matrix.to(goal=goal).layout)
    with pytest.raises(ValueError, match="goal is 'small'"):
        terse.save({"m": matrix}, tmp_path / "m.terse", goal="small")


def test_one_value_under_two_names_is_stored_once_and_tied_again(tmp_path):
    matrix, array = CompressedMatrix.compress(sparse(500, 500)), np.arange(5000.0)
    once = terse.save({"m": matrix, "x": array}, tmp_path / "once.terse")
    values = {"m": matrix, "x": array, "n": matrix, "y": array, "z": array[:9]}
    twice = terse.save(values, tmp_path / "twice.terse")
    assert twice - once < 300
    with terse.open(tmp_path / "twice.terse") as file:
        assert file.info("n")["alias_of"] == "m"
        assert file.info("y")["alias_of"] == "x"
        assert "alias_of" not in file.info("z")
    loaded = terse.load(tmp_path / "twice.terse")
    assert loaded["m"] is loaded["n"]
    assert loaded["x"] is loaded["y"]


def test_strided_and_big_endian_arrays_are_stored_by_value(tmp_path):
    base = np.arange(24, dtype=np.int32).reshape(4, 6)
    values = {"t": base.T, "s": base[::-2, ::3], "b": base.astype(">i4")}
    terse.save(values, tmp_path / "m.terse")
    for name, array in terse.load(tmp_path / "m.terse").items():
        np.testing.assert_array_equal(array, values[name])


def test_wrong_values_are_named_and_the_old_file_stays(tmp_path):
    path = tmp_path / "m.terse"
    terse.save({"x": np.ones(3)}, path)
    before = path.read_bytes()
    for values, message in (
        ({"x": [1, 2]}, "x is list, expected a CompressedMatrix, array or tensor"),
        ({"x": np.array(["a"])}, "x is <U1"),
        ({3: np.ones(2)}, "name is 3, expected a str"),
        ({"a\0b": np.ones(2)}, "NUL"),
    ):
        with pytest.raises(ValueError, match=message):
            terse.save(values, path)
    with pytest.raises(ValueError, match="metadata holds 'a': 1"):
        terse.save({}, path, metadata={"a": 1})
    for unwritable in (tmp_path / "nowhere" / "m.terse", tmp_path):
        with pytest.raises(OSError, match="saving"):
            terse.save({"x": np.ones(3)}, unwritable)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.terse"]


def test_files_that_are_not_ours_are_refused(tmp_path):
    path = tmp_path / "m.terse"
    with pytest.raises(FileNotFoundError):
        terse.open(path)
    terse.save({"w": CompressedMatrix.compress(sparse())}, path)
    good = path.read_bytes()
    for bad in (
        b"",
        b"hello",
        b"<html></html>" * 9,
        good[:-1],
        good + b"\0",
        good[: len(good) // 2],
    ):
        path.write_bytes(bad)
        with pytest.raises(FormatError):
            terse.load(path)
    flipped = bytearray(good)
    flipped[-3] ^= 4
    path.write_bytes(flipped)
    with pytest.raises(FormatError), terse.open(path) as file:
        file.verify()


def test_limits_are_kept(tmp_path):
    path = tmp_path / "m.terse"
    terse.save({"a": np.zeros(1000), "b": np.zeros(10)}, path)
    for limits in (
        Limits(max_tensors=1),
        Limits(max_tensor_nbytes=7999),
        Limits(max_header_nbytes=10),
    ):
        with pytest.raises(FormatError):
            terse.open(path, limits=limits)
    terse.open(path, limits=Limits(max_tensors=2, max_tensor_nbytes=8000))
    with pytest.raises(ValueError, match="max_tensors is -1"):
        Limits(max_tensors=-1)


def test_saving_over_an_open_file_leaves_the_reader_the_old_content(tmp_path):
    path = tmp_path / "m.terse"
    old, new = np.arange(50_000.0), -np.arange(50_000.0)
    terse.save({"x": old}, path)
    with terse.open(path) as file:
        terse.save({"x": new}, path)
        np.testing.assert_array_equal(file.get("x"), old)
    np.testing.assert_array_equal(terse.load(path)["x"], new)


def test_threads_may_read_one_file(tmp_path):
    values = {f"m{i}": CompressedMatrix.compress(sparse(seed=i)) for i in range(8)}
    terse.save(values, tmp_path / "m.terse")
    equal: list[bool] = []
    with terse.open(tmp_path / "m.terse") as file:

        def read() -> None:
            for _ in range(50):
                equal.extend(file.get(name) == matrix for name, matrix in values.items())

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert equal == [True] * (4 * 50 * 8)


def test_numpy_alone_is_enough(tmp_path):
    code = """
import sys
sys.modules["torch"] = None
import numpy as np, tersenet.io as io
from tersenet import CompressedMatrix
io.save({"w": CompressedMatrix.compress(np.eye(9, dtype=np.float32)), "b": np.ones(3)}, sys.argv[1])
with io.open(sys.argv[1]) as file:
    assert file.get("w").decompress().trace() == 9 and file.get("b").sum() == 3
io.to_safetensors(sys.argv[1], sys.argv[1] + ".st")
io.from_safetensors(sys.argv[1] + ".st", sys.argv[1])
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.terse")], check=True)


class TestModels:
    """Saving and loading torch models."""

    @pytest.fixture(autouse=True)
    def _needs_torch(self):
        pytest.importorskip("torch")

    @staticmethod
    def small():
        from models import SmallNet

        from tersenet.compression import compress
        from tersenet.plan import Plan, Rule

        plan = Plan({"*": Rule(sparsity=0.9, quantizer="cws", k=8)})
        return compress(SmallNet().eval(), plan)

    def test_a_fresh_process_gives_the_same_outputs_bit_for_bit(self, tmp_path):
        import torch
        from models import SmallNet

        small = self.small()
        ids = SmallNet.example()
        terse.save(small, tmp_path / "net.terse")
        code = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import torch, tersenet.io as io
from models import SmallNet
torch.manual_seed(99)
net = io.load(sys.argv[1], into=SmallNet()).eval()
torch.save(net(SmallNet.example()), sys.argv[2])
"""
        out = tmp_path / "out.pt"
        arguments = [sys.executable, "-c", code, str(tmp_path / "net.terse"), str(out)]
        subprocess.run(arguments, check=True)
        assert torch.equal(torch.load(out, weights_only=True), small(ids))

    def test_names_are_those_of_the_stock_model_and_shapes_logical(self, tmp_path):
        from models import SmallNet

        terse.save(self.small(), tmp_path / "net.terse")
        stock = SmallNet().state_dict()
        with terse.open(tmp_path / "net.terse") as file:
            assert set(file) == set(stock)
            for name, tensor in stock.items():
                info = file.info(name)
                assert info["shape"] == tuple(tensor.shape)
                assert info["dtype"] == str(tensor.dtype).removeprefix("torch.")
            assert file.info("conv2.weight")["kind"] == "matrix"
            assert file.info("head.weight")["alias_of"] == "embedding.weight"

    @pytest.mark.parametrize("goal", [None, "size", "speed"])
    def test_it_loads_into_plain_meta_and_compressed_models(self, tmp_path, goal):
        import torch
        from models import SmallNet

        from tersenet.nn import CompressedLayer

        small, ids = self.small(), SmallNet.example()
        terse.save(small, tmp_path / "net.terse", goal=goal)
        other = self.small()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
        with torch.device("meta"):
            empty = SmallNet().eval()
        for target in (SmallNet().eval(), empty, other):
            loaded = terse.load(tmp_path / "net.terse", into=target)
            assert loaded is target
            layers = [m for m in loaded.modules() if isinstance(m, CompressedLayer)]
            assert len(layers) == 6
            assert not any(t.is_meta for t in [*loaded.parameters(), *loaded.buffers()])
            assert loaded.head.payload is loaded.embedding.payload
            for name, layer in loaded.named_modules():
                if isinstance(layer, CompressedLayer):
                    assert torch.equal(layer.weight, small.get_submodule(name).weight)
            if goal is None:
                assert torch.equal(loaded(ids), small(ids))

    def test_a_plain_model_goes_through_a_file(self, tmp_path):
        import torch
        from models import SmallNet

        net, other = SmallNet(), SmallNet(seed=5)
        terse.save(net, tmp_path / "net.terse")
        terse.load(tmp_path / "net.terse", into=other)
        assert all(torch.equal(a, other.state_dict()[k]) for k, a in net.state_dict().items())
        compressed = self.small()
        terse.load(tmp_path / "net.terse", into=compressed)
        assert type(compressed.head) is torch.nn.Linear
        assert torch.equal(compressed.head.weight, net.head.weight)

    def test_it_loads_into_a_pruned_model(self, tmp_path):
        import torch
        from models import SmallNet

        from tersenet.plan import Plan
        from tersenet.pruning import prune

        small = self.small()
        terse.save(small, tmp_path / "net.terse")
        target = SmallNet().eval()
        prune(target, Plan.of(sparsity=0.5))
        terse.load(tmp_path / "net.terse", into=target)
        assert torch.equal(target(SmallNet.example()), small(SmallNet.example()))

    def test_what_does_not_match_is_listed_and_nothing_changes(self, tmp_path):
        import torch
        from models import SmallNet
        from torch import nn

        terse.save(self.small(), tmp_path / "net.terse")

        class Other(SmallNet):
            def __init__(self):
                super().__init__()
                del self.norm
                self.extra = nn.Linear(2, 2)
                self.conv2 = nn.Conv2d(1, 8, 5)
                self.body = self.body.double().to(torch.bfloat16)

        other = Other()
        before = copy.deepcopy(other.state_dict())
        modules = list(other.modules())
        with pytest.raises(ValueError, match="does not fit the model") as caught:
            terse.load(tmp_path / "net.terse", into=other)
        message = str(caught.value)
        assert "missing in the file: extra.weight" in message
        assert "unexpected in the file: norm.running_mean" in message
        assert "conv2.weight: found shape [32, 1, 3, 3], expected [8, 1, 5, 5]" in message
        assert "body.0.weight: found float32, expected bfloat16" in message
        assert list(other.modules()) == modules
        assert all(torch.equal(a, other.state_dict()[k]) for k, a in before.items())

    def test_a_damaged_tensor_changes_nothing(self, tmp_path):
        import torch
        from models import SmallNet

        path = tmp_path / "net.terse"
        terse.save(self.small(), path)
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
        net = SmallNet()
        before = copy.deepcopy(net.state_dict())
        with pytest.raises(FormatError):
            terse.load(path, into=net)
        assert type(net.head) is torch.nn.Linear
        assert all(torch.equal(a, net.state_dict()[k]) for k, a in before.items())

    def test_tensors_tied_in_the_model_but_not_in_the_file_are_refused(self, tmp_path):
        from torch import nn

        layer = nn.Linear(3, 3)
        terse.save(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), tmp_path / "net.terse")
        with pytest.raises(ValueError, match=r"0\.weight and 1\.weight: two tensors in the file"):
            terse.load(tmp_path / "net.terse", into=nn.Sequential(layer, layer))

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
    def test_other_types_keep_their_bits(self, tmp_path, dtype):
        import torch
        from models import SmallNet

        from tersenet.compression import decompress

        target = getattr(torch, dtype)
        small = self.small().to(target)
        stock = decompress(small)
        terse.save(small, tmp_path / "net.terse")
        loaded = terse.load(tmp_path / "net.terse", into=SmallNet().to(target))
        found = decompress(loaded).state_dict()
        assert found["head.weight"].dtype == target
        assert all(torch.equal(a, found[k]) for k, a in stock.state_dict().items())
        terse.save({"x": stock.head.bias}, tmp_path / "x.terse")
        array = terse.load(tmp_path / "x.terse")["x"]
        assert array.dtype == {"bfloat16": "uint16"}.get(dtype, dtype)

    def test_a_narrower_file_loads_into_a_wider_model_exactly(self, tmp_path):
        import torch
        from models import SmallNet

        from tersenet.compression import compress, decompress

        stock = decompress(self.small()).to(torch.bfloat16)
        terse.save(compress(stock), tmp_path / "net.terse")
        loaded = decompress(terse.load(tmp_path / "net.terse", into=SmallNet()))
        for name, tensor in stock.float().state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)

    def test_a_matrix_in_the_place_of_a_plain_tensor_is_decompressed(self, tmp_path):
        import torch
        from torch import nn

        net, other = nn.LSTM(40, 40), nn.LSTM(40, 40)
        with torch.no_grad():
            net.weight_ih_l0 *= torch.rand_like(net.weight_ih_l0) < 0.1
        state = dict(net.state_dict())
        state["weight_ih_l0"] = CompressedMatrix.compress(state["weight_ih_l0"].numpy())
        terse.save(state, tmp_path / "net.terse")
        terse.load(tmp_path / "net.terse", into=other)
        assert torch.equal(other.weight_ih_l0, net.weight_ih_l0)

    def test_a_single_layer_comes_back_in_its_place(self, tmp_path):
        import torch
        from torch import nn

        from tersenet.compression import compress
        from tersenet.nn import CompressedLinear
        from tersenet.plan import Plan

        small = compress(nn.Linear(40, 40), Plan.of(sparsity=0.9))
        terse.save(small, tmp_path / "net.terse")
        loaded = terse.load(tmp_path / "net.terse", into=nn.Linear(40, 40))
        assert isinstance(loaded, CompressedLinear)
        assert torch.equal(loaded.weight, small.weight)

    def test_models_that_cannot_be_saved_say_why(self, tmp_path):
        from torch import nn

        from tersenet.plan import Plan
        from tersenet.pruning import prune

        net = nn.Sequential(nn.Linear(8, 8))
        prune(net, Plan.of(sparsity=0.5))
        with pytest.raises(ValueError, match="layer '0' is pruned or quantized but not compressed"):
            terse.save(net, tmp_path / "net.terse")

        class Stateful(nn.Module):
            def get_extra_state(self):
                return {"a": 1}

        with pytest.raises(ValueError, match="_extra_state is dict, expected a tensor"):
            terse.save(Stateful(), tmp_path / "net.terse")


class TestSafetensors:
    """To and from safetensors, checked with that library."""

    def test_every_type_goes_there_and_back_bit_by_bit(self, tmp_path):
        torch = pytest.importorskip("torch")
        st_torch = pytest.importorskip("safetensors.torch")

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

    def test_a_compressed_model_becomes_dense_safetensors(self, tmp_path):
        torch = pytest.importorskip("torch")
        st_torch = pytest.importorskip("safetensors.torch")
        from models import SmallNet

        from tersenet.compression import decompress

        small = TestModels.small()
        terse.save(small, tmp_path / "net.terse")
        terse.to_safetensors(tmp_path / "net.terse", tmp_path / "net.safetensors")
        net = SmallNet()
        net.load_state_dict(st_torch.load_file(tmp_path / "net.safetensors"))
        expected = decompress(small).state_dict()
        assert all(torch.equal(a, expected[k]) for k, a in net.state_dict().items())

    def test_damaged_safetensors_are_refused(self, tmp_path):
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

    def test_what_safetensors_cannot_hold_is_named(self, tmp_path):
        terse.save({"x": np.zeros(3, np.complex128)}, tmp_path / "a.terse")
        with pytest.raises(ValueError, match="x is complex128"):
            terse.to_safetensors(tmp_path / "a.terse", tmp_path / "a.safetensors")
        assert not (tmp_path / "a.safetensors").exists()
        with pytest.raises(ValueError, match="zip"):
            terse.from_safetensors("missing", tmp_path / "b.terse", layout="zip")
        with pytest.raises(FileNotFoundError):
            terse.from_safetensors(tmp_path / "missing", tmp_path / "b.terse")
