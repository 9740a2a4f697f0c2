"""A budget of bytes: met by the file that is really saved, by the best of what was tried."""

import contextlib
import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tersenet import Plan, Rule, compress, fit_budget, prune, quantize, save
from tersenet.training import TensorBatches, accuracy, evaluate, fit

X = torch.randn(256, 24, generator=torch.Generator().manual_seed(1))
Y = (X[:, :4].argmax(1)).long()
DATA = [(X[:128], Y[:128]), (X[128:], Y[128:])]
GRID = {"sparsities": (0.3, 0.6, 0.9), "ks": (4, 16)}
ESTIMATE = {"batches": DATA, "loss": F.cross_entropy}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)
    )
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    batches = TensorBatches(X, Y, batch_size=64)
    fit(model, batches, epochs=8, optimizer=adam, loss=F.cross_entropy, seed=0)
    return model.eval()


def measure(model):
    return evaluate(model, DATA, accuracy)


def file_nbytes(model, plan, tmp_path):
    save(compress(model, plan), tmp_path / "model.terse", goal="size")
    return (tmp_path / "model.terse").stat().st_size


@pytest.mark.parametrize("search", ["uniform", "per layer"])
@pytest.mark.parametrize("budget", [1500, 2100, 3000])
def test_the_file_of_the_plan_is_within_the_budget(model, search, budget, tmp_path):
    state = copy.deepcopy(model.state_dict())
    found = fit_budget(model, budget, measure, search=search, **ESTIMATE, **GRID)
    assert file_nbytes(model, found.plan, tmp_path) == found.nbytes <= budget
    assert measure(compress(model, found.plan)) == found.value
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_the_answer_is_the_best_of_every_file_that_fits(model, tmp_path):
    found = fit_budget(model, 2500, measure, **GRID)
    expected = {}
    for sparsity in GRID["sparsities"]:
        for k in GRID["ks"]:
            plan = Plan.of(sparsity=sparsity, quantizer="cws", k=k, goal="size")
            expected[sparsity, k] = (
                file_nbytes(model, plan, tmp_path),
                measure(compress(model, plan)),
            )
    fitting = {pair: value for pair, (size, value) in expected.items() if size <= 2500}
    assert 0 < len(fitting) < len(expected)
    for row in found.trials:
        size, value = expected[row.sparsity, row.k]
        assert row.nbytes == size and row.value == (value if size <= 2500 else None)
    assert len(found.trials) == 6 and found.value == max(fitting.values())
    rule = found.plan.layers["*"]
    assert fitting[rule.sparsity, rule.k] == found.value
    assert str(found.trials).count("\n") == 7


def test_the_estimate_is_the_gradient_times_what_moved(model):
    found = fit_budget(model, 10_000, **ESTIMATE, **GRID)
    twin = copy.deepcopy(model)
    gradients = {}
    for x, y in DATA:
        twin.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        for name in ("0", "2", "4"):
            part = twin.get_submodule(name).weight.grad.abs() / 2
            gradients[name] = gradients.get(name, 0) + part
    for row in found.trials:
        twin = copy.deepcopy(model)
        plan = Plan.of(sparsity=row.sparsity, quantizer="cws", k=row.k)
        prune(twin, plan)
        quantize(twin, plan)
        expected = sum(
            float(
                ((twin.get_submodule(n).weight - model.get_submodule(n).weight).abs() * g)
                .detach()
                .double()
                .sum()
            )
            for n, g in gradients.items()
        )
        assert row.loss_increase == pytest.approx(expected, rel=1e-4)
        assert row.value == -row.loss_increase
    assert found.value == max(row.value for row in found.trials)


def test_layers_of_their_own_cost_less_loss_than_one_choice_for_all(model):
    """The last layer matters most and is smallest: it need not be pruned as the others."""
    uniform = fit_budget(model, 3000, **ESTIMATE, **GRID)
    found = fit_budget(model, 3000, search="per layer", **ESTIMATE, **GRID)
    assert found.value > uniform.value
    assert set(found.plan.layers) == {"0", "2", "4"}
    assert len({(rule.sparsity, rule.k) for rule in found.plan.layers.values()}) > 1
    row = found.trials[-1]
    assert (row.search, row.sparsity, row.k, row.nbytes) == ("per layer", None, None, found.nbytes)
    assert [r.nbytes for r in found.trials[:6]] == [r.nbytes for r in uniform.trials]


def test_two_searches_find_the_same(model):
    first, second = (
        fit_budget(model, 2100, measure, search="per layer", **ESTIMATE, **GRID) for _ in range(2)
    )
    assert first.plan == second.plan and first.trials.to_dicts() == second.trials.to_dicts()


def test_only_the_layers_that_are_meant_are_reached_tied_and_named_as_patterns(tmp_path):
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"a[0]": nn.Linear(32, 32), "b": nn.Linear(32, 32), "head": nn.Linear(32, 4)}
    )
    model["b"].weight = model["a[0]"].weight
    model.forward = lambda x: model["head"](model["b"](model["a[0]"](x)).relu())
    data = [(torch.randn(16, 32), None)]
    found = fit_budget(
        model,
        3000,
        search="per layer",
        layers=["a*", "b"],
        batches=data,
        loss=lambda outputs, _: outputs.square().mean(),
        **GRID,
    )
    assert file_nbytes(model, found.plan, tmp_path) == found.nbytes <= 3000
    assert torch.equal(compress(model, found.plan)["head"].weight, model["head"].weight)


def test_a_model_that_is_one_layer_has_a_budget_too(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(40, 40)
    found = fit_budget(
        model,
        1200,
        search="per layer",
        batches=[(torch.randn(8, 40), None)],
        loss=lambda outputs, _: outputs.square().mean(),
        **GRID,
    )
    assert file_nbytes(model, found.plan, tmp_path) == found.nbytes <= 1200


def test_a_budget_that_nothing_meets_says_what_the_smallest_takes(model):
    least = min(row.nbytes for row in fit_budget(model, 10**6, measure, **GRID).trials)
    with pytest.raises(
        ValueError, match=rf"of 6 files takes {least:,} bytes, expected at most 500"
    ):
        fit_budget(model, 500, measure, **GRID)
    assert fit_budget(model, least, measure, **GRID).nbytes == least


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no evaluate and no batches"),
        ({"evaluate": measure, "search": "per layer"}, "search 'per layer' and no batches"),
        ({"evaluate": measure, "batches": DATA}, "batches or loss alone"),
        ({"evaluate": measure, "search": "random"}, "expected one of uniform, per layer"),
        ({"evaluate": measure, "ks": ()}, "sparsities or ks is empty"),
        ({"evaluate": measure, "ks": (0,)}, "k is 0, expected an integer in"),
        ({"evaluate": measure, "sparsities": (1.0,)}, "sparsity is 1.0"),
        ({"evaluate": measure, "quantizer": "luck"}, "quantizer is 'luck'"),
        ({"evaluate": measure, "layers": "9"}, "pattern '9' matches no layer"),
        ({"evaluate": lambda model: np.nan}, "evaluate gave nan"),
    ],
)
def test_bad_arguments_are_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        fit_budget(model, 10_000, **{**GRID, **options})


def test_the_rule_of_a_layer_is_the_plans(model):
    found = fit_budget(model, 10_000, measure, layers="2", quantizer="uq", seed=3, **GRID)
    assert found.plan.seed == 3 and found.plan.goal == "size"
    assert isinstance(found.plan.layers["2"], Rule) and found.plan.layers["2"].quantizer == "uq"


class Stop(Exception):
    """Ends a search."""


@pytest.mark.parametrize("search", ["uniform", "per layer"])
def test_an_ended_search_goes_on_from_its_checkpoint(model, search, tmp_path):
    options = {"search": search} | ESTIMATE | GRID
    expected = fit_budget(model, 2100, measure, **options)
    plans = len(expected.trials)
    assert plans >= 6
    count = 0

    def evaluated(small):
        nonlocal count
        count += 1
        return measure(small)

    def stop(_search, _done, _total):
        nonlocal left
        left -= 1
        if left == 0:
            raise Stop

    for left in (3, 3, 100):
        with pytest.raises(Stop) if left < 100 else contextlib.nullcontext():
            found = fit_budget(
                model, 2100, evaluated, checkpoint=tmp_path / "a", progress=stop, **options
            )
    assert (found.plan, found.nbytes, found.value) == (
        expected.plan,
        expected.nbytes,
        expected.value,
    )
    assert list(found.trials) == list(expected.trials)
    # Each plan within the budget was evaluated once.
    assert count == sum(row.value is not None for row in expected.trials)
    # And all is known now.
    before = count
    fit_budget(model, 2100, evaluated, checkpoint=tmp_path / "a", **options)
    assert count == before


def test_a_checkpoint_of_another_search_or_a_damaged_one_is_an_error(model, tmp_path):
    fit_budget(model, 2500, measure, checkpoint=tmp_path, **GRID)
    for other in ({"seed": 1}, {"ks": (4, 8)}):
        with pytest.raises(
            ValueError, match=r"plan-0\.json is of another search, expected one with"
        ):
            fit_budget(model, 2500, measure, checkpoint=tmp_path, **(GRID | other))
    with pytest.raises(ValueError, match=r"plan-0\.json is of another search"):
        fit_budget(copy.deepcopy(model).apply(doubled), 2500, measure, checkpoint=tmp_path, **GRID)
    path = tmp_path / "plan-2.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"plan-2\.json cannot be read"):
        fit_budget(model, 2500, measure, checkpoint=tmp_path, **GRID)


def doubled(layer):
    """Double the weights of a linear layer."""
    if isinstance(layer, nn.Linear):
        layer.weight.data *= 2
