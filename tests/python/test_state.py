"""Models and files: the same outputs in a fresh process, all or nothing, tied again."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from models import SmallNet, small_net
from torch import nn

from tersenet import CompressedMatrix
from tersenet import io as terse
from tersenet.compression import compress, decompress
from tersenet.errors import FormatError
from tersenet.nn import CompressedLayer, CompressedLinear
from tersenet.plan import Plan
from tersenet.pruning import prune


def test_a_fresh_process_gives_the_same_outputs_bit_for_bit(tmp_path):

    small = small_net()
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


def test_names_are_those_of_the_stock_model_and_shapes_logical(tmp_path):

    terse.save(small_net(), tmp_path / "net.terse")
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
def test_it_loads_into_plain_meta_and_compressed_models(tmp_path, goal):

    small, ids = small_net(), SmallNet.example()
    terse.save(small, tmp_path / "net.terse", goal=goal)
    other = small_net()
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


def test_a_plain_model_goes_through_a_file(tmp_path):

    net, other = SmallNet(), SmallNet(seed=5)
    terse.save(net, tmp_path / "net.terse")
    terse.load(tmp_path / "net.terse", into=other)
    assert all(torch.equal(a, other.state_dict()[k]) for k, a in net.state_dict().items())
    compressed = small_net()
    terse.load(tmp_path / "net.terse", into=compressed)
    assert type(compressed.head) is torch.nn.Linear
    assert torch.equal(compressed.head.weight, net.head.weight)


def test_it_loads_into_a_pruned_model(tmp_path):

    small = small_net()
    terse.save(small, tmp_path / "net.terse")
    target = SmallNet().eval()
    prune(target, Plan.of(sparsity=0.5))
    terse.load(tmp_path / "net.terse", into=target)
    assert torch.equal(target(SmallNet.example()), small(SmallNet.example()))


def test_what_does_not_match_is_listed_and_nothing_changes(tmp_path):

    terse.save(small_net(), tmp_path / "net.terse")

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


def test_a_damaged_tensor_changes_nothing(tmp_path):

    path = tmp_path / "net.terse"
    terse.save(small_net(), path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    net = SmallNet()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(FormatError):
        terse.load(path, into=net)
    assert type(net.head) is torch.nn.Linear
    assert all(torch.equal(a, net.state_dict()[k]) for k, a in before.items())


def test_tensors_tied_in_the_model_but_not_in_the_file_are_refused(tmp_path):

    layer = nn.Linear(3, 3)
    terse.save(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), tmp_path / "net.terse")
    net = nn.Sequential(layer, layer)
    before = layer.weight.clone()
    with pytest.raises(ValueError, match=r"0\.weight and 1\.weight are one tensor in the model"):
        terse.load(tmp_path / "net.terse", into=net)
    assert torch.equal(layer.weight, before)


def test_tied_tensors_may_be_stored_twice_or_under_one_name(tmp_path):
    for net in (SmallNet(), small_net()):
        terse.save(net, tmp_path / "tied.terse")
        terse.to_safetensors(tmp_path / "tied.terse", tmp_path / "net.safetensors")
        terse.from_safetensors(tmp_path / "net.safetensors", tmp_path / "twice.terse")
        values = terse.load(tmp_path / "twice.terse")
        del values["head.weight"]
        terse.save(values, tmp_path / "once.terse")
        for name in ("twice", "once"):
            for target in (SmallNet(), small_net()):
                loaded = terse.load(tmp_path / f"{name}.terse", into=target)
                expected = decompress(net).state_dict()
                assert all(
                    torch.equal(t, expected[k]) for k, t in decompress(loaded).state_dict().items()
                )
                if isinstance(loaded.head, CompressedLayer):
                    assert loaded.head.payload is loaded.embedding.payload


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_types_keep_their_bits(tmp_path, dtype):

    target = getattr(torch, dtype)
    small = small_net().to(target)
    stock = decompress(small)
    terse.save(small, tmp_path / "net.terse")
    loaded = terse.load(tmp_path / "net.terse", into=SmallNet().to(target))
    found = decompress(loaded).state_dict()
    assert found["head.weight"].dtype == target
    assert all(torch.equal(a, found[k]) for k, a in stock.state_dict().items())
    terse.save({"x": stock.head.bias}, tmp_path / "x.terse")
    array = terse.load(tmp_path / "x.terse")["x"]
    assert array.dtype == {"bfloat16": "uint16"}.get(dtype, dtype)


def test_a_narrower_file_loads_into_a_wider_model_exactly(tmp_path):

    stock = decompress(small_net()).to(torch.bfloat16)
    terse.save(compress(stock), tmp_path / "net.terse")
    loaded = decompress(terse.load(tmp_path / "net.terse", into=SmallNet()))
    for name, tensor in stock.float().state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_matrix_in_the_place_of_a_plain_tensor_is_decompressed(tmp_path):

    net, other = nn.LSTM(40, 40), nn.LSTM(40, 40)
    with torch.no_grad():
        net.weight_ih_l0 *= torch.rand_like(net.weight_ih_l0) < 0.1
    state = dict(net.state_dict())
    state["weight_ih_l0"] = CompressedMatrix.compress(state["weight_ih_l0"].numpy())
    terse.save(state, tmp_path / "net.terse")
    terse.load(tmp_path / "net.terse", into=other)
    assert torch.equal(other.weight_ih_l0, net.weight_ih_l0)


def test_a_single_layer_comes_back_in_its_place(tmp_path):

    small = compress(nn.Linear(40, 40), Plan.of(sparsity=0.9))
    terse.save(small, tmp_path / "net.terse")
    loaded = terse.load(tmp_path / "net.terse", into=nn.Linear(40, 40))
    assert isinstance(loaded, CompressedLinear)
    assert torch.equal(loaded.weight, small.weight)


def test_models_that_cannot_be_saved_say_why(tmp_path):

    net = nn.Sequential(nn.Linear(8, 8))
    prune(net, Plan.of(sparsity=0.5))
    with pytest.raises(ValueError, match="layer '0' is pruned or quantized but not compressed"):
        terse.save(net, tmp_path / "net.terse")

    class Stateful(nn.Module):
        def get_extra_state(self):
            return {"a": 1}

    with pytest.raises(ValueError, match="_extra_state is dict, expected a tensor"):
        terse.save(Stateful(), tmp_path / "net.terse")


def test_a_layer_with_a_hook_is_not_replaced(tmp_path):
    terse.save(small_net(), tmp_path / "net.terse")
    net = SmallNet()
    net.conv2.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"conv2\.weight: the layer has a hook"):
        terse.load(tmp_path / "net.terse", into=net)
    assert type(net.conv1) is nn.Conv1d


def test_a_codebook_that_layers_share_is_stored_once(tmp_path):
    layers = [nn.Linear(100, 100) for _ in range(4)]
    sizes = {}
    for scope in ("layer", "kind"):
        plan = Plan.of(sparsity=0.5, quantizer="cws", k=250, codebook_scope=scope)
        small = compress(nn.Sequential(*layers), plan, layout="shac")
        codebooks = {layer.matrix.codebook.tobytes() for layer in small}
        assert len(codebooks) == (1 if scope == "kind" else 4)
        stored = sum(layer.matrix.nbytes for layer in small)
        sizes[scope] = stored - terse.save(small, tmp_path / "net.terse")
    assert sizes["kind"] - sizes["layer"] > 2.9 * 4 * 250


def test_an_archive_of_alike_rows_becomes_grouped_in_a_layer(tmp_path):
    torch.manual_seed(5)
    layer = nn.Linear(80, 400)
    with torch.no_grad():
        patterns = torch.randint(-2, 3, (6, 80)).float()
        alike = patterns[torch.randint(6, (400,))]
        layer.weight[:] = torch.where(torch.rand(alike.shape) < 0.02, torch.ones(()), alike)
    archive = compress(layer).matrix.to("archive")
    terse.save({"weight": archive, "bias": layer.bias}, tmp_path / "layer.terse")
    again = terse.load(tmp_path / "layer.terse", into=nn.Linear(80, 400))
    assert (again.matrix.layout, again.matrix.coder) == ("grouped", "tans")
    assert torch.equal(decompress(again).weight, layer.weight)
    x = torch.randn(3, 80)
    assert torch.allclose(again(x), layer(x), atol=1e-4)


def test_an_archive_becomes_coded_in_a_layer_and_stays_an_archive_in_a_file(tmp_path):
    small = compress(nn.Linear(64, 48), Plan.of(sparsity=0.8, quantizer="cws", k=8))
    weight = small.matrix.to("archive")
    terse.save({"weight": weight, "bias": small.bias}, tmp_path / "layer.terse")
    with terse.open(tmp_path / "layer.terse") as file:
        assert file.get("weight").layout == "archive"
    layer = terse.load(tmp_path / "layer.terse", into=nn.Linear(64, 48))
    assert layer.matrix.layout == "coded"
    x = torch.randn(3, 64)
    assert torch.equal(decompress(layer).weight, decompress(small).weight)
    assert torch.allclose(layer(x), small(x), atol=1e-5)
