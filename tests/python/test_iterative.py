"""Iterative pruning: counts by hand, starting again to the bit, going on, and masks that move."""

import copy
import io
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import SmallNet, Tied
from torch import nn
from torch.nn import functional as F

import tersenet
from tersenet.plan import Plan, Rule
from tersenet.pruning import (
    copy_masks,
    masks,
    prune,
    prune_iteratively,
    random_masks,
    reinitialize,
    rewind,
    unparametrize,
)
from tersenet.quantization import quantize
from tersenet.training import TensorBatches, fit

torch.set_num_threads(1)
DRAWN = torch.Generator().manual_seed(7)
INPUTS = torch.randn(64, 1, 6, 6, generator=DRAWN)
CLASSES = (INPUTS.mean((1, 2, 3)) > 0).long()
PLAN = Plan({"*": Rule(sparsity=0.9), "head": Rule(skip=True)}, pruning_scope="global")


class Net(nn.Module):
    """Two convolutions, a norm and a head: 36 + 288 weights to prune, 16 in the head."""

    def __init__(self, seed=0, classes=2):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 8, 3)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        return self.head(F.relu(self.second(x)).mean((2, 3)))


def train(model, stage):
    fit(
        model,
        TensorBatches(INPUTS, CLASSES, batch_size=32, seed=stage.seed),
        epochs=2,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1),
        loss=F.cross_entropy,
        seed=stage.seed,
    )


def nothing(model, stage):
    pass


def state(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(model, other):
    expected = other.state_dict()
    assert list(model.state_dict()) == list(expected)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_each_round_leaves_what_a_hand_computes():
    """1,000 weights at 20 % a round: 800, 640, 512, 409.6, 327.68, 262.144, 209.7, then the plan's."""
    model = nn.Linear(20, 50)
    report = prune_iteratively(model, Plan.of(sparsity=0.8), train=nothing)
    counts = [step.pruned.layers[0].nnz for step in report.rounds]
    assert counts == [800, 640, 512, 410, 328, 262, 210, 200]
    again = prune_iteratively(model, Plan.of(sparsity=0.95), train=nothing, fraction=0.5)
    assert [step.pruned.layers[0].nnz for step in again.rounds] == [100, 50]
    assert int(masks(model)[""].sum()) == 50


def test_layers_ranked_together_meet_the_counts_together_and_others_are_spared():
    model = Net()
    model.first.weight.data *= 100
    spared = {
        name: tensor
        for name, tensor in state(model).items()
        if name not in ("first.weight", "second.weight")
    }
    report = prune_iteratively(model, PLAN, train=nothing)
    totals = [sum(layer.nnz for layer in step.pruned.layers) for step in report.rounds]
    expected = [round(324 * 0.8**r) for r in range(1, 11)]  # 324 * 0.8^11 is under 32
    assert totals == [*expected, 324 - round(0.9 * 324)]
    assert totals[-1] == 32
    assert set(masks(model)) == {"first", "second"}
    assert masks(model)["first"].sum() == 32  # the largest by far
    for name, tensor in spared.items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_layers_of_different_sparsities_each_end_at_their_own():
    model = Net()
    plan = Plan({"first": Rule(sparsity=0.5), "second": Rule(sparsity=0.9)}, pruning_scope="global")
    report = prune_iteratively(model, plan, train=nothing)
    first = [step.pruned.layers[0].nnz for step in report.rounds]
    second = [step.pruned.layers[1].nnz for step in report.rounds]
    assert first[:4] == [29, 23, 18, 18] and set(first[4:]) == {18}  # 28.8, 23.04, 18.43, 18
    assert second == [round(288 * 0.8**r) for r in range(1, 11)] + [29]


@given(
    weights=st.lists(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0]) | st.floats(-9, 9, width=32),
        min_size=1,
        max_size=60,
    ),
    fraction=st.floats(0.05, 0.95),
    sparsity=st.floats(0.1, 0.98),
)
@settings(max_examples=60)
def test_without_training_rounds_keep_what_sorting_keeps(weights, fraction, sparsity):
    kept = len(weights) - round(sparsity * len(weights))
    model = nn.Linear(len(weights), 1)
    model.weight.data = torch.tensor([weights], dtype=torch.float32)
    values = np.abs(np.float32(weights))
    if kept == len(weights):
        with pytest.raises(ValueError, match="no layer has more weights left"):
            prune_iteratively(model, Plan.of(sparsity=sparsity), train=nothing, fraction=fraction)
        return
    report = prune_iteratively(model, Plan.of(sparsity=sparsity), train=nothing, fraction=fraction)
    counts = [step.pruned.layers[0].nnz for step in report.rounds]
    assert counts[-1] == kept and counts == sorted(counts, reverse=True)
    order = sorted(range(len(weights)), key=lambda i: (-values[i], i))
    assert set(np.flatnonzero(masks(model)[""].numpy()[0])) == set(order[:kept])


def test_every_round_starts_at_the_bits_of_the_early_state_within_its_mask():
    model = Net()
    early = state(model)
    train(model, type("Stage", (), {"seed": 3}))
    starts = []

    def looking(model, stage):
        starts.append((stage, copy.deepcopy(model)))
        train(model, stage)

    report = prune_iteratively(model, PLAN, train=looking, rewind=early)
    assert len(starts) == len(report.rounds) == 11
    assert [stage.round for stage, _ in starts] == list(range(11))
    assert len({stage.seed for stage, _ in starts}) == 11
    for (_, start), step in zip(starts, report.rounds, strict=True):
        for pruned in step.pruned.layers:
            mask = masks(start)[pruned.name]
            weight = start.get_submodule(pruned.name).weight
            saved = early[f"{pruned.name}.weight"]
            assert int(mask.sum()) == pruned.nnz
            assert torch.equal(weight.view(torch.int32)[mask], saved.view(torch.int32)[mask])
            assert (weight.view(torch.int32)[~mask] == 0).all()
        for name in ("norm.running_mean", "norm.weight", "head.weight", "head.bias", "first.bias"):
            assert torch.equal(start.state_dict()[name], early[name]), name


def test_magnitudes_are_those_after_training_and_masks_only_shrink():
    model = Net()
    early = state(model)
    ends = []

    def looking(model, stage):
        train(model, stage)
        ends.append(copy.deepcopy(model))

    prune_iteratively(model, PLAN, train=looking, rewind=early)
    for before, after in itertools.pairwise(ends):
        values = torch.cat([before.first.weight.flatten(), before.second.weight.flatten()]).abs()
        kept = torch.cat([masks(after)[name].flatten() for name in ("first", "second")])
        earlier = torch.cat([masks(before)[name].flatten() for name in ("first", "second")])
        assert not (kept & ~earlier).any()
        assert values[kept].min() >= values[~kept].max()


def test_fresh_weights_are_drawn_anew_in_each_round_under_the_mask():
    model = Net()
    starts = []

    def draw(plain):
        assert not masks(plain)
        for parameter in plain.parameters():
            nn.init.normal_(parameter)

    def looking(model, stage):
        starts.append(copy.deepcopy(model))
        torch.manual_seed(stage.seed)
        expected = copy.deepcopy(model)
        unparametrize(expected)
        draw(expected)
        for name, mask in masks(model).items():
            found, drawn = (m.get_submodule(name).weight for m in (model, expected))
            assert torch.equal(found, torch.where(mask, drawn, 0))
        assert torch.equal(model.head.weight, expected.head.weight)

    torch.manual_seed(11)
    prune_iteratively(model, PLAN, train=looking, reinitialize=draw)
    kept = masks(starts[1])["second"]
    assert not (starts[0].second.weight[kept] == starts[1].second.weight[kept]).any()


def test_drawing_anew_is_what_torch_draws_and_resets_norms():
    torch.manual_seed(4)
    expected = Net(seed=9)
    torch.manual_seed(9)  # as Net(seed=9) draws: each module in its order
    model = Net(seed=1)
    model.norm.running_mean += 1
    prune(model, PLAN)
    before = {name: mask.clone() for name, mask in masks(model).items()}
    parameters = [id(parameter) for parameter in model.parameters()]
    reinitialize(model, seed=9)
    assert [id(parameter) for parameter in model.parameters()] == parameters
    for name, mask in before.items():
        assert torch.equal(masks(model)[name], mask)
        wanted = torch.where(mask, expected.get_submodule(name).weight, 0)
        assert torch.equal(model.get_submodule(name).weight, wanted)
    assert torch.equal(model.head.weight, expected.head.weight)
    assert (model.norm.running_mean == 0).all()

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(ValueError, match=r"module 'own' \(Scale\) has parameters and no"):
        reinitialize(nn.ModuleDict({"own": Scale()}))


def test_rewinding_takes_states_of_before_and_after_pruning_and_tied_weights():
    model = SmallNet()
    early = state(model)
    plan = Plan({"*": Rule(sparsity=0.5), "embedding": Rule(sparsity=0.5)})
    prune(model, plan)
    later = state(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    for saved in (early, later):
        changed = copy.deepcopy(model)
        rewind(changed, saved)
        assert torch.equal(changed.head.weight, changed.embedding.weight)
        for name, mask in masks(changed).items():
            wanted = torch.where(mask, early[f"{name}.weight"], 0)
            assert torch.equal(changed.get_submodule(name).weight, wanted)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.pop("head.bias"), ValueError, "the state has no 'head.bias'"),
        (lambda s: s.update(other=torch.ones(1)), ValueError, "the model has no 'other'"),
        (
            lambda s: s.update({"first.weight": torch.ones(4, 1, 3, 2)}),
            ValueError,
            r"'first.weight' of the state is torch.float32 \[4, 1, 3, 2\], expected .*3, 3\]",
        ),
        (lambda s: s.update({"head.bias": torch.ones(2).double()}), ValueError, "float64"),
        (lambda s: s.update({"head.bias": 3}), TypeError, "'head.bias' is int"),
    ],
)
def test_a_state_that_does_not_fit_is_an_error_and_changes_nothing(change, error, message):
    model = Net()
    prune(model, PLAN)
    before, wrong = copy.deepcopy(model), state(Net(seed=5))
    change(wrong)
    with pytest.raises(error, match=message):
        rewind(model, wrong)
    with pytest.raises(error, match=message):
        prune_iteratively(Net(), PLAN, train=nothing, rewind=wrong)
    same(model, before)


@pytest.mark.parametrize("stop", [1, 4, 10])
@pytest.mark.parametrize("start", ["rewind", "reinitialize", "go on"])
def test_a_run_that_was_interrupted_ends_with_the_same_bits(tmp_path, stop, start):
    def options():
        if start == "rewind":
            return {"rewind": state(Net(seed=8)), "validate": lambda m: m.head.bias[0].item()}
        drawn = {"reinitialize": lambda m: [nn.init.normal_(p) for p in m.parameters()]}
        return drawn if start == "reinitialize" else {}

    expected, model = Net(), Net()
    whole = prune_iteratively(expected, PLAN, train=train, **options())
    calls, told = 0, []

    def interrupted(model, stage):
        nonlocal calls
        calls += 1
        if calls == stop + 1:
            raise KeyboardInterrupt
        train(model, stage)

    before = copy.deepcopy(model)
    parameters = [id(parameter) for parameter in model.parameters()]
    with pytest.raises(KeyboardInterrupt):
        prune_iteratively(model, PLAN, train=interrupted, checkpoint=tmp_path, **options())
    same(model, before)
    calls = -100
    again = prune_iteratively(
        model,
        PLAN,
        train=interrupted,
        checkpoint=tmp_path,
        progress=lambda *step: told.append(step[1:]),
        **options(),
    )
    assert calls == -100 + 11 - stop
    assert again == whole
    assert told == [(number, 11) for number in range(1, 12)]
    assert sorted(map(id, model.parameters())) == sorted(parameters)
    same(model, expected)


def test_a_checkpoint_of_another_run_is_an_error(tmp_path):
    early = state(Net(seed=8))
    prune_iteratively(Net(), PLAN, train=nothing, rewind=early, checkpoint=tmp_path)
    early["head.bias"] += 1
    for changed in ({"rewind": early}, {}, {"rewind": state(Net(seed=8)), "fraction": 0.3}):
        with pytest.raises(ValueError, match=r"iterative pruning: checkpoint .* is of another run"):
            prune_iteratively(Net(), PLAN, train=nothing, checkpoint=tmp_path, **changed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, r"fraction is 0.0, expected a number in \(0, 1\)"),
        ({"fraction": math.nan}, "fraction is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"rewind": {}, "reinitialize": print}, "expected one of them at most"),
        ({"validate": lambda model: math.inf}, "validate gave inf"),
    ],
)
def test_bad_options_are_errors_that_name_them(options, message):
    model = Net()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=f"iterative pruning: .*{message}"):
        prune_iteratively(model, PLAN, train=nothing, **options)
    same(model, before)


def test_plans_without_a_sparsity_or_anything_to_do_are_errors():
    with pytest.raises(ValueError, match="iterative pruning: layer 'first' gets threshold"):
        prune_iteratively(Net(), Plan.of(threshold=0.1), train=nothing)
    model = Net()
    prune(model, PLAN)
    with pytest.raises(ValueError, match="no layer has more weights left than the plan keeps"):
        prune_iteratively(model, PLAN, train=nothing)


def test_moved_masks_hold_through_any_optimizer_and_are_saved_with_the_model():
    source, model = Net(), Net(seed=1, classes=5)
    prune_iteratively(source, PLAN, train=train, rewind=state(source))
    weights = state(model)
    report = copy_masks(source, model)
    assert [layer.name for layer in report.layers] == ["first", "second"]
    assert sum(layer.nnz for layer in report.layers) == 32
    for name, mask in masks(source).items():
        moved = model.get_submodule(name).weight
        assert torch.equal(moved, torch.where(mask, weights[f"{name}.weight"], 0))
    targets = torch.arange(64) % 5
    for make in (
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
        lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    ):
        fit(
            model,
            [(INPUTS, targets)],
            epochs=3,
            optimizer=make(model.parameters()),
            loss=F.cross_entropy,
        )
    for name, mask in masks(source).items():
        weight = model.get_submodule(name).weight
        assert (weight.view(torch.int32)[~mask] == 0).all()
        assert not torch.equal(weight[mask], weights[f"{name}.weight"][mask])
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    again = Net(classes=5)
    copy_masks(random_masks(masks(source), seed=0), again)
    again.load_state_dict(torch.load(stream, weights_only=True))
    same(again, model)
    small = tersenet.decompress(tersenet.compress(model.eval()))
    assert torch.equal(small.second.weight, model.second.weight)


def test_a_copied_mask_replaces_one_and_is_no_ones_but_the_models():
    source, model = Net(), Net(seed=1)
    prune(source, Plan({"second": Rule(sparsity=0.5)}))
    prune(model, Plan({"first": Rule(sparsity=0.5), "second": Rule(sparsity=0.9)}))
    kept = masks(model)["first"].clone()
    copy_masks(source, model)
    assert torch.equal(masks(model)["second"], masks(source)["second"])
    assert torch.equal(masks(model)["first"], kept)
    before = masks(model)["second"].clone()
    prune(source, Plan({"second": Rule(sparsity=0.9)}))
    masks(source)["second"].zero_()
    assert torch.equal(masks(model)["second"], before)


def mask_of(shape, dtype=torch.bool):
    return torch.ones(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "the source has no masks"),
        ({"third": mask_of(3)}, "the model has no layer 'third'"),
        ({"first": mask_of((4, 1, 3, 2))}, r"mask of layer 'first' .*3, 2\], expected .*3, 3\]"),
        ({"first": mask_of((4, 1, 3, 3), torch.float32)}, "torch.float32"),
        ({"norm": mask_of(4)}, "'norm'"),
    ],
)
def test_masks_that_do_not_fit_are_errors_and_change_nothing(found, message):
    model = Net()
    before = copy.deepcopy(model)
    if found:
        found = {"second": mask_of((8, 4, 3, 3)), **found}
    with pytest.raises(ValueError, match=message):
        copy_masks(found, model)
    same(model, before)
    assert not masks(model)


def test_masks_of_tied_layers_are_one_and_quantized_layers_refuse():
    first, second = mask_of((6, 4)), mask_of((6, 4))
    second[0] = False
    with pytest.raises(ValueError, match="'emb' and 'head' share one weight, found two masks"):
        copy_masks({"emb": first, "head": second}, Tied())
    model = Tied()
    prune(model, Plan({"emb": Rule(sparsity=0.5)}))
    drawn = random_masks(masks(model), seed=3)
    other = Tied()
    copy_masks(drawn, other)
    assert other.head.weight.count_nonzero() == 12
    assert torch.equal(other.head.weight, other.emb.weight)
    net = Net()
    quantize(net, Plan({"first": Rule(quantizer="cws", k=4)}))
    with pytest.raises(ValueError, match="layer 'first' is quantized"):
        copy_masks({"first": mask_of((4, 1, 3, 3))}, net)


@given(kept=st.lists(st.booleans(), min_size=1, max_size=40), seed=st.integers(0, 2**31))
@settings(max_examples=40)
def test_random_masks_keep_as_many_and_one_seed_draws_one(kept, seed):
    given_masks = {"a": torch.tensor([kept]), "b": torch.tensor(kept)[:, None]}
    found = random_masks(given_masks, seed=seed)
    for name, mask in given_masks.items():
        assert found[name].dtype == torch.bool and found[name].shape == mask.shape
        assert int(found[name].sum()) == sum(kept)
        assert torch.equal(found[name], random_masks(given_masks, seed=seed)[name])


def test_random_masks_keep_every_place_alike():
    """Each of 20 places is kept in about 5 of 20 draws: 400 draws, 100 each, deviation 8.7."""
    mask = {"a": torch.arange(20) < 5}
    hits = sum(random_masks(mask, seed=seed)["a"].int() for seed in range(400))
    assert hits.sum() == 2000
    assert ((hits - 100).abs() < 5 * 8.7).all()
