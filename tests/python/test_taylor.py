"""Taylor scores against autograd and finite differences, what is pruned by them, soft masks."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import Tied, copies
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from tersenet import Plan, Quantized, masks, prune, quantize
from tersenet.pruning import taylor_scores
from tersenet.quantization import cws


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 3, 2, bias=False),
        nn.Flatten(),
        nn.Linear(12, 5),
    ).to(dtype)


X = torch.randn(24, 2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(24) % 5
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)]
NAMES = ["0", "4", "6"]


def by_hand(model):
    """The mean over the batches of |dL/dw|, by plain autograd."""
    model = copy.deepcopy(model).eval()
    totals = {name: 0 for name in NAMES}
    for x, y in BATCHES:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for name in NAMES:
            totals[name] = totals[name] + model.get_submodule(name).weight.grad.abs().numpy() / 3
    return totals


def test_scores_are_the_weight_times_the_gradient():
    model = network()
    scores = taylor_scores(model, BATCHES, F.cross_entropy)
    gradients = by_hand(model)
    assert list(scores) == NAMES
    for name, score in scores.items():
        weight = model.get_submodule(name).weight.detach().abs().numpy()
        np.testing.assert_allclose(score, weight * gradients[name], rtol=1e-12)
        assert score.dtype == np.float64


def test_scores_rank_weights_as_removing_each_does():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 0.3
    x, y = torch.randn(16, 6, dtype=torch.float64), torch.arange(16) % 3
    scores = taylor_scores(model, [(x, y)], F.cross_entropy)
    for name in ("0", "2"):
        weight = model.get_submodule(name).weight.detach().view(-1)
        changes = []
        with torch.no_grad():
            whole = F.cross_entropy(model(x), y)
            for i in range(weight.numel()):
                value = weight[i].clone()
                weight[i] = 0
                changes.append(abs(float(F.cross_entropy(model(x), y) - whole)))
                weight[i] = value
        assert spearmanr(scores[name].ravel(), changes).statistic >= 0.9
        # removing a thousandth of a weight changes the loss by a thousandth of its score
        with torch.no_grad():
            value = weight[3].clone()
            weight[3] *= 1 - 1e-6
            moved = float(F.cross_entropy(model(x), y) - whole) / 1e-6
            weight[3] = value
        assert abs(moved) == pytest.approx(scores[name].ravel()[3], rel=1e-3)


def test_scores_of_kernels_and_filters_are_sums():
    model = network()
    weights = taylor_scores(model, BATCHES, F.cross_entropy)
    kernels = taylor_scores(model, BATCHES, F.cross_entropy, by="kernel", layers=["0", "4"])
    filters = taylor_scores(model, BATCHES, F.cross_entropy, by="filter")
    for name in ("0", "4"):
        np.testing.assert_allclose(kernels[name], np.einsum("oihw->oi", weights[name]))
        np.testing.assert_allclose(filters[name], np.einsum("oihw->o", weights[name]))
    np.testing.assert_allclose(filters["6"], weights["6"] @ np.ones(12))
    assert list(kernels) == ["0", "4"]


def test_a_filter_before_a_norm_has_a_score_though_its_scale_has_no_effect():
    """The signed sum of w * g over it vanishes; the sum of the scores does not."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.InstanceNorm2d(4, eps=0), nn.Flatten(), nn.Linear(36, 5)
    ).double()
    F.cross_entropy(model(X), Y).backward()
    signed = (model[0].weight * model[0].weight.grad).sum((1, 2, 3))
    scores = taylor_scores(model, [(X, Y)], F.cross_entropy, by="filter", layers="0")
    assert signed.abs().max() < 1e-12 and scores["0"].min() > 1e-3


def test_scores_of_quantizing_are_its_distance_times_the_gradient():
    model = network()
    gradients = by_hand(model)
    codebook = np.array([0.3, -0.2, 0.05])
    scores = taylor_scores(
        model, BATCHES, F.cross_entropy, quantized=dict.fromkeys(NAMES, codebook)
    )
    for name in NAMES:
        weight = model.get_submodule(name).weight.detach().numpy()
        nearest = codebook[np.abs(weight[..., None] - codebook).argmin(-1)]
        np.testing.assert_allclose(
            scores[name], np.abs(nearest - weight) * gradients[name], rtol=1e-9, atol=1e-15
        )
    shared = {n: cws(model.get_submodule(n).weight.detach().numpy(), 4) for n in NAMES}
    assert isinstance(shared["0"], Quantized)
    named = taylor_scores(model, BATCHES, F.cross_entropy, quantized=shared)
    called = taylor_scores(model, BATCHES, F.cross_entropy, quantized=lambda w: cws(w, 4))
    for name in NAMES:
        weight = model.get_submodule(name).weight.detach().numpy()
        expected = np.abs(shared[name].values() - weight) * gradients[name]
        np.testing.assert_allclose(named[name], expected, rtol=1e-9, atol=1e-15)
        np.testing.assert_array_equal(named[name], called[name])


def test_what_is_zero_stays_zero_under_a_codebook():
    model = nn.Linear(3, 1, bias=False)
    model.weight.data = torch.tensor([[0.0, 0.9, -2.0]])
    data = [(torch.tensor([[1.0, 2.0, 3.0]]), None)]
    scores = taylor_scores(
        model, data, lambda outputs, _: outputs.sum(), quantized={"": np.float32([1, -1])}
    )
    np.testing.assert_allclose(scores[""], [[0, 0.2, 3]], rtol=1e-6)


def test_the_model_is_left_as_it_was():
    model = network()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[6].weight.grad = torch.ones_like(model[6].weight)
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    with torch.no_grad():
        first = taylor_scores(model, BATCHES, F.cross_entropy)
    second = taylor_scores(model, iter(BATCHES), F.cross_entropy)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert (model[6].weight.grad == 1).all()
    assert all(p.grad is None for n, p in model.named_parameters() if n != "6.weight")
    assert not model[0].weight.requires_grad and model[4].weight.requires_grad
    assert all(np.array_equal(first[name], second[name]) and first[name].any() for name in NAMES)
    with pytest.raises(ValueError, match="loss is"):
        taylor_scores(model, BATCHES, lambda outputs, _: outputs)
    assert not model[0].weight.requires_grad
    assert [module.training for module in model.modules()] == modes


def test_a_teacher_needs_no_labels():
    model, teacher = network(), network().eval()
    with torch.no_grad():
        model[6].weight += 0.1
    data = [(X, None)]

    def distance(outputs, _):
        return F.mse_loss(outputs, teacher(X).detach())

    assert taylor_scores(model, data, distance, layers="6")["6"].min() > 0


def test_tied_weights_are_scored_once_by_the_sum_of_their_gradients():
    torch.manual_seed(0)
    model, ids = Tied(), torch.tensor([0, 2, 5])
    F.cross_entropy(model(ids), ids).backward()
    weight = model.emb.weight
    expected = (weight * weight.grad).detach().abs().numpy()
    for _ in range(2):  # the second time computed from mask and original
        scores = taylor_scores(model, [(ids, ids)], F.cross_entropy, layers="head")
        assert list(scores) == ["emb"]
        np.testing.assert_allclose(scores["emb"], expected, rtol=1e-5)
        prune(model, Plan.of("head", sparsity=0.0))


def test_a_pruned_layer_is_scored_by_what_is_under_the_mask():
    model = network()
    prune(model, Plan.of("6", sparsity=0.5))
    kept, original = masks(model)["6"].numpy(), model[6].parametrizations.weight.original
    scores = taylor_scores(model, BATCHES, F.cross_entropy)["6"]
    assert (scores[~kept] > 0).all()
    dense = copy.deepcopy(model)
    weight = nn.Parameter(model[6].weight.detach().clone())
    dense[6] = nn.Linear(12, 5).double()
    dense[6].weight, dense[6].bias = weight, model[6].bias
    np.testing.assert_allclose(
        scores, original.detach().abs().numpy() * by_hand(dense)["6"], rtol=1e-9
    )


def test_a_quantized_layer_is_scored_by_its_weights():
    model = network()
    quantize(model, Plan.of("6", quantizer="cws", k=3))
    dense = copy.deepcopy(model)
    dense[6] = nn.Linear(12, 5).double()
    dense[6].weight = nn.Parameter(model[6].weight.detach().clone())
    dense[6].bias = model[6].bias
    scores = taylor_scores(model, BATCHES, F.cross_entropy, layers="6")["6"]
    expected = dense[6].weight.detach().abs().numpy() * by_hand(dense)["6"]
    np.testing.assert_allclose(scores, expected, rtol=1e-9)


SCORES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=7),
    elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, np.inf]),
)


def selected(scores, sparsity):
    """Which scores stay: those that come first when sorted by falling score, then position."""
    flat = scores.ravel()
    order = np.argsort(-flat, kind="stable")
    mask = np.zeros(flat.size, bool)
    mask[order[: flat.size - round(sparsity * flat.size)]] = True
    return mask.reshape(scores.shape)


@given(scores=SCORES, sparsity=st.floats(0, 0.999))
@settings(max_examples=60)
def test_the_largest_scores_stay_exactly_as_many_as_asked(scores, sparsity):
    model = nn.Linear(scores.shape[1], scores.shape[0])
    report = prune(model, Plan.of(sparsity=sparsity), scores={"": scores})
    assert np.array_equal(masks(model)[""].numpy(), selected(scores, sparsity))
    assert report.layers[0].nnz == scores.size - round(sparsity * scores.size)
    assert ((model.weight != 0) == masks(model)[""]).all()


@given(scores=st.lists(SCORES, min_size=1, max_size=3), sparsity=st.floats(0, 0.999))
@settings(max_examples=40)
def test_a_global_sparsity_ranks_the_scores_of_all_layers_as_one(scores, sparsity):
    model = nn.Sequential(*(nn.Linear(a.shape[1], a.shape[0]) for a in scores))
    named = {str(i): a for i, a in enumerate(scores)}
    prune(model, Plan.of(sparsity=sparsity, pruning_scope="global"), scores=named)
    expected = selected(np.concatenate([a.ravel() for a in scores]), sparsity)
    assert np.array_equal(np.concatenate([m.ravel() for m in masks(model).values()]), expected)


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3)),
    depth=st.sampled_from([1, 2]),
    sparsity=st.floats(0, 0.999),
    seed=st.integers(0, 9),
)
@settings(max_examples=60)
def test_kernels_and_filters_stay_or_go_whole(shape, depth, sparsity, seed):
    scores = np.random.default_rng(seed).integers(0, 4, shape[:depth]).astype(np.float64)
    model = nn.Conv1d(shape[1], shape[0], shape[2])
    prune(model, Plan.of(sparsity=sparsity), scores={"": scores})
    expected = selected(scores, sparsity)
    mask = masks(model)[""].numpy()
    assert mask.sum() == expected.sum() * np.prod(shape[depth:])
    assert np.array_equal(mask.all(axis=tuple(range(depth, 3))), expected)


def test_pruning_again_by_scores_only_shrinks_unless_regrowing():
    model = nn.Linear(10, 10)
    prune(model, Plan.of(sparsity=0.5))
    first = masks(model)[""].clone()
    scores = np.random.default_rng(0).random((10, 10))
    prune(model, Plan.of(sparsity=0.6), scores={"": scores})
    kept = masks(model)[""]
    assert kept.sum() == 40 and not (kept & ~first).any()
    assert scores[kept.numpy()].min() > scores[(first & ~kept).numpy()].max()
    prune(model, Plan.of(sparsity=0.2), regrow=True, scores={"": scores.sum(1)})
    expected = selected(scores.sum(1), 0.2)
    assert np.array_equal(masks(model)[""].numpy(), np.repeat(expected[:, None], 10, 1))


def test_copies_and_pickles_keep_what_scores_chose():
    model = network()
    prune(model, Plan.of(sparsity=0.75), scores=taylor_scores(model, BATCHES, F.cross_entropy))
    for twin in copies(model):
        assert all(torch.equal(masks(twin)[key], mask) for key, mask in masks(model).items())
        assert torch.equal(twin.eval()(X), model.eval()(X))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "scores have no layer '', expected one"),
        ({"": np.ones((3, 4))}, r"float64 \[3, 4\], expected floats \[4\] or \[4, 3\]"),
        ({"": np.ones((4, 3), int)}, "int64"),
        ({"": np.full((4, 3), -1.0)}, "hold -1.0 at flat position 0"),
        ({"": np.full((4, 3), np.nan)}, "holds 12 NaN"),
    ],
)
def test_scores_that_do_not_fit_are_errors(scores, message):
    model = nn.Linear(3, 4)
    with pytest.raises(ValueError, match=message):
        prune(model, Plan.of(sparsity=0.5), scores=scores)
    assert not masks(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "row"}, "by is 'row', expected one of weight, kernel, filter"),
        ({"batches": []}, "no batches"),
        ({"layers": "7"}, "pattern '7' matches no layer"),
        ({"loss": lambda o, y: o.sum().detach()}, "loss is a tensor"),
        ({"loss": lambda o, y: 3.0}, "loss is 3.0"),
        ({"loss": lambda o, y: o.sum() * float("nan")}, "layer '0' holds 72 non-finite"),
        ({"quantized": {"0": np.ones(2)}}, "quantized has no layer '4'"),
        ({"quantized": lambda w: cws(w.ravel(), 2)}, "quantized layer '0' has shape"),
        ({"quantized": dict.fromkeys(NAMES, np.ones((2, 2)))}, "codebook of layer '0' is float64"),
        ({"quantized": dict.fromkeys(NAMES, np.array([np.nan]))}, "'0' is not finite"),
    ],
)
def test_bad_arguments_are_named(options, message):
    options = {"batches": BATCHES, "loss": F.cross_entropy, **options}
    with pytest.raises(ValueError, match=message):
        taylor_scores(network(), options.pop("batches"), options.pop("loss"), **options)
