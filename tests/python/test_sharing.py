"""Shared weights: the codebook trains, the gradient is the sum, and copies stay shared."""

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import copies
from torch import nn

from tersenet.plan import Plan, Rule
from tersenet.pruning import masks, prune, unparametrize
from tersenet.quantization import (
    QUANTIZERS,
    SharedWeights,
    codebook_parameters,
    quantize,
    quantized,
)

X = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.Flatten(),
        nn.Linear(16, 10),
        nn.ReLU(),
        nn.Linear(10, 3),
    ).to(dtype)


def weights(model):
    return {
        name: module.weight.detach().clone()
        for name, module in model.named_modules()
        if name in masks(model)
    }


def dense_gradients(model):
    """Gradients of the same function for plain weights, from a stock model."""
    twin = copy.deepcopy(model)
    unparametrize(twin)
    twin(X.to(twin[0].weight.dtype)).square().sum().backward()
    return {
        name: module.weight.grad for name, module in twin.named_modules() if name in masks(model)
    }


@pytest.mark.parametrize("scope", ["layer", "kind"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("k", [5, 300])
def test_the_gradient_is_an_independent_sum_per_cluster(scope, normalize, k):
    model = network(torch.float64)
    prune(model, Plan.of(sparsity=0.3))
    quantize(
        model, Plan.of(quantizer="cws", k=k, codebook_scope=scope), normalize_gradient=normalize
    )
    model(X).square().sum().backward()
    dense = dense_gradients(model)
    groups = {}
    for name, result in quantized(model).items():
        list_ = model.get_submodule(name).parametrizations.weight
        groups.setdefault(id(list_.original), (list_.original, []))[1].append((name, result))
    assert len(groups) == (4 if scope == "layer" else 2)
    for original, members in groups.values():
        expected = np.zeros(original.numel())
        counts = np.zeros(original.numel())
        for name, result in members:
            grad = dense[name].numpy()
            for position in np.argwhere(result.mask):
                expected[result.symbols[tuple(position)]] += grad[tuple(position)]
                counts[result.symbols[tuple(position)]] += 1
        if normalize:
            expected /= counts
        assert np.abs(original.grad.numpy() - expected).max() <= 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=1e-2),
        lambda p: torch.optim.Adam(p, lr=1e-2),
    ],
)
def test_codebooks_move_the_loss_falls_and_pruned_weights_stay_zero(name, make):
    model = network()
    prune(model, Plan.of(sparsity=0.6))
    report = quantize(model, Plan.of(quantizer=name, k=6))
    assert [layer.name for layer in report.layers] == ["0", "2", "4", "6"]
    before = [p.detach().clone() for p in codebook_parameters(model)]
    kept = {key: mask.clone() for key, mask in masks(model).items()}
    optimizer = make(model.parameters())
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = (model(X.float()) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(
        (old != new).any() for old, new in zip(before, codebook_parameters(model), strict=True)
    )
    for key, mask in kept.items():
        weight = model.get_submodule(key).weight
        assert (weight[~mask].view(torch.int32) == 0).all()
        assert weight[mask].unique().numel() <= 6


def test_a_dense_step_projected_onto_shared_weights_is_the_codebook_step():
    model = network(torch.float64)
    quantize(model, Plan.of(quantizer="cws", k=4))
    before, dense = weights(model), dense_gradients(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(X).square().sum().backward()
    optimizer.step()
    result = quantized(model)["4"]
    moved = before["4"] - 0.01 * dense["4"]
    for symbol in range(result.k):
        cluster = torch.from_numpy(result.symbols == symbol)
        assert torch.allclose(model[4].weight[cluster], moved[cluster].mean(), atol=1e-12)


@pytest.mark.parametrize("scope", ["layer", "kind"])
def test_quantized_is_what_the_layers_compute(scope):
    model = network()
    prune(model, Plan.of(sparsity=0.5))
    report = quantize(model, Plan.of(quantizer="uq", k=5, codebook_scope=scope))
    state = quantized(model)
    for layer in report.layers:
        dense = model.get_submodule(layer.name).weight.detach().numpy()
        assert np.array_equal(state[layer.name].values().view(np.int32), dense.view(np.int32))
        assert layer.nnz == state[layer.name].nnz == (dense != 0).sum()
    same = state["4"].codebook is state["6"].codebook
    assert same == (scope == "kind")


def test_one_codebook_for_a_kind_stays_one_parameter_in_copies_and_pickles():
    model = network()
    quantize(model, Plan.of(quantizer="cws", k=4, codebook_scope="kind"))
    expected = model(X.float())
    assert len(list(codebook_parameters(model))) == 2
    for twin in copies(model):
        assert len(list(codebook_parameters(twin))) == 2
        assert len(list(twin.parameters())) == len(list(model.parameters())) == 6
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
        assert torch.equal(twin(X.float()), expected)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        twin(X.float()).square().sum().backward()
        optimizer.step()
        assert set(twin[6].weight.unique().tolist()) <= set(twin[4].weight.unique().tolist())
        unparametrize(twin)
        assert type(twin[4]) is nn.Linear and twin[4].weight.shape == (10, 16)
        assert torch.equal(model(X.float()), expected)


def test_a_state_dict_goes_to_a_model_quantized_alike():
    plan = Plan.of(quantizer="cws", k=4, codebook_scope="kind")
    model, other = network(), network()
    with torch.no_grad():
        other[4].weight.normal_()
    quantize(model, plan)
    quantize(other, plan)
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(model(X.float()), other(X.float()))
    assert len(list(codebook_parameters(other))) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_half_precision_codebooks_hold_distinct_values_of_their_dtype(dtype, name):
    model = nn.Sequential(nn.Linear(60, 60)).to(dtype)
    before = model[0].weight.detach().clone()
    report = quantize(model, Plan.of(quantizer=name, k=64))
    (codebook,) = codebook_parameters(model)
    assert codebook.dtype == model[0].weight.dtype == dtype
    assert codebook.unique().numel() == codebook.numel() == report.layers[0].k <= 64
    assert (before - model[0].weight).float().abs().max() < 0.1
    assert np.array_equal(quantized(model)["0"].values(), model[0].weight.detach().float().numpy())
    model(torch.ones(1, 60, dtype=dtype)).sum().backward()
    assert torch.allclose(codebook.grad.float(), torch.ones_like(codebook.grad).float(), rtol=0.01)


def test_a_large_bfloat16_cluster_sums_without_stalling():
    model = nn.Linear(300, 300, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(0.5)
    quantize(model, Plan.of(quantizer="cws", k=1), normalize_gradient=False)
    model(torch.ones(1, 300, dtype=torch.bfloat16)).sum().backward()
    (codebook,) = codebook_parameters(model)
    assert abs(codebook.grad.item() - 90_000) <= 90_000 / 256


def test_values_that_meet_are_merged_and_zeros_leave_the_mask_when_extracted():
    model = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2, 3, 0], [4, 1, 2, 3]]))
    quantize(model, Plan.of(quantizer="cws", k=4))
    (codebook,) = codebook_parameters(model)
    with torch.no_grad():
        codebook.copy_(torch.tensor([7.0, -0.0, 7.0, 0.0]))
    result = quantized(model)[""]
    assert result.k == 2 and result.nnz == 6 and result.dropped == 1
    dense = model.weight.detach().numpy()
    assert np.array_equal(result.values().view(np.int32), dense.view(np.int32))


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_extraction_is_lossless_whatever_training_did_to_the_codebooks(data):
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    scope = data.draw(st.sampled_from(["layer", "kind"]))
    quantize(model, Plan.of(quantizer="cws", k=4, codebook_scope=scope))
    odd = st.sampled_from([0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), 1e-45])
    for codebook in codebook_parameters(model):
        values = data.draw(st.lists(odd, min_size=codebook.numel(), max_size=codebook.numel()))
        with torch.no_grad():
            codebook.copy_(torch.tensor(values))
    for name, result in quantized(model).items():
        dense = model.get_submodule(name).weight.detach().numpy()
        assert np.array_equal(result.values().view(np.int32), dense.view(np.int32))


def test_an_all_pruned_layer_has_an_empty_codebook_and_still_trains():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.zero_()
    for scope in ("layer", "kind"):
        quantize(model, Plan.of(quantizer="cws", k=3, codebook_scope=scope))
        assert quantized(model)["0"].k == 0 and quantized(model)["1"].k == 3
        model(torch.ones(1, 4)).sum().backward()
        torch.optim.Adam(model.parameters()).step()
        assert (model[0].weight == 0).all()


def test_symbols_are_stored_in_the_narrowest_type():
    for k, dtype in ((256, torch.uint8), (257, torch.int16), (65_536, torch.int32)):
        model = nn.Linear(400, 400)
        before = model.weight.detach().clone()
        quantize(model, Plan.of(quantizer="pws", k=k))
        shared = model.parametrizations.weight[0]
        assert shared.symbols.dtype == dtype
        assert np.array_equal(quantized(model)[""].values(), model.weight.detach().numpy())
        assert (before - model.weight).abs().mean() < 0.01


def test_assigning_a_weight_sets_the_codebook_to_cluster_means_unless_shared():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    quantize(model, Plan.of(quantizer="cws", k=3))
    target = torch.randn(5, 6)
    symbols = torch.from_numpy(quantized(model)["0"].symbols.astype(np.int64))
    model[0].weight = target
    for symbol in range(3):
        cluster = symbols == symbol
        assert torch.allclose(model[0].weight[cluster], target[cluster].mean())
    quantize(model, Plan.of(quantizer="cws", k=3, codebook_scope="kind"))
    with pytest.raises(ValueError, match="share a codebook"):
        model[0].weight = target


def test_quantizing_again_starts_from_the_present_weights_and_keeps_the_mask():
    model = nn.Linear(10, 10)
    prune(model, Plan.of(sparsity=0.5))
    quantize(model, Plan.of(quantizer="cws", k=16))
    quantize(model, Plan.of(quantizer="cws", k=4))
    assert quantized(model)[""].k == 4 and quantized(model)[""].nnz == 50
    assert isinstance(model.parametrizations.weight[0], SharedWeights)
    with pytest.raises(ValueError, match="layer '' is quantized, expected a layer that is not"):
        prune(model, Plan.of(sparsity=0.9))


def test_tied_weights_share_symbols_and_codebook():
    model = nn.ModuleDict({"emb": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["emb"].weight
    quantize(model, Plan.of("head", quantizer="cws", k=4))
    assert torch.equal(model["emb"].weight, model["head"].weight)
    assert len(list(model.parameters())) == 1 and set(quantized(model)) == {"emb", "head"}
    for twin in copies(model):
        unparametrize(twin)
        assert twin["emb"].weight is twin["head"].weight


def test_layers_that_cannot_share_a_codebook_are_an_error_and_nothing_changes():
    model = network()
    rules = {"*": Rule(quantizer="cws", k=4), "6": Rule(k=8)}
    with pytest.raises(
        ValueError, match="'4' and '6' share the codebook of kind fc, found k 4 and 8"
    ):
        quantize(model, Plan(rules, codebook_scope="kind"))
    model[6].to(torch.float64)
    plan = Plan.of(quantizer="cws", k=4, codebook_scope="kind")
    with pytest.raises(ValueError, match=r"found dtype torch.float32 and torch.float64"):
        quantize(model, plan)
    with pytest.raises(ValueError, match="quantizer is 'cwz', expected one of cws"):
        quantize(model, Plan.of(quantizer="cwz", k=4))
    with torch.no_grad():
        model[6].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="cws: weights hold 1 non-finite"):
        quantize(model, Plan.of(quantizer="cws", k=4))
    assert not masks(model)


def test_a_layers_result_depends_on_no_other_layer():
    both, one = network(), network()
    quantize(both, Plan.of(quantizer="pws", k=4, seed=5))
    quantize(one, Plan.of("6", quantizer="pws", k=4, seed=5))
    assert torch.equal(both[6].weight, one[6].weight)
    other = network()
    quantize(other, Plan.of("6", quantizer="pws", k=4, seed=6))
    assert not torch.equal(other[6].weight, one[6].weight)


def test_a_quantized_model_compiles_to_one_graph():
    model = network()
    quantize(model, Plan.of(quantizer="cws", k=4))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(X.float()), model(X.float()))
