"""Pruning to a number of bytes: what the estimate is, that it is met, and which weights stay."""

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tersenet import Plan, masks, prune
from tersenet.pruning import RatePruning
from tersenet.training import TensorBatches, fit

X = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
Y = X.flatten(1)[:, :3].argmax(1)
SYMBOL_BITS = 2.0


def network(seed=0):
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 3)
    return nn.Sequential(*layers)


def trained(model, epochs, callbacks=(), seed=0):
    adam = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.01)
    batches = TensorBatches(X, Y, batch_size=16, seed=seed)  # 4 steps an epoch
    of = {"optimizer": adam, "loss": F.cross_entropy, "callbacks": list(callbacks), "seed": seed}
    fit(model, batches, epochs=epochs, **of)
    return model


def backward(model):
    model.zero_grad()
    F.cross_entropy(model(X), Y).backward()


def estimated(found):
    """The bytes of masks by name, as the module page says, in float64."""
    bits = 0.0
    for mask in found.values():
        kept = mask.numpy().astype(np.float64)
        kept = kept.reshape(*kept.shape[:2], -1)
        density = min(max(kept.mean(), 2e-4), 0.98)
        likely = np.full(kept.shape, density)
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            count = kept.size / kept.shape[axis]
            likely *= (kept.sum(others, keepdims=True) + 2 * density) / (count + 2) / density
        likely = likely.clip(2e-4, 0.98)
        bits += (kept * (SYMBOL_BITS - np.log2(likely)) - (1 - kept) * np.log2(1 - likely)).sum()
    return bits / 8


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
def test_the_estimate_is_the_entropy_of_positions_by_the_densities_of_their_lines(seed, one, two):
    model = network(seed)
    rate = RatePruning(model, nbytes=100, steps=10)
    for name, density in (("0", one), ("4", two)):
        mask = torch.rand(model[int(name)].weight.shape) < density
        model[int(name)].parametrizations.weight[0].mask = mask
    assert rate.nbytes == pytest.approx(estimated(masks(model)), rel=1e-4)


def test_a_uniform_layer_takes_its_order_0_entropy():
    model = nn.Linear(400, 400)
    rate = RatePruning(model, nbytes=100, steps=10)
    model.parametrizations.weight[0].mask = torch.rand(400, 400) < 0.1
    kept = float(model.parametrizations.weight[0].mask.float().mean())
    entropy = -kept * np.log2(kept) - (1 - kept) * np.log2(1 - kept)
    bits = 160_000 * (entropy + SYMBOL_BITS * kept)
    assert rate.nbytes == pytest.approx(bits / 8, rel=0.01)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 100), st.floats(40, 500))
def test_the_bytes_are_met_and_what_is_pruned_stays_zero(seed, nbytes):
    model = network(seed)
    rate = RatePruning(model, nbytes=nbytes, steps=8, every=2)
    whole = rate.nbytes
    trained(model, 4, [rate])
    assert not rate.is_soft
    assert rate.nbytes <= nbytes
    # One more weight takes a few bits: what is left over is little. Costs are of the masks before.
    assert rate.nbytes > 0.8 * min(nbytes, whole) - 10
    report = rate.finish()
    for layer in report.layers:
        weight = model.get_submodule(layer.name).weight
        assert int(weight.count_nonzero()) == layer.nnz == int(masks(model)[layer.name].sum())


def test_weights_with_channels_last():
    plain = network()
    lasting = network().to(memory_format=torch.channels_last)
    for model in (plain, lasting):
        rate = RatePruning(model, nbytes=100, steps=2, every=1)
        for _ in range(2):
            backward(model)
            rate.step()
    assert rate.nbytes <= 100


def test_so_many_bytes_that_nothing_has_to_go():
    model = network()
    rate = RatePruning(model, nbytes=1e6, steps=8, every=2)
    trained(model, 2, [rate])
    assert all(bool(mask.all()) for mask in masks(model).values())


def test_each_layer_keeps_a_weight_when_there_are_no_bytes_for_it():
    model = network()
    rate = RatePruning(model, nbytes=1e-9, steps=8, every=2)
    trained(model, 4, [rate])
    assert all(layer.nnz >= 1 for layer in rate.finish().layers)


def test_the_gradient_reaches_what_a_soft_mask_hides_and_it_fades():
    model = network()
    rate = RatePruning(model, nbytes=60, steps=10, every=1, fade=0.25)
    while rate.nbytes > 100:
        backward(model)
        rate.step()
    assert rate.is_soft
    backward(model)
    hidden = ~masks(model)["2"]
    original = model[2].parametrizations.weight.original
    assert (original.grad[hidden] != 0).any()
    before = original.detach().clone()
    rate.step()
    torch.testing.assert_close(original[hidden], before[hidden] * 0.75)
    assert torch.equal(original[~hidden], before[~hidden])


def test_a_choice_does_not_depend_on_how_layers_are_scaled():
    first = network()
    second = copy.deepcopy(first)
    with torch.no_grad():  # powers of two: every product is exact
        second[2].weight *= 16
        second[2].bias *= 16
        second[4].weight /= 16
    for model in (first, second):
        rate = RatePruning(model, nbytes=120, steps=4, every=1)
        for _ in range(4):
            backward(model)
            rate.step()
    for name, mask in masks(first).items():
        assert torch.equal(mask, masks(second)[name])


def test_as_many_weights_of_rows_and_columns_take_fewer_bytes_than_by_magnitude():
    torch.manual_seed(0)
    model = nn.Linear(100, 100)
    with torch.no_grad():  # lines differ in size, and each weight by itself
        lines = torch.rand(100, 1) * torch.rand(1, 100)
        model.weight.copy_(lines * torch.randn(100, 100).exp())
    plain = copy.deepcopy(model)
    rate = RatePruning(model, nbytes=500, steps=6, every=1)
    for _ in range(6):
        model.parametrizations.weight.original.grad = torch.ones(100, 100)
        rate.step()
    nnz = rate.finish().layers[0].nnz
    prune(plain, Plan.of(sparsity=1 - nnz / 10_000))
    assert int((plain.weight != 0).sum()) == nnz
    by_magnitude = estimated(masks(plain))
    assert estimated(masks(model)) < 0.9 * by_magnitude
    # and magnitudes are given up for it
    assert model.weight.norm() < plain.weight.norm()


def test_an_interrupted_run_goes_on_as_the_whole_one():
    def begun():
        model = network()
        adam = torch.optim.Adam(model.parameters(), lr=0.01)
        return model, adam, RatePruning(model, nbytes=100, steps=9, every=2, fade=0.01)

    def go(model, adam, rate, count):
        for _ in range(count):
            backward(model)
            rate.step()
            adam.step()

    whole = begun()
    go(*whole, 12)
    part = begun()
    go(*part, 5)
    file = io.BytesIO()
    torch.save([each.state_dict() for each in part], file)
    resumed = begun()
    file.seek(0)
    for each, state in zip(resumed, torch.load(file), strict=True):
        each.load_state_dict(state)
    go(*resumed, 7)
    for one, other in zip(
        whole[0].state_dict().values(), resumed[0].state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    assert whole[2].finish() == resumed[2].finish()


def test_only_the_layers_that_are_named():
    model = network()
    rate = RatePruning(model, nbytes=20, steps=1, layers=["2"])
    backward(model)
    rate.step()
    assert list(masks(model)) == ["2"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nbytes": 0}, "nbytes is 0, expected a number above 0"),
        ({"nbytes": float("nan")}, "nbytes is nan"),
        ({"nbytes": float("inf")}, "nbytes is inf"),
        ({"symbol_bits": -1}, "symbol_bits is -1, expected a number of at least 0"),
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"every": 0}, "every is 0"),
        ({"fade": 1}, r"fade is 1, expected a number in \[0, 1\)"),
        ({"layers": ["nothing"]}, "'nothing'"),
    ],
)
def test_options_out_of_range(options, words):
    model = network()
    with pytest.raises(ValueError, match=words):
        RatePruning(model, **{"nbytes": 10, "steps": 3} | options)
    assert not masks(model)


def test_no_gradient_and_no_finite_weight_are_errors():
    model = network()
    rate = RatePruning(model, nbytes=10, steps=1)
    with pytest.raises(ValueError, match="rate pruning: layer '0' has had no gradient"):
        rate.step()
    model = network()
    with torch.no_grad():
        model[2].weight[0, 0, 0, 0] = float("nan")
    rate = RatePruning(model, nbytes=10, steps=2, every=1)
    backward(model)
    with pytest.raises(ValueError, match=r"rate pruning: layer '.*' .*not finite"):
        rate.step()


def test_one_string_is_no_list_of_patterns():
    with pytest.raises(TypeError, match=r"rate pruning: layers is 'fc:\*', expected a list"):
        RatePruning(network(), nbytes=10, steps=3, layers="fc:*")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_weights_has_none_to_prune():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 0))
    rate = RatePruning(model, nbytes=3, steps=1)
    model(torch.ones(2, 6)).sum().backward()
    model[0].parametrizations.weight.original.grad = torch.ones(4, 6)
    rate.step()
    assert [layer.name for layer in rate.finish().layers] == ["0"]
