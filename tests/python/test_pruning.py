"""Pruning: exact counts on arrays, and masks that nothing in training undoes."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import Tied, copies
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from tersenet.plan import Plan, Rule
from tersenet.pruning import (
    SoftPruning,
    magnitude_mask,
    magnitude_masks,
    masks,
    prune,
    unparametrize,
)
from tersenet.quantization import prepare_qat, quantize

SMALL = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -3.0, np.inf])
ARRAYS = hnp.arrays(
    st.sampled_from([np.float16, np.float32, np.float64]),
    hnp.array_shapes(max_dims=3, max_side=8, min_side=0),
    elements=SMALL,
)


def reference(weights, sparsity):
    """Sort by falling magnitude, then by position, and keep the first."""
    flat = np.abs(weights).ravel()
    order = sorted(range(flat.size), key=lambda i: (-flat[i], i))
    mask = np.zeros(flat.size, bool)
    mask[order[: flat.size - round(sparsity * flat.size)]] = True
    return mask.reshape(weights.shape)


@given(weights=ARRAYS, sparsity=st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_the_largest_magnitudes_stay_and_of_equal_ones_the_first(weights, sparsity):
    assert np.array_equal(magnitude_mask(weights, sparsity=sparsity), reference(weights, sparsity))


@given(weights=ARRAYS, threshold=st.sampled_from([0.0, 0.5, 1.0, 5.0]))
def test_a_threshold_keeps_what_is_above_it(weights, threshold):
    mask = magnitude_mask(weights, threshold=threshold)
    assert np.array_equal(mask, np.abs(weights) > threshold)


@given(arrays=st.lists(ARRAYS, max_size=4), sparsity=st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_a_global_sparsity_ranks_all_arrays_as_one(arrays, sparsity):
    named = {str(i): array for i, array in enumerate(arrays)}
    found = magnitude_masks(named, sparsity=sparsity, scope="global")
    flat = [a.ravel().astype(np.float64) for a in arrays] or [np.zeros(0)]
    expected = reference(np.concatenate(flat), sparsity)
    joined = np.concatenate([found[name].ravel() for name in named] or [np.zeros(0, bool)])
    assert np.array_equal(joined, expected)
    assert all(found[name].shape == named[name].shape for name in named)


@given(weights=ARRAYS, first=st.floats(0, 1), second=st.floats(0, 1))
def test_a_mask_within_another_shrinks_to_exactly_the_count(weights, first, second):
    within = magnitude_mask(weights, sparsity=first)
    mask = magnitude_mask(weights, sparsity=second, within=within)
    assert not (mask & ~within).any()
    wanted = weights.size - round(second * weights.size)
    assert mask.sum() == min(wanted, within.sum())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one"),
        ({"sparsity": 0.5, "threshold": 1.0}, "exactly one"),
        ({"sparsity": 1.1}, "sparsity is 1.1"),
        ({"sparsity": np.nan}, "sparsity is nan"),
        ({"threshold": -1.0}, "threshold is -1"),
        ({"sparsity": 0.5, "within": np.ones(3, bool)}, "mask within weights"),
    ],
)
def test_bad_arguments_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        magnitude_mask(np.ones(4), **options)
    with pytest.raises(ValueError, match="scope is 'all'"):
        magnitude_masks({}, sparsity=0.5, scope="all")


def test_nan_is_an_error_that_says_where():
    weights = np.ones((2, 3), np.float32)
    weights[1, 1] = np.nan
    with pytest.raises(ValueError, match="holds 1 NaN, first at flat position 4"):
        magnitude_mask(weights, sparsity=0.5)
    with pytest.raises(ValueError, match="int64, expected a float array"):
        magnitude_mask(np.arange(3), sparsity=0.5)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(16, 10),
        nn.ReLU(),
        nn.Linear(10, 3),
    )


X = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def step(model, optimizer, times=3):
    for _ in range(times):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masks_survive_an_optimizer_that_was_there_before(name):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    step(model, optimizer)
    report = prune(model, Plan.of(sparsity=0.75))
    assert [layer.name for layer in report.layers] == ["0", "3", "5"]
    before = {key: value.clone() for key, value in masks(model).items()}
    kept = model[3].weight.detach().clone()
    step(model, optimizer)
    for key, mask in masks(model).items():
        weight = model.get_submodule(key).weight
        assert torch.equal(mask, before[key])
        assert (weight[~mask].view(torch.int32) == 0).all()
        assert mask.sum() == mask.numel() - round(0.75 * mask.numel())
    moved = (model[3].weight != kept)[masks(model)["3"]]
    assert moved.all()


def test_biases_norms_and_unreached_embeddings_stay_untouched():
    model = nn.ModuleDict(
        {"emb": nn.Embedding(5, 4), "norm": nn.LayerNorm(4), "fc": nn.Linear(4, 4)}
    )
    state = {key: value.clone() for key, value in model.state_dict().items()}
    prune(model, Plan.of(sparsity=0.5))
    unparametrize(model)
    changed = [
        key for key, value in model.state_dict().items() if not torch.equal(value, state[key])
    ]
    assert changed == ["fc.weight"]
    prune(model, Plan.of("embedding:*", sparsity=0.5))
    assert list(masks(model)) == ["emb"]


def test_a_pruned_nan_is_zero():
    model = nn.Linear(2, 1)
    prune(model, Plan.of(sparsity=0.5))
    with torch.no_grad():
        model.parametrizations.weight.original[~masks(model)[""]] = float("nan")
    assert (model.weight == 0).sum() == 1
    model(torch.ones(1, 2)).sum().backward()
    assert torch.isfinite(model.parametrizations.weight.original.grad).all()


def test_pruning_again_only_shrinks_unless_regrowing():
    model = nn.Linear(10, 10)
    prune(model, Plan.of(sparsity=0.5))
    first = masks(model)[""].clone()
    assert prune(model, Plan.of(sparsity=0.2)).layers[0].nnz == 50
    assert torch.equal(masks(model)[""], first)
    assert prune(model, Plan.of(sparsity=0.7)).sparsity == pytest.approx(0.7)
    assert not (masks(model)[""] & ~first).any()
    assert prune(model, Plan.of(sparsity=0.2), regrow=True).layers[0].nnz == 80
    assert len(model.parametrizations.weight) == 1


def test_global_scope_and_rules_of_their_own():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 10))
    with torch.no_grad():
        model[0].weight *= 100
    plan = Plan({"*": Rule(sparsity=0.5), "2": Rule(threshold=0.1)}, pruning_scope="global")
    third = (model[2].weight.detach().abs() > 0.1).sum()
    kept = [layer.nnz for layer in prune(model, plan).layers]
    assert sum(kept[:2]) == 100 and kept[0] > 90 and kept[2] == third


def test_copies_and_pickles_are_pruned_trainable_and_independent():
    model = network()
    prune(model, Plan.of(sparsity=0.75))
    expected = model.eval()(X)
    for twin in copies(model):
        assert torch.equal(twin(X), expected)
        assert all(torch.equal(masks(twin)[key], mask) for key, mask in masks(model).items())
        twin.train()
        step(twin, torch.optim.SGD(twin.parameters(), lr=0.1))
        assert (twin[3].weight[~masks(twin)["3"]] == 0).all()
        unparametrize(twin)
        assert type(twin[3]) is nn.Linear and not masks(twin)
        assert torch.equal(model(X), expected)


def test_a_pickle_opens_in_another_process(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    prune(model, Plan.of(sparsity=0.5))
    torch.save(model, tmp_path / "model.pt")
    code = (
        "import sys, torch; m = torch.load(sys.argv[1], weights_only=False);"
        "sys.exit(int((m[0].weight != 0).sum()))"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "model.pt"], check=False)
    assert run.returncode == 8


def test_a_state_dict_carries_the_mask_to_a_model_pruned_alike():
    model, other = network(), network()
    prune(model, Plan.of(sparsity=0.75))
    with torch.no_grad():
        other[3].weight.normal_()
    prune(other, Plan.of(sparsity=0.75))
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(model.eval()(X), other.eval()(X))


def test_unparametrize_bakes_the_weights_and_keeps_what_trains():
    model = network()
    model[3].weight.requires_grad_(False)
    prune(model, Plan.of(sparsity=0.75))
    expected = model.eval()(X)
    names = set(dict(network().named_parameters()))
    unparametrize(model)
    assert torch.equal(model(X), expected) and set(dict(model.named_parameters())) == names
    assert not model[3].weight.requires_grad and model[5].weight.requires_grad


def test_tied_weights_stay_tied():
    model = Tied()
    report = prune(model, Plan.of("head", sparsity=0.5))
    assert len(report.layers) == 1
    assert torch.equal(model.emb.weight, model.head.weight) and (model.emb.weight != 0).sum() == 12
    assert set(masks(model)) == {"emb", "head"}
    assert len(list(model.parameters())) == 1
    for twin in copies(model):
        step_input = torch.arange(6)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
        twin(step_input).square().sum().backward()
        optimizer.step()
        assert torch.equal(twin.emb.weight, twin.head.weight)
        unparametrize(twin)
        assert twin.emb.weight is twin.head.weight
    with pytest.raises(ValueError, match="'emb' and 'head' share one weight"):
        prune(Tied(), Plan({"emb": Rule(sparsity=0.1), "head": Rule(sparsity=0.2)}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_pruned(dtype):
    model = nn.Linear(10, 10).to(dtype)
    prune(model, Plan.of(sparsity=0.9))
    assert (model.weight != 0).sum() == 10 and model.weight.dtype == dtype


def test_a_weight_that_is_no_plain_parameter_is_an_error_and_nothing_changes():
    normed = parametrizations.weight_norm(nn.Linear(4, 4))
    hooked = torch_prune.l1_unstructured(nn.Linear(4, 4), "weight", 2)
    for bad in (normed, hooked, nn.LazyLinear(3)):
        model = nn.Sequential(nn.Linear(4, 4), bad)
        with pytest.raises(ValueError, match="weight of layer '1' is no plain parameter"):
            prune(model, Plan.of(sparsity=0.5))
        assert type(model[0]) is nn.Linear
        prune(model, Plan.of("0", sparsity=0.5))
        unparametrize(model)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="magnitude: 1 holds 1 NaN"):
        prune(model, Plan.of(sparsity=0.5))
    assert not masks(model)
    with pytest.raises(ValueError, match="pruner is 'luck', expected one of magnitude"):
        prune(model, Plan.of(pruner="luck", sparsity=0.5))


def test_numpy_pruning_and_quantizing_do_not_load_torch():
    code = (
        "import sys; import tersenet.plan; from tersenet.pruning import magnitude_mask;"
        "from tersenet.quantization import quantize_arrays; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("method", ["prune", "soft", "share", "learn"])
def test_an_embedding_with_sparse_gradients_trains_under_a_mask(method):
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Embedding(6, 4, sparse=s), nn.Linear(4, 2)) for s in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    plan = Plan({"embedding:*": Rule(sparsity=0.5, quantizer="cws", k=3)})
    ids, classes = torch.tensor([0, 1, 1, 4]), torch.tensor([0, 1, 0, 1])
    for model in models:
        if method == "soft":
            SoftPruning(model, plan, steps=9, initial=0.5)
        elif method == "learn":
            prepare_qat(model, plan)
        else:
            prune(model, plan)
        if method == "share":
            quantize(model, plan)
        for twin in copies(model):
            twin(ids).sum().backward()
        adam = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(3):
            adam.zero_grad()
            nn.functional.cross_entropy(model(ids), classes).backward()
            adam.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        models[0](ids)
