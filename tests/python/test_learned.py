"""Quantization-aware training: learned values, their gradients, and what is stored of them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import Tied, copies
from torch import nn
from torch.nn import functional as F

import tersenet
from tersenet import Plan, Rule, codebook_parameters, compress, decompress, masks, prune, quantized
from tersenet.pruning import SoftPruning, unparametrize
from tersenet.quantization import LearnedCodebook, LearnedStep, cws, prepare_qat, quantize

X = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
Y = X[:, :3].argmax(1)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))


def values(model, name):
    return np.unique(model.get_submodule(name).weight.detach().numpy())


def train(model, steps, optimizer=None):
    """The loss after `steps` at a rate that falls to nothing, so that no weight still hops
    between two values where it ends."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.02)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        falling.step()
    return F.cross_entropy(model(X), Y).item()


def learned(original, q, step, mask=None):
    """A layer of one output whose step is what the test says."""
    layer = nn.Linear(len(original), 1, bias=False).double()
    layer.weight.data = torch.tensor([mask or [True] * len(original)]).double()
    prepare_qat(layer, Plan.of(quantizer="lsq", k=2 * q + 1))
    chain = layer.parametrizations.weight
    chain.original.data = torch.tensor([original], dtype=torch.float64)
    chain[0].step.data.fill_(step)
    return layer, chain


def test_the_step_has_the_gradient_of_lsq_by_hand():
    # v = w / s = 0.4, 1.3, -2.6, 7: rounded 0, 1, then both beyond Q = 2
    layer, chain = learned([0.2, 0.65, -1.3, 3.5], q=2, step=0.5)
    assert layer.weight.tolist() == [[0.0, 0.5, -1.0, 1.0]]
    gradient = torch.tensor([3.0, 5.0, 7.0, 11.0], dtype=torch.float64)
    (layer.weight[0] * gradient).sum().backward()
    scale = 1 / math.sqrt(4 * 2)
    slopes = [0 - 0.4, 1 - 1.3, -2, 2]
    expected = scale * sum(g * slope for g, slope in zip(gradient.tolist(), slopes, strict=True))
    assert chain[0].step.grad.item() == pytest.approx(expected, rel=1e-12)
    assert chain.original.grad.tolist() == [[3.0, 5.0, 0.0, 0.0]]


def test_a_pruned_layer_rounds_no_kept_weight_to_zero_and_counts_only_the_kept():
    layer, chain = learned([0.1, 9.0, -0.1, 1.3], q=2, step=0.5, mask=[True, False, True, True])
    assert layer.weight.tolist() == [[0.5, 0.0, -0.5, 1.0]]
    (layer.weight[0] * torch.tensor([3.0, 5.0, 7.0, 11.0])).sum().backward()
    expected = (3 * (1 - 0.2) + 7 * (-1 + 0.2) + 11 * 2) / math.sqrt(3 * 2)
    assert chain[0].step.grad.item() == pytest.approx(expected, rel=1e-12)
    assert chain.original.grad.tolist() == [[3.0, 0.0, 7.0, 0.0]]


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30),
    st.integers(1, 8),
    st.floats(0.01, 10),
)
def test_every_weight_is_the_nearest_multiple_in_range(weights, q, step):
    layer, _ = learned(weights, q, step)
    levels = step * np.arange(-q, q + 1)
    found = layer.weight.detach().numpy()[0]
    distances = np.abs(np.array(weights)[:, None] - levels)
    np.testing.assert_allclose(
        np.abs(np.array(weights) - found), distances.min(1), rtol=1e-9, atol=1e-9
    )
    assert not np.signbit(found[found == 0]).any()


@pytest.mark.parametrize("q", [1, 3, 7])
@pytest.mark.parametrize("sparsity", [0.0, 0.8])
def test_the_first_step_is_about_the_best_of_many(q, sparsity):
    torch.manual_seed(q)
    layer = nn.Linear(40, 25)
    prune(layer, Plan.of(sparsity=sparsity))
    kept = layer.weight.detach()[masks(layer)[""]].numpy().astype(np.float64)
    prepare_qat(layer, Plan.of(quantizer="lsq", k=2 * q + 1))
    least = 0 if sparsity == 0 else 1

    def error(step):
        rounded = np.clip(np.rint(np.abs(kept) / step), least, q) * step
        return np.sum((np.abs(kept) - rounded) ** 2)

    best = min(error(step) for step in np.linspace(0.01, 1, 2000) * np.abs(kept).max())
    assert error(layer.parametrizations.weight[0].step.item()) <= 1.02 * best


def test_a_codebook_begins_as_k_means_and_its_values_get_the_mean_of_their_members():
    model, plain = network(), network()
    prepare_qat(model, Plan.of(quantizer="cws", k=4))
    assert values(model, "0").tolist() == cws(plain[0].weight.detach().numpy(), 4).codebook.tolist()
    weight = model[0].weight
    gradient = torch.randn_like(weight)
    (weight * gradient).sum().backward()
    codebook = model[0].parametrizations.weight[0].codebook
    for value, found in zip(codebook, codebook.grad, strict=True):
        assert found == pytest.approx(gradient[weight == value].double().mean().item(), abs=1e-6)
    assert torch.equal(model[0].parametrizations.weight.original.grad, gradient)


def test_the_sum_of_gradients_is_there_for_the_asking():
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[-1.0, -1.0, 2.0, 2.0]])
    prepare_qat(layer, Plan.of(quantizer="cws", k=2), normalize_gradient=False)
    (layer.weight[0] * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert layer.parametrizations.weight[0].codebook.grad.tolist() == [3.0, 7.0]


def test_a_weight_changes_its_value_when_it_has_moved_far_enough():
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[-1.0, -1.0, 2.0, 2.0]])
    prepare_qat(layer, Plan.of(quantizer="cws", k=2))
    sgd = torch.optim.SGD([layer.parametrizations.weight.original], lr=1.0)
    seen = []
    for _ in range(3):
        sgd.zero_grad()
        (layer.weight[0, 0] * -0.6).backward()
        sgd.step()
        seen.append(layer.weight[0].tolist())
    assert [row[0] for row in seen] == [-1.0, -1.0, 2.0]
    assert all(row[1:] == [-1.0, 2.0, 2.0] for row in seen)


@pytest.mark.parametrize(("quantizer", "k"), [("lsq", 4), ("lsq", 16), ("cws", 4), ("uq", 5)])
@pytest.mark.parametrize("sparsity", [None, 0.5])
def test_training_learns_and_what_is_stored_has_few_values(tmp_path, quantizer, k, sparsity):
    model = network()
    train(model, 20)
    if sparsity:
        prune(model, Plan.of(sparsity=sparsity))
    prepare_qat(model, Plan.of(quantizer=quantizer, k=k))
    start = F.cross_entropy(model(X), Y).item()
    assert train(model, 100) < 0.8 * start
    for name in ("0", "2"):
        weight = model.get_submodule(name).weight.detach()
        nonzero = weight[weight != 0]
        most = 2 * ((k - 1) // 2) if quantizer == "lsq" else k
        assert len(nonzero.unique()) <= most
        assert not torch.signbit(weight[weight == 0]).any()
        if sparsity:
            assert torch.equal(weight != 0, masks(model)[name])
            assert nonzero.numel() == weight.numel() - round(sparsity * weight.numel())
        found = quantized(model)[name]
        assert np.array_equal(found.values(), weight.numpy()) and found.k <= most
    expected = model(X)
    small = compress(model)
    assert torch.equal(decompress(small)(X), expected)
    tersenet.save(small, tmp_path / "x.terse")
    again = tersenet.load(tmp_path / "x.terse", into=network(1))
    assert torch.equal(decompress(again)[0].weight, model[0].weight)
    unparametrize(model)
    assert torch.equal(model(X), expected)
    assert set(model.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_an_exported_network_computes_with_the_learned_values(tmp_path):
    model = network()
    prune(model, Plan.of(sparsity=0.5))
    prepare_qat(model, Plan.of(quantizer="lsq", k=4))
    train(model, 20)
    tersenet.export(compress(model).eval(), X, tmp_path / "x.terse")
    found = tersenet.Network.load(tmp_path / "x.terse").run(X.numpy())
    np.testing.assert_allclose(found, model(X).detach().numpy(), atol=1e-5)


def test_learned_values_are_yielded_for_a_group_of_their_own():
    model = network()
    prepare_qat(model, Plan({"0": Rule(quantizer="lsq", k=8), "2": Rule(quantizer="cws", k=3)}))
    assert [p.shape for p in codebook_parameters(model)] == [torch.Size([]), torch.Size([3])]


@pytest.mark.parametrize("quantizer", ["lsq", "cws"])
def test_training_goes_on_from_a_state_dict_and_copies_to_the_same_bits(quantizer):
    plan = Plan.of(quantizer=quantizer, k=5)
    model, again = network(), network(7)
    for one in (model, again):
        prepare_qat(one, plan)
    train(model, 5)
    again.load_state_dict(model.state_dict())
    twins = [again, *copies(model)]
    train(model, 5, torch.optim.SGD(model.parameters(), lr=0.1))
    for twin in twins:
        train(twin, 5, torch.optim.SGD(twin.parameters(), lr=0.1))
        assert all(torch.equal(twin.state_dict()[k], v) for k, v in model.state_dict().items())


def test_tied_weights_have_one_quantizer():
    torch.manual_seed(0)
    model = Tied()
    prepare_qat(
        model, Plan({"emb*": Rule(quantizer="lsq", k=4), "head": Rule(quantizer="lsq", k=4)})
    )
    assert torch.equal(model.emb.weight, model.head.weight)
    assert len(list(codebook_parameters(model))) == 1
    model(torch.arange(6)).square().sum().backward()
    assert next(codebook_parameters(model)).grad != 0


def test_a_mask_that_is_chosen_anew_fits_the_values_anew():
    torch.manual_seed(0)
    model, later = nn.Linear(30, 30), nn.Linear(30, 30)
    later.load_state_dict(model.state_dict())
    plan = Plan.of(sparsity=0.9, quantizer="lsq", k=4)
    prepare_qat(model, plan)
    prune(model, plan)
    prune(later, plan)
    prepare_qat(later, plan)
    assert torch.equal(model.weight, later.weight)  # ranked are the weights under the rounding


@pytest.mark.parametrize("quantizer", ["lsq", "cws"])
def test_soft_pruning_ends_with_exact_masks_of_quantized_weights(quantizer):
    model = network()
    plan = Plan.of(sparsity=0.75, quantizer=quantizer, k=4)
    prepare_qat(model, plan)
    soft = SoftPruning(model, plan, steps=20, every=5, criterion="magnitude")
    adam = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(30):
        adam.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        soft.step()
        adam.step()
    for name, kept in (("0", 48), ("2", 12)):
        weight = model.get_submodule(name).weight
        assert (weight != 0).sum() == kept and len(weight.unique()) <= (
            3 if quantizer == "lsq" else 5
        )


def test_a_quantized_layer_trains_on_from_its_present_weights():
    model = network()
    quantize(model, Plan.of(quantizer="cws", k=4))
    before = model[0].weight.detach().clone()
    prepare_qat(model, Plan.of(quantizer="cws", k=4))
    assert isinstance(model[0].parametrizations.weight[0], LearnedCodebook)
    assert torch.equal(model[0].weight, before)
    prepare_qat(model, Plan.of("0", quantizer="lsq", k=16))
    assert isinstance(model[0].parametrizations.weight[0], LearnedStep)
    assert isinstance(model[2].parametrizations.weight[0], LearnedCodebook)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("quantizer", ["lsq", "cws"])
def test_other_types_keep_theirs(dtype, quantizer):
    layer = nn.Linear(8, 8).to(dtype)
    prepare_qat(layer, Plan.of(quantizer=quantizer, k=4))
    assert layer.weight.dtype == dtype and len(layer.weight.unique()) <= 4
    layer.weight.float().sum().backward()
    assert layer.parametrizations.weight.original.grad.dtype == dtype


def test_a_layer_in_which_nothing_is_kept_is_zero():
    layer = nn.Linear(3, 2)
    prune(layer, Plan.of(threshold=10.0))
    for quantizer in ("lsq", "cws"):
        prepare_qat(layer, Plan.of(quantizer=quantizer, k=4))
        assert (layer.weight == 0).all() and quantized(layer)[""].k == 0


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan.of(sparsity=0.5), "the plan quantizes no layer"),
        (Plan.of(quantizer="lsq", k=2), "layer '0': lsq: k is 2, expected at least 3"),
        (Plan.of(quantizer="lsq", lam=0.1), "lsq: k is None"),
        (Plan.of(quantizer="luck", k=2), "'luck', expected one of lsq, cws"),
        (Plan.of(quantizer="lsq", k=4, codebook_scope="kind"), "codebook_scope is 'kind'"),
        (Plan.of("1", quantizer="lsq", k=4), "pattern '1' matches no layer"),
    ],
)
def test_bad_plans_are_named_and_change_nothing(plan, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        prepare_qat(model, plan)
    assert not masks(model)


@pytest.mark.parametrize("quantizer", ["lsq", "cws"])
def test_a_weight_that_is_not_finite_is_an_error(quantizer):
    model = network()
    model[2].weight.data[0, 0] = math.inf
    with pytest.raises(ValueError, match=r"layer '2': .*1 non-finite values"):
        prepare_qat(model, Plan.of(quantizer=quantizer, k=4))
    assert not masks(model)
