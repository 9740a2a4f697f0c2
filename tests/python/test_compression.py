"""compress and decompress: lossless, tied, with plans, and nothing dense left behind."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from tersenet.compression import compress, decompress, left_dense
from tersenet.nn import (
    CompressedConv2d,
    CompressedEmbedding,
    CompressedLayer,
    CompressedLinear,
)
from tersenet.plan import Plan, Rule
from tersenet.pruning import prune
from tersenet.quantization import quantize

PLAN = Plan({"*": Rule(sparsity=0.9, quantizer="cws", k=16)})


class Net(nn.Module):
    """Every kind of layer, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 16)
        self.conv1 = nn.Conv1d(16, 24, 3, padding=1)
        self.norm = nn.BatchNorm1d(24)
        self.conv2 = nn.Conv2d(1, 32, 5, padding=2, bias=False)
        self.body = nn.Sequential(nn.Linear(24 * 32, 64), nn.ReLU(), nn.Linear(64, 16))
        self.head = nn.Linear(16, 50)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.conv1(self.embedding(ids).movedim(-1, 1)))
        x = self.conv2(x.unsqueeze(1)).amax(-1).flatten(1)
        return self.head(self.body(x))


IDS = torch.randint(0, 50, (4, 7), generator=torch.manual_seed(1))


def bits(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy().view(np.int32)


def same_state(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype and torch.equal(left[k], right[k]) for k in left
    )


def kinds(model: nn.Module) -> set[type]:
    return {type(m) for m in model.modules() if isinstance(m, CompressedLayer)}


def test_a_plan_prunes_quantizes_and_compresses_a_copy():
    net = Net().eval()
    before = copy.deepcopy(net.state_dict())
    small = compress(net, PLAN)
    assert same_state(net, _with_state(Net(), before))
    assert kinds(small) >= {CompressedLinear, CompressedConv2d, CompressedEmbedding}
    assert left_dense(small) == {}
    first = small.body[0].matrix
    assert first.nnz == round(0.1 * 64 * 24 * 32)
    assert len(first.codebook) == 16
    assert small(IDS).shape == net(IDS).shape


def _with_state(net: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    net.load_state_dict(state)
    return net


def test_compress_packs_what_is_there_to_the_bit():
    net = Net().eval()
    prune(net, PLAN)
    quantize(net, PLAN)
    weights = {n: getattr(net, n).weight.detach().clone() for n in ("conv1", "conv2", "head")}
    expected = net(IDS)
    small = compress(net)
    for name, weight in weights.items():
        np.testing.assert_array_equal(bits(getattr(small, name).weight), bits(weight))
    torch.testing.assert_close(small(IDS), expected, rtol=1e-4, atol=1e-4)
    assert net.conv1.weight.grad_fn is not None  # still parametrized, still trains


def test_decompress_gives_a_stock_model_with_equal_bits():
    small = compress(Net().eval(), PLAN)
    stock = decompress(small)
    assert kinds(stock) == set()
    assert [type(m) for m in stock.modules()] == [type(m) for m in Net().modules()]
    assert stock.state_dict().keys() == Net().state_dict().keys()
    np.testing.assert_array_equal(bits(stock.conv2.weight), bits(small.conv2.weight))
    assert stock.head.weight is stock.embedding.weight
    assert left_dense(stock) == {}
    assert same_state(decompress(compress(stock)), stock)
    assert kinds(small) != set()


def test_tied_weights_share_one_payload():
    small = compress(Net(), PLAN)
    assert isinstance(small.head, CompressedLinear)
    assert isinstance(small.embedding, CompressedEmbedding)
    assert small.head.payload is small.embedding.payload
    again = pickle.loads(pickle.dumps(small))
    assert again.head.payload is again.embedding.payload


def test_one_module_in_two_places_stays_one():
    layer = nn.Linear(30, 30)
    small = compress(nn.Sequential(layer, nn.ReLU(), layer), Plan.of(sparsity=0.9))
    assert isinstance(small[0], CompressedLinear)
    assert small[0] is small[2]


def test_layers_of_a_kind_share_a_codebook():
    plan = Plan({"*": Rule(sparsity=0.8, quantizer="cws", k=8)}, codebook_scope="kind")
    net = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40), nn.Conv1d(8, 40, 5))
    small = compress(net, plan)
    first, second, conv = (layer.matrix.codebook for layer in small)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, conv)


def test_the_dense_weights_are_freed():
    net = nn.Sequential(nn.Linear(64, 64), nn.Conv2d(8, 16, 3))
    prune(net, Plan.of(sparsity=0.9))
    dense = [weakref.ref(layer.parametrizations.weight.original) for layer in net]
    small = compress(net, inplace=True)
    assert small is net
    del net
    gc.collect()
    assert [ref() for ref in dense] == [None, None]
    held = [*small.parameters(), *small.buffers()]
    assert sum(t.numel() * t.element_size() for t in held) < 0.3 * 4 * (64 * 64 + 8 * 16 * 9)


def test_a_copy_is_made_of_the_rest_only():
    net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
    prune(net, Plan.of("0", sparsity=0.9))
    small = compress(net)
    assert small[0].bias is not net[0].bias
    assert small[1].weight is not net[1].weight
    assert isinstance(net[0], nn.Linear)


def test_a_layer_that_would_not_get_smaller_stays_with_the_reason():
    net = nn.Sequential(nn.Linear(64, 64), nn.LSTM(8, 8), nn.Linear(64, 64))
    with torch.no_grad():
        net[2].weight *= torch.rand(64, 64) < 0.1
    small = compress(net)
    assert type(small[0]) is nn.Linear
    assert isinstance(small[2], CompressedLinear)
    reasons = left_dense(small)
    assert list(reasons) == ["0", "1"]
    assert "bytes compressed, 16,384 dense" in reasons["0"]
    assert reasons["1"] == "LSTM has no compressed form"


def test_a_skipped_layer_stays():
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    with torch.no_grad():
        net[1].weight.zero_()
    plan = Plan({"*": Rule(sparsity=0.9, quantizer="cws", k=4), "1": Rule(skip=True)})
    small = compress(net, plan)
    assert type(small[1]) is nn.Linear
    assert left_dense(small) == {"1": "the plan skips 1"}


def test_a_weight_shared_with_something_else_stays():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(32, 32)
            self.matrix = self.fc.weight

    net = Shared()
    with torch.no_grad():
        net.matrix.zero_()
    small = compress(net)
    assert small.fc.weight is small.matrix
    assert "no compressed form" in left_dense(small)["fc"]


def test_hooks_and_unusual_layers_stay():
    hooked = nn.Linear(32, 32)
    hooked.register_forward_hook(lambda *_: None)
    normed = nn.Embedding(64, 32, max_norm=1.0)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    net = nn.ModuleDict({"hooked": hooked, "normed": normed, "encoder": encoder})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    small = compress(net)
    assert kinds(small) == set()
    assert set(left_dense(small)) == {
        *("hooked", "normed", "encoder.self_attn", "encoder.self_attn.out_proj"),
        *("encoder.linear1", "encoder.linear2"),
    }


def test_an_encoder_layer_is_compressed_where_its_weights_are_only_used_by_its_layers():
    encoder = nn.TransformerEncoderLayer(16, 2, 64).eval()
    small = compress(encoder, Plan.of("linear*", sparsity=0.8))
    assert kinds(small) == {CompressedLinear}
    x = torch.randn(3, 2, 16)
    torch.testing.assert_close(small(x), decompress(small)(x), rtol=1e-4, atol=1e-5)


def test_other_pruning_and_parametrizations_are_evaluated():
    net = nn.ModuleDict({"torch": nn.Linear(32, 32), "norm": nn.Linear(32, 32)})
    torch_prune.l1_unstructured(net["torch"], "weight", amount=0.9)
    kept = int(net["torch"].weight_mask.sum())
    with torch.no_grad():
        net["norm"].weight *= torch.rand(32, 32) < 0.1
        net["norm"].weight[:, 0] = 1
    parametrizations.weight_norm(net["norm"])
    expected = {name: layer.weight.detach().clone() for name, layer in net.items()}
    small = compress(net)
    for name, weight in expected.items():
        assert isinstance(small[name], CompressedLinear)
        assert torch.equal(small[name].weight, weight)
    assert small["torch"].matrix.nnz == kept  # a masked negative weight is +0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_types_come_back_in_their_type(dtype: torch.dtype):
    net = nn.Sequential(nn.Linear(64, 64), nn.Conv2d(4, 8, 3)).to(dtype)
    small = compress(net, Plan.of(sparsity=0.9, quantizer="cws", k=8))
    assert left_dense(small) == {}
    again = decompress(small)
    for layer in again:
        assert layer.weight.dtype == dtype
        assert layer.weight.unique().numel() <= 9
    assert same_state(decompress(compress(again)), again)


def test_a_float64_weight_that_float32_cannot_hold_stays():
    net = nn.Linear(64, 64, dtype=torch.float64)
    prune(net, Plan.of(sparsity=0.9))
    with pytest.warns(UserWarning, match="the model stay dense"):
        small = compress(net)
    assert type(small) is nn.Linear
    assert small.weight.count_nonzero() == round(0.1 * 64 * 64)
    assert "float32 holds exactly" in left_dense(small)[""]


def test_a_single_layer_is_returned_compressed():
    layer = nn.Linear(64, 64)
    small = compress(layer, Plan.of(sparsity=0.9))
    assert isinstance(small, CompressedLinear)
    assert type(layer) is nn.Linear
    assert type(decompress(small)) is nn.Linear
    assert compress(small) is not small
    np.testing.assert_array_equal(bits(compress(small).weight), bits(small.weight))


def test_the_layout_of_the_plan_comes_before_the_callers():
    plan = Plan({"*": Rule(sparsity=0.9, quantizer="cws", k=4), "1": Rule(layout="csr")})
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    small = compress(net, plan, layout="packed")
    assert [layer.matrix.layout for layer in small] == ["packed", "csr"]


def test_wrong_arguments_are_errors_and_change_nothing():
    net = Net()
    before = copy.deepcopy(net.state_dict())
    for arguments in (
        {"layout": "zip"},
        {"coder": "zip"},
        {"goal": "fast"},
        {"plan": Plan({"nothing": Rule(sparsity=0.5)})},
        {"plan": Plan({"*": Rule(sparsity=0.5, layout="zip")})},
    ):
        with pytest.raises(ValueError, match=r"zip|fast|nothing"):
            compress(net, inplace=True, **arguments)
        assert same_state(net, _with_state(Net(), before))
    with pytest.raises(ValueError, match="weight of layer '0' is on meta, expected the cpu"):
        compress(nn.Sequential(nn.Linear(4, 4, device="meta")))


def test_a_compressed_model_trains_its_biases():
    small = compress(
        nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 1)), Plan.of(sparsity=0.8)
    )
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    x = torch.randn(16, 20)
    losses = []
    for _ in range(30):
        loss = ((small(x) - 3) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert all(layer.payload._version == 0 for layer in small[::2])


class Subclass(nn.Linear):
    pass


def test_a_quantized_layer_without_a_compressed_form_is_named_with_the_reason():
    model = nn.Sequential(Subclass(40, 40), nn.Linear(40, 40))
    plan = Plan.of(sparsity=0.5, quantizer="cws", k=4)
    with pytest.warns(UserWarning, match="stay dense, though pruned or quantized: Subclass has no"):
        compressed = compress(model, plan)
    assert left_dense(compressed) == {"0": "Subclass has no compressed form"}


def test_complex_weights_are_refused_by_name_and_nothing_changes():
    model = nn.Sequential(nn.Linear(5, 5, dtype=torch.complex64))
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"layer '0' is torch.complex64, expected a real"):
        compress(model, Plan.of(quantizer="cws", k=4), inplace=True)
    assert torch.equal(model[0].weight, before)


def test_a_plan_for_a_model_that_is_compressed_already_says_so():
    model = compress(nn.Sequential(nn.Linear(50, 50)), Plan.of(quantizer="cws", k=4))
    with pytest.raises(ValueError, match="not compressed yet"):
        compress(model, Plan.of(sparsity=0.5))


@pytest.mark.parametrize("scope", ["layer", "kind"])
def test_a_weight_that_is_not_a_number_names_its_layer(scope):
    model = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    with torch.no_grad():
        model[1].weight[3, 4] = torch.nan
    with pytest.raises(ValueError, match=r"^1: cws: .*1 non-finite values"):
        compress(model, Plan.of(quantizer="cws", k=4, codebook_scope=scope))


def test_a_plan_needs_a_model_with_values():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(5, 5))
    with pytest.raises(ValueError, match="layer '0' is on meta, expected values"):
        compress(model, Plan.of(sparsity=0.5))
    with pytest.raises(TypeError, match="dict, expected a Plan"):
        prune(nn.Linear(5, 5), {"sparsity": 0.5})
    with pytest.raises(TypeError, match="str, expected a Module"):
        prune("model", Plan.of(sparsity=0.5))
