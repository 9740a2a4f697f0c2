"""ADMM: the projection, the loss that is added, its fixed point, rounds, and going on."""

import copy
import math

import numpy as np
import pytest
import torch
from exported import check
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import SmallNet
from torch import nn
from torch.nn import functional as F

import tersenet
from tersenet.plan import Plan, Rule
from tersenet.pruning import ADMM, masks, prune, prune_admm
from tersenet.quantization import quantize
from tersenet.training import TensorBatches, evaluate, fit

TIED = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -3.0])
MATRICES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=TIED | st.floats(-4, 4, width=32),
)
DRAWN = torch.Generator().manual_seed(7)
INPUTS = torch.randn(96, 8, generator=DRAWN)
CLASSES = (INPUTS[:, 0] > INPUTS[:, 1]).long() + (INPUTS[:, 2] > 1).long()


def nearest_sparse(values, count):
    """Sort by falling magnitude, then by position, and keep the first."""
    flat = values.ravel()
    order = sorted(range(flat.size), key=lambda i: (-abs(flat[i]), i))
    result = np.zeros_like(flat)
    result[order[:count]] = flat[order[:count]]
    return result.reshape(values.shape)


def layer(weights):
    model = nn.Linear(weights.shape[1], weights.shape[0])
    model.weight.data = torch.from_numpy(weights.copy())
    return model


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))


def train(model, callbacks, stage):
    fast = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3)
    slow = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-2)
    fit(
        model,
        TensorBatches(INPUTS, CLASSES, batch_size=32, seed=stage.seed),
        epochs=3,
        optimizer=fast if stage.phase == "admm" else slow,
        loss=F.cross_entropy,
        callbacks=callbacks,
        seed=stage.seed,
    )


def validate(model):
    return -evaluate(model, [(INPUTS, CLASSES)], F.cross_entropy)


@given(weights=MATRICES, data=st.data())
@settings(max_examples=80)
def test_z_is_the_nearest_point_of_exactly_so_many_values_and_u_what_it_lacks(weights, data):
    kept = data.draw(st.integers(1, weights.size))
    model = layer(weights)
    admm = ADMM(model, Plan.of(sparsity=1 - kept / weights.size))
    z, u = nearest_sparse(weights, kept), np.zeros_like(weights)
    moves = data.draw(st.lists(hnp.arrays(np.float32, weights.shape, elements=TIED), max_size=3))
    for move in moves:
        model.weight.data += torch.from_numpy(move)
        admm.update()
        present = model.weight.detach().numpy()
        z, u = nearest_sparse(present + u, kept), present + u
        u = u - z
    if kept == weights.size:  # nothing to prune: it is not pulled at
        assert admm.state_dict()["z"] == {}
        assert admm.penalty() == 0
        return
    state = admm.state_dict()
    assert np.array_equal(state["z"][""].numpy(), z)
    assert np.array_equal(state["u"][""].numpy(), u)


@given(weights=MATRICES, other=TIED)
@settings(max_examples=30)
def test_no_other_point_of_so_many_values_is_nearer(weights, other):
    kept = max(1, weights.size // 3)
    z = ADMM(layer(weights), Plan.of(sparsity=1 - kept / weights.size)).state_dict()["z"]
    if weights.size == kept:
        return
    least = np.square(weights - z[""].numpy()).sum(dtype=np.float64)
    rng = np.random.default_rng(abs(hash(other)))
    for _ in range(20):
        chosen = rng.permutation(weights.size)[:kept]
        point = np.zeros(weights.size, np.float32)
        point[chosen] = weights.ravel()[chosen]
        assert least <= np.square(weights.ravel() - point).sum(dtype=np.float64) * (1 + 1e-6)


def test_the_gradient_of_the_augmented_loss_is_that_of_finite_differences():
    torch.manual_seed(1)
    model = nn.Linear(5, 4).double()
    x, y = torch.randn(6, 5).double(), torch.randn(6, 4).double()
    admm = ADMM(model, Plan.of(sparsity=0.6), rho=0.3)
    model.weight.data += 0.1 * torch.randn(4, 5)
    admm.update()
    model.weight.data += 0.1 * torch.randn(4, 5)

    def augmented():
        return F.mse_loss(model(x), y) + admm.penalty()

    augmented().backward()
    z, u = (admm.state_dict()[key][""] for key in "zu")
    assert u.abs().sum() > 0
    by_hand = 0.15 * (model.weight.detach() - z + u).square().sum()
    assert float(admm.penalty().detach()) == pytest.approx(float(by_hand), rel=1e-12)
    step = 1e-6
    flat = model.weight.data.view(-1)
    for at in range(flat.numel()):
        values = []
        for move in (step, -step):
            before = flat[at].clone()
            flat[at] = before + move
            values.append(float(augmented().detach()))
            flat[at] = before
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(float(model.weight.grad.view(-1)[at]), rel=1e-6, abs=1e-8)


def test_pruned_weights_get_no_gradient_and_never_come_back():
    model = network()
    prune(model, Plan.of(sparsity=0.5))
    before = {name: mask.clone() for name, mask in masks(model).items()}
    admm = ADMM(model, Plan({"0": Rule(sparsity=0.8)}), rho=1.0)
    assert set(admm.state_dict()["z"]) == {"0"}
    adam = torch.optim.Adam(model.parameters(), lr=0.1)
    (F.cross_entropy(model(INPUTS), CLASSES) + admm.penalty()).backward()
    for name in ("0", "3"):
        original = model.get_submodule(name).parametrizations.weight.original
        assert (original.grad[~before[name]] == 0).all()
    for _ in range(5):
        adam.zero_grad()
        (F.cross_entropy(model(INPUTS), CLASSES) + admm.penalty()).backward()
        adam.step()
        admm.update()
    assert (admm.state_dict()["z"]["0"][~before["0"]] == 0).all()
    admm.prune()
    assert not (masks(model)["0"] & ~before["0"]).any()
    assert torch.equal(masks(model)["3"], before["3"])


def test_a_layer_that_has_no_more_weights_than_asked_for_is_not_pulled_at():
    model = network()
    prune(model, Plan({"0": Rule(sparsity=0.9)}))
    admm = ADMM(model, Plan({"*": Rule(sparsity=0.9), "3": Rule(sparsity=0.5)}))
    assert set(admm.state_dict()["z"]) == {"3"}
    done = ADMM(model, Plan({"0": Rule(sparsity=0.7)}))
    assert done.distances() == {}
    assert done.penalty() == 0


def test_sparse_least_squares_ends_where_theory_says():
    """At W = Z the gradient is -rho U: zero where Z is kept, and U smaller than what Z keeps."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((60, 12))
    truth = np.where(np.arange(12) % 4 == 0, 2.0 + np.arange(12) / 4, 0.0)
    y = x @ truth + 0.05 * rng.standard_normal(60)
    model = nn.Linear(12, 1, bias=False).double()
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)[:, None]
    admm = ADMM(model, Plan.of(sparsity=0.75), rho=0.5)
    lbfgs = torch.optim.LBFGS(
        model.parameters(), lr=1, max_iter=50, tolerance_grad=1e-12, tolerance_change=1e-14
    )
    fit(
        model,
        [(inputs, targets)],
        epochs=60,
        optimizer=lbfgs,
        loss=lambda found, wanted: 0.5 * F.mse_loss(found, wanted),
        callbacks=[admm],
    )
    weight = model.weight.detach().numpy()[0]
    z, u = (admm.state_dict()[key][""].numpy()[0] for key in "zu")
    support = np.flatnonzero(z)
    assert np.array_equal(support, np.flatnonzero(truth))
    assert admm.distances()[""] < 1e-6
    expected, *_ = np.linalg.lstsq(x[:, support], y, rcond=None)
    assert np.allclose(weight[support], expected, atol=1e-6)
    gradient = x.T @ (x @ weight - y) / len(y)
    assert np.allclose(gradient, -admm.rho * u, atol=1e-6)
    assert np.abs(u).max() <= np.abs(z[support]).min()


def test_a_growing_rho_scales_the_dual_so_that_the_force_stays():
    model = layer(np.float32([[3, 1, 2, 1]]))
    plain = ADMM(model, Plan.of(sparsity=0.5), rho=0.5)
    growing = ADMM(model, Plan.of(sparsity=0.5), rho=0.5, rho_growth=4.0)
    model.weight.data += torch.tensor([[0.0, 0.5, 0.0, -0.25]])
    for admm in (plain, growing):
        admm.update()
    assert growing.rho == 2.0
    first, second = plain.state_dict()["u"][""], growing.state_dict()["u"][""]
    assert torch.equal(first, torch.tensor([[0.0, 1.5, 0.0, 0.75]]))
    assert torch.equal(growing.rho * second, plain.rho * first)


def test_a_loop_of_ones_own_gives_the_bits_of_the_callback():
    models = [network(), network()]
    plan = Plan.of(sparsity=0.75)
    batches = [(INPUTS[:48], CLASSES[:48]), (INPUTS[48:], CLASSES[48:])]
    first, second = (ADMM(model, plan, rho=0.1, epochs_per_update=2) for model in models)
    sgd = torch.optim.SGD(models[0].parameters(), lr=0.1, momentum=0.9)
    fit(models[0], batches, epochs=4, optimizer=sgd, loss=F.cross_entropy, callbacks=[first])
    sgd = torch.optim.SGD(models[1].parameters(), lr=0.1, momentum=0.9)
    for epoch in range(4):
        for inputs, targets in batches:
            sgd.zero_grad()
            (F.cross_entropy(models[1](inputs), targets) + second.penalty()).backward()
            sgd.step()
        if epoch % 2 == 1:
            second.update()
    same(*models)
    for key in "zu":
        for name, tensor in first.state_dict()[key].items():
            assert torch.equal(tensor, second.state_dict()[key][name])


@pytest.mark.parametrize("calls", [(1, 1, 1, 1), (1, 3), (3, 1)])
def test_epochs_between_updates_count_over_calls_and_states(calls):
    data = [(INPUTS, CLASSES)]
    found = []
    for epochs in ((4,), calls):
        model = network()
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        state = None
        for count in epochs:
            admm = ADMM(model, Plan.of(sparsity=0.75), rho=1.0, rho_growth=2.0, epochs_per_update=2)
            if state is not None:
                admm.load_state_dict(state)
            fit(
                model,
                data,
                epochs=count,
                optimizer=sgd,
                loss=F.cross_entropy,
                callbacks=[admm],
            )
            state = admm.state_dict()
        assert admm.rho == 4.0
        found.append(model)
    same(*found)


def test_going_on_from_a_state_gives_the_same_bits():
    plan = Plan.of(sparsity=0.75)
    model, through = network(), network()
    sgd = torch.optim.SGD(through.parameters(), lr=0.1)
    admm = ADMM(through, plan, rho=0.1, rho_growth=1.5)
    data = [(INPUTS, CLASSES)]
    fit(through, data, epochs=4, optimizer=sgd, loss=F.cross_entropy, callbacks=[admm])
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    first = ADMM(model, plan, rho=0.1, rho_growth=1.5)
    fit(model, data, epochs=2, optimizer=sgd, loss=F.cross_entropy, callbacks=[first])
    second = ADMM(model, plan, rho=9.0, rho_growth=1.5)
    second.load_state_dict(first.state_dict())
    fit(model, data, epochs=2, optimizer=sgd, loss=F.cross_entropy, callbacks=[second])
    same(model, through)
    assert second.rho == admm.rho == pytest.approx(0.1 * 1.5**4)
    with pytest.raises(ValueError, match="z of the state is for"):
        second.load_state_dict(ADMM(model, Plan({"0": Rule(sparsity=0.5)})).state_dict())


def same(model, other):
    """Check that two models have the same tensors, to the bit."""
    tensors = other.state_dict()
    assert list(model.state_dict()) == list(tensors)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name


ROUNDS = [Plan.of(sparsity=0.5), [Plan.of(sparsity=0.7), Plan.of(sparsity=0.75)]]


def test_rounds_end_at_exactly_the_sparsity_and_the_best_goes_on(tmp_path):
    model = network()
    parameters = {id(parameter) for parameter in model.parameters()}
    told = []
    report = prune_admm(
        model,
        ROUNDS,
        train=train,
        validate=validate,
        rho=[0.01, 0.1],
        beam=2,
        progress=lambda *step: told.append(step),
    )
    assert [(c.round, c.candidate, c.parent, c.plan, c.rho) for c in report.candidates[:2]] == [
        (0, 0, 0, 0, 0.01),
        (0, 1, 0, 0, 0.1),
    ]
    first, last = report.candidates[:2], report.candidates[2:]
    order = sorted(first, key=lambda c: -c.value)
    assert [c.parent for c in last] == [order[0].candidate] * 4 + [order[1].candidate] * 4
    assert report.best == max(last, key=lambda c: c.value)
    assert [c.nnz for c in first] == [64 + 24] * 2
    sparsity = (0.7, 0.75)[report.best.plan]
    for name, size in (("0", 128), ("3", 48)):
        assert int(masks(model)[name].sum()) == size - round(sparsity * size)
    assert report.best.nnz == sum(int(mask.sum()) for mask in masks(model).values())
    assert validate(model) == report.best.value
    assert {id(parameter) for parameter in model.parameters()} == parameters
    assert [step[1:] for step in told] == [(i + 1, 20) for i in range(20)]
    stays_zero(model)


def stays_zero(model):
    before = {name: mask.clone() for name, mask in masks(model).items()}
    for make in (
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    ):
        optimizer = make(model.parameters())
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(model(INPUTS), CLASSES).backward()
            optimizer.step()
    for name, mask in masks(model).items():
        assert torch.equal(mask, before[name])
        assert (model.get_submodule(name).weight[~mask].view(torch.int32) == 0).all()


def test_one_seed_gives_one_model_and_a_generator_is_a_seed():
    def pruned(seed):
        model = network()
        prune_admm(model, ROUNDS, train=train, validate=validate, seed=seed)
        return model

    first = pruned(3)
    same(first, pruned(3))
    other = pruned(4)
    assert not torch.equal(first[0].weight, other[0].weight)
    same(pruned(torch.Generator().manual_seed(5)), pruned(torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_run_that_was_interrupted_ends_with_the_same_bits(tmp_path, stop):
    expected, model = network(), network()
    whole = prune_admm(expected, ROUNDS, train=train, validate=validate, rho=0.1)
    calls = 0

    def interrupted(model, callbacks, stage):
        nonlocal calls
        calls += 1
        if calls == stop + 1:
            raise KeyboardInterrupt
        train(model, callbacks, stage)

    before = copy.deepcopy(model)
    options = {"validate": validate, "rho": 0.1, "checkpoint": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        prune_admm(model, ROUNDS, train=interrupted, **options)
    same(model, before)
    calls = -100
    again = prune_admm(model, ROUNDS, train=interrupted, **options)
    assert calls == -100 + 6 - stop
    assert again == whole
    same(model, expected)


def test_a_checkpoint_of_another_run_or_of_no_run_is_an_error(tmp_path):
    options = {"train": train, "validate": validate, "checkpoint": tmp_path}
    prune_admm(network(), ROUNDS[:1], **options)
    for changed in ({"seed": 1}, {"rho": 0.5}, {"beam": 2}):
        with pytest.raises(ValueError, match="is of another run"):
            prune_admm(network(), ROUNDS[:1], **options, **changed)
    with pytest.raises(ValueError, match="is of another run"):
        prune_admm(network(seed=1), ROUNDS[:1], **options)
    for path in tmp_path.iterdir():
        path.write_bytes(b"no state")
    with pytest.raises(ValueError, match=r"round-0-candidate-0-retraining\.pt cannot be read"):
        prune_admm(network(), ROUNDS[:1], **options)


def test_every_kind_of_layer_tied_and_in_half_precision():
    model = SmallNet().to(torch.bfloat16)
    plan = Plan({"*": Rule(sparsity=0.75), "embedding": Rule(sparsity=0.75)})
    biases = {n: p.detach().clone() for n, p in model.named_parameters() if "bias" in n}
    admm = ADMM(model, plan, rho=0.1)
    tied = admm.state_dict()["z"]
    assert "embedding" in tied and "head" not in tied
    assert tied["embedding"].dtype == torch.float32
    sgd = torch.optim.SGD([p for n, p in model.named_parameters() if "bias" not in n], lr=0.01)
    for _ in range(2):
        sgd.zero_grad()
        (model(SmallNet.example()).float().square().mean() + admm.penalty()).backward()
        sgd.step()
        admm.update()
    for pruned in admm.prune().layers:
        size = math.prod(pruned.shape)
        assert pruned.nnz == size - round(0.75 * size)
    assert model.head.weight is not None
    assert torch.equal(model.head.weight, model.embedding.weight)
    for name, bias in biases.items():
        assert torch.equal(model.get_parameter(name), bias)


def test_weights_ranked_together_meet_the_sparsity_together():
    model = network()
    model[0].weight.data *= 10
    plan = Plan.of(sparsity=0.5, pruning_scope="global")
    z = ADMM(model, plan).state_dict()["z"]
    joined = np.concatenate([model[i].weight.detach().numpy().ravel() for i in (0, 3)])
    expected = nearest_sparse(joined, 88)
    found = np.concatenate([z[name].numpy().ravel() for name in ("0", "3")])
    assert np.array_equal(found, expected)


def test_a_pruned_model_is_quantized_compressed_and_exported(tmp_path):
    model = network()
    prune_admm(model, [Plan.of(sparsity=0.8)], train=train, validate=validate)
    kept = {name: mask.clone() for name, mask in masks(model).items()}
    quantize(model, Plan.of(quantizer="cws", k=4))
    for name, mask in masks(model).items():
        assert torch.equal(mask, kept[name])
    small = tersenet.compress(model.eval(), goal="size")
    plain = tersenet.decompress(small)
    for name, mask in kept.items():
        assert torch.equal(plain.get_submodule(name).weight, model.get_submodule(name).weight)
        assert (plain.get_submodule(name).weight[~mask] == 0).all()
    tersenet.export(small, INPUTS[:2], tmp_path / "net.terse", goal="size")
    check(tersenet.Network.load(tmp_path / "net.terse"), plain, (INPUTS,))


@pytest.mark.parametrize(
    ("plan", "options", "message"),
    [
        (Plan.of(sparsity=0.5), {"rho": 0.0}, "rho is 0.0, expected a number above 0"),
        (Plan.of(sparsity=0.5), {"rho": math.nan}, "rho is nan"),
        (Plan.of(sparsity=0.5), {"rho_growth": 0.5}, "rho_growth is 0.5"),
        (Plan.of(sparsity=0.5), {"epochs_per_update": 0}, "epochs_per_update is 0"),
        (Plan.of(quantizer="cws", k=4), {}, "the plan prunes no layer"),
        (Plan.of(threshold=0.5), {}, "layer '0' gets threshold 0.5, expected a sparsity"),
        (Plan.of("fc9", sparsity=0.5), {}, "'fc9' matches no layer"),
        (Plan.of(pruner="none", sparsity=0.5), {}, "pruner is 'none'"),
    ],
)
def test_bad_options_are_errors_before_anything_is_trained(plan, options, message):
    with pytest.raises(ValueError, match=message):
        ADMM(network(), plan, **options)
    with pytest.raises(ValueError, match=message):
        prune_admm(network(), [Plan.of(sparsity=0.1), plan], train=None, validate=None, **options)


def test_bad_rounds_values_and_weights_are_errors():
    model = network()
    plan = Plan.of(sparsity=0.5)
    for options, message in (
        ({"rounds": []}, "rounds or rho is empty"),
        ({"rounds": [[]]}, "rounds or rho is empty"),
        ({"rho": []}, "rounds or rho is empty"),
        ({"beam": 0}, "beam is 0"),
        ({"seed": -1}, "seed is -1"),
    ):
        given = {"rounds": [plan], "train": None, "validate": None, **options}
        with pytest.raises(ValueError, match=message):
            prune_admm(model, **given)
    with pytest.raises(ValueError, match="validate gave nan"):
        prune_admm(model, [plan], train=train, validate=lambda model: math.nan)
    admm = ADMM(model, plan)
    model[3].weight.data[1, 2] = math.nan
    with pytest.raises(ValueError, match="3 holds 1 NaN, first at flat position 18"):
        admm.update()
    model = network()
    quantize(model, Plan.of(quantizer="cws", k=4))
    with pytest.raises(ValueError, match="layer '0' is quantized"):
        ADMM(model, plan)
