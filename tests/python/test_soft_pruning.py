"""Soft masks: what is pruned keeps learning and may return, until the masks are final."""

import copy

import numpy as np
import pytest
import torch
from models import copies
from torch import nn
from torch.nn import functional as F

from tersenet import Plan, Rule, compress, decompress, masks, prune, quantize, quantized
from tersenet.pipeline import prune_and_quantize
from tersenet.pruning import SoftPruning
from tersenet.training import TensorBatches, fit

X = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
Y = (X[:, :3].argmax(1)).long()


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))


def trained(model, epochs, callbacks=(), seed=0, lr=0.02):
    adam = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=0.01)
    batches = TensorBatches(X, Y, batch_size=16, seed=seed)  # 4 steps an epoch
    fit(
        model,
        batches,
        epochs=epochs,
        optimizer=adam,
        loss=F.cross_entropy,
        callbacks=list(callbacks),
        seed=seed,
    )
    return model


def backward(model):
    model.zero_grad()
    F.cross_entropy(model(X), Y).backward()


def test_the_gradient_reaches_what_a_soft_mask_hides():
    model = network()
    SoftPruning(model, Plan.of(sparsity=0.8), steps=10, initial=0.8)
    backward(model)
    for index in (0, 2):
        kept = masks(model)[str(index)]
        original = model[index].parametrizations.weight.original
        assert (model[index].weight[~kept].view(torch.int32) == 0).all()
        assert torch.equal(model[index].weight[kept], original[kept])
        # the gradient of a plain layer with the same, masked weights
        plain = copy.deepcopy(model)
        plain[index] = nn.Linear(model[index].in_features, model[index].out_features)
        plain[index].weight = nn.Parameter(model[index].weight.detach().clone())
        plain[index].bias = model[index].bias
        plain.zero_grad()
        F.cross_entropy(plain(X), Y).backward()
        assert torch.equal(original.grad, plain[index].weight.grad)
        assert (original.grad[~kept] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_pruned_fades_until_the_masks_are_final(dtype):
    model = network().to(dtype)
    plan = Plan.of(sparsity=0.8)
    soft = SoftPruning(model, plan, steps=4, every=9, initial=0.8, criterion="magnitude", fade=0.25)
    kept = masks(model)
    originals = [model[index].parametrizations.weight.original for index in (0, 2)]
    before = [original.detach().clone() for original in originals]
    for step in range(1, 7):
        soft.step()
        for index, original, first in zip((0, 2), originals, before, strict=True):
            mask = kept[str(index)]
            assert torch.equal(original[mask], first[mask])
            faded = first[~mask] * 0.75 ** min(step, 4)
            torch.testing.assert_close(original[~mask], faded, rtol=0.02, atol=0)


def test_what_fades_does_not_wander():
    # A gradient that nothing answers moves a weight without end, but for the part that fades.
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[5.0, 0.1]])
    soft = SoftPruning(model, Plan.of(sparsity=0.5), steps=1000, every=1000, initial=0.5, fade=0.1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(200):
        sgd.zero_grad()
        (-model(torch.tensor([0.0, 1.0]))).backward()
        soft.step()
        sgd.step()
    original = model.parametrizations.weight.original[0].detach()
    assert original[0] == 5.0
    assert original[1] == pytest.approx(0.01 / 0.1, rel=1e-3)  # where step and fading are even


def test_a_soft_mask_hides_a_nan():
    model = nn.Linear(4, 1)
    SoftPruning(model, Plan.of(sparsity=0.5), steps=10, initial=0.5)
    with torch.no_grad():
        model.parametrizations.weight.original[~masks(model)[""]] = float("nan")
    assert (model.weight == 0).sum() == 2


def test_the_schedule_is_cubic_and_ends_exactly():
    model = network()
    soft = SoftPruning(model, Plan.of(sparsity=0.9), steps=20, every=5, initial=0.3)
    sizes = []
    for step in range(1, 26):
        backward(model)
        soft.step()
        sizes.append(int(masks(model)["0"].sum()))
        assert soft.is_soft == (step < 20)
    expected = [
        192 - round(192 * (0.9 - 0.6 * (1 - min(step // 5 * 5, 20) / 20) ** 3))
        for step in range(1, 26)
    ]
    assert sizes == expected and sizes[-1] == 192 - round(0.9 * 192)


def test_a_pruned_weight_returns_when_its_score_is_among_the_largest():
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    soft = SoftPruning(model, Plan.of(sparsity=0.5), steps=4, every=2, initial=0.5)
    assert masks(model)[""].tolist() == [[True, True, False, False]]
    # |w * g| summed over two steps: 4 + 4, 3 + 0, 2 * (1 + 4), 1 * (1 + 1)
    for gradient in ([1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 4.0, -1.0]):
        model.zero_grad()
        (model(torch.tensor(gradient))).sum().backward()
        soft.step()
    assert masks(model)[""].tolist() == [[True, False, True, False]]
    for _ in range(2):
        model.zero_grad()
        (model(torch.tensor([0.0, 1.0, 0.0, 1.0]))).sum().backward()
        soft.step()
    assert masks(model)[""].tolist() == [[False, True, False, True]] and not soft.is_soft


@pytest.mark.parametrize("criterion", ["taylor", "magnitude"])
def test_weights_return_in_training_and_the_final_mask_is_exact_and_stays(criterion):
    model = trained(network(), 2)
    plan = Plan({"*": Rule(sparsity=0.8), "2": Rule(sparsity=0.5)})
    soft = SoftPruning(model, plan, steps=40, every=4, criterion=criterion)
    seen, returned = [], []

    def watch(state):
        present = masks(model)["0"].clone()
        returned.append(bool(seen and (present & ~seen[-1]).any()))
        seen.append(present)

    trained(model, 10, [soft, watch], lr=0.05)
    assert any(returned) and not soft.is_soft
    final = {name: mask.clone() for name, mask in masks(model).items()}
    assert [int(mask.sum()) for mask in final.values()] == [192 - round(0.8 * 192), 24]
    trained(model, 3)
    for name, mask in masks(model).items():
        weight = model.get_submodule(name).weight
        assert torch.equal(mask, final[name])
        assert (weight[~mask].view(torch.int32) == 0).all() and (weight[mask] != 0).all()
    hidden = model[0].parametrizations.weight.original
    backward(model)
    assert (hidden.grad[~final["0"]] == 0).all()


def test_the_callback_and_a_loop_by_hand_are_the_same():
    model, twin = network(), network()
    soft = SoftPruning(model, Plan.of(sparsity=0.8), steps=8, every=2)
    trained(model, 3, [soft], seed=3)
    by_hand = SoftPruning(twin, Plan.of(sparsity=0.8), steps=8, every=2)
    adam = torch.optim.Adam(twin.parameters(), lr=0.02, weight_decay=0.01)
    batches = TensorBatches(X, Y, batch_size=16, seed=3)
    for _ in range(3):
        for x, y in batches:
            adam.zero_grad()
            F.cross_entropy(twin(x), y).backward()
            by_hand.step()
            adam.step()
    assert all(torch.equal(masks(twin)[name], mask) for name, mask in masks(model).items())
    assert by_hand.finish() == soft.finish()


def test_two_runs_find_the_same():
    found = []
    for _ in range(2):
        model = network()
        soft = SoftPruning(model, Plan.of(sparsity=0.7, pruning_scope="global"), steps=12, every=3)
        trained(model, 3, [soft])
        found.append((soft.finish(), {k: v.clone() for k, v in model.state_dict().items()}))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(value, found[1][1][key]) for key, value in found[0][1].items())
    kept = sum(int(mask.sum()) for mask in masks(model).values())
    assert kept == 240 - round(0.7 * 240)


@pytest.mark.parametrize("criterion", ["taylor", "magnitude"])
@pytest.mark.parametrize("stop", [0, 5, 6, 7, 20, 23])  # masks are chosen every 6, final after 20
def test_an_interrupted_run_goes_on_to_the_same_bits(criterion, stop, tmp_path):
    plan, path = Plan({"*": Rule(sparsity=0.8), "2": Rule(sparsity=0.5)}), tmp_path / "run.pt"

    def run(model, seen, start=None, stop=None):
        """Train by hand; at `stop` leave the states in a file, from `start` go on from them."""
        adam = torch.optim.Adam(model.parameters(), lr=0.05)
        soft = SoftPruning(model, plan, steps=20, every=6, criterion=criterion)
        adam.zero_grad(set_to_none=True)
        parts = {"model": model, "optimizer": adam, "soft": soft}
        if start is not None:
            states = torch.load(path, weights_only=True)
            for key, part in parts.items():
                part.load_state_dict(states[key])
        for step in range(start or 0, 26):
            if step == stop:
                torch.save({key: part.state_dict() for key, part in parts.items()}, path)
                return None
            at = step % 4 * 16
            adam.zero_grad()
            F.cross_entropy(model(X[at : at + 16]), Y[at : at + 16]).backward()
            soft.step()
            adam.step()
            seen.append({name: mask.clone() for name, mask in masks(model).items()})
        return soft

    whole, resumed = network(), network(1)
    expected, found = [], []
    last = run(whole, expected)
    run(network(), found, stop=stop)
    again = run(resumed, found, start=stop)
    assert len(found) == 26 and again.finish() == last.finish() and not again.is_soft
    for before, after in zip(expected, found, strict=True):
        assert all(torch.equal(after[name], mask) for name, mask in before.items())
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key].view(torch.uint8), value.view(torch.uint8))
    # what is final is hard in the resumed run too
    backward(resumed)
    mask = masks(resumed)["0"]
    assert (resumed[0].parametrizations.weight.original.grad[~mask] == 0).all()


def test_fit_goes_on_from_the_state_of_an_epoch():
    states, plan = [], Plan.of(sparsity=0.8)

    def pieces(seed):
        model = network(seed)
        adam = torch.optim.Adam(model.parameters(), lr=0.02)
        return model, adam, SoftPruning(model, plan, steps=10, every=3)

    def go(parts, epochs, *callbacks):
        model, adam, soft = parts
        batches = TensorBatches(X, Y, batch_size=16, shuffle=False)
        joined = [soft, *callbacks]
        fit(
            model,
            batches,
            epochs=epochs,
            optimizer=adam,
            loss=F.cross_entropy,
            callbacks=joined,
        )

    def keep_states(state):
        states.append(copy.deepcopy([part.state_dict() for part in whole]))

    whole, resumed = pieces(0), pieces(1)
    go(whole, 4, keep_states)
    for part, state in zip(resumed, states[1], strict=True):
        part.load_state_dict(state)
    go(resumed, 2)
    assert resumed[2].finish() == whole[2].finish()
    for key, value in whole[0].state_dict().items():
        assert torch.equal(resumed[0].state_dict()[key], value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept": {"0": 5}}, r"state is of layers \['0'\], expected \['0', '2'\]"),
        ({"scores": {"0": torch.ones(3)}}, r"scores of layer '0' of the state are \[3\]"),
        ({"scores": {"1": torch.ones(3)}}, "scores of layer '1'"),
        ({"taken": 11}, "taken 11 steps, expected at most 10"),
    ],
)
def test_the_state_of_another_run_is_refused_and_changes_nothing(change, message):
    model = network()
    soft = SoftPruning(model, Plan.of(sparsity=0.5), steps=10)
    backward(model)
    soft.step()
    before = soft.state_dict()
    with pytest.raises(ValueError, match=message):
        soft.load_state_dict({**before, **change})
    after = soft.state_dict()
    assert {key: after[key] for key in ("taken", "is_soft", "is_used", "kept")} == {
        "taken": 1,
        "is_soft": True,
        "is_used": False,
        "kept": {"0": 192, "2": 48},
    }
    assert all(torch.equal(after["scores"][name], s) for name, s in before["scores"].items())


def test_filters_are_soft_and_hard_as_a_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    soft = SoftPruning(model, Plan.of("conv:*", sparsity=0.5), steps=4, every=2, by="filter")
    x = torch.randn(16, 1, 4, 4)
    for _ in range(4):
        model.zero_grad()
        F.cross_entropy(model(x), torch.arange(16) % 3).backward()
        soft.step()
    mask = masks(model)["0"].flatten(1)
    assert mask.all(1).sum() == 4 and (mask.all(1) | ~mask.any(1)).all()
    assert soft.finish().layers[0].nnz == 36


def test_epochs_in_calls_of_their_own_are_those_of_one_call():
    plan, whole, parts = Plan.of(sparsity=0.9), network(), network()
    batches = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16)]

    def go(model, soft, adam, epochs):
        of = {"optimizer": adam, "loss": F.cross_entropy, "callbacks": [soft]}
        fit(model, batches, epochs=epochs, **of)

    runs = [
        (model, SoftPruning(model, plan, steps=10, every=3), torch.optim.Adam(model.parameters()))
        for model in (whole, parts)
    ]
    go(*runs[0], 4)
    with pytest.warns(UserWarning, match="fit ended after 4 of 10 steps, so the masks are soft"):
        go(*runs[1], 1)
    for taken in (8, 10, 10):  # and no second warning
        go(*runs[1], 1)
        assert runs[1][1].state_dict()["taken"] == taken
        assert runs[1][1].is_soft == (taken < 10)
    assert not runs[1][1].is_soft and masks(parts)["2"].sum() == 48 - round(0.9 * 48)
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value)


def test_soft_masks_are_copied_and_pickled_and_compressed_as_they_are():
    model = network()
    SoftPruning(model, Plan.of(sparsity=0.9), steps=10, initial=0.9)
    for twin in copies(model):
        assert torch.equal(twin(X), model(X))
        backward(twin)
        assert (twin[0].parametrizations.weight.original.grad[~masks(twin)["0"]] != 0).any()
    assert torch.equal(decompress(compress(model))(X), model(X))


def test_two_stages_end_pruned_quantized_and_trained():
    model, stages = trained(network(), 10), []
    plan = Plan.of(sparsity=0.7, quantizer="cws", k=6)

    def train(model, callbacks, stage):
        before = F.cross_entropy(model(X), Y).item()
        trained(model, 6, callbacks, lr=0.01)
        stages.append((stage, before, F.cross_entropy(model(X), Y).item()))

    report = prune_and_quantize(model, plan, train, steps=20, every=4)
    assert [stage for stage, _, _ in stages] == ["pruning", "quantization"]
    assert stages[1][2] < stages[1][1]
    assert [layer.nnz for layer in report.pruning.layers] == [192 - round(0.7 * 192), 48 - 34]
    for layer, shared in zip(report.pruning.layers, report.quantization.layers, strict=True):
        assert layer.nnz == shared.nnz + shared.dropped and shared.k <= 6
        weight = model.get_submodule(layer.name).weight.detach()
        assert len(np.unique(weight[weight != 0])) <= 6
        assert quantized(model)[layer.name].nnz == shared.nnz
    small = compress(model)
    assert torch.equal(decompress(small)(X), model.eval()(X))


def test_two_stages_go_on_after_the_first_where_it_is_done(tmp_path):
    plan = Plan.of(sparsity=0.7, quantizer="cws", k=6)
    stages = []

    def train(model, callbacks, stage):
        stages.append(stage)
        if stages == ["pruning", "quantization"]:
            raise KeyboardInterrupt
        trained(model, 6, callbacks, lr=0.01)

    def run(checkpoint=None, **options):
        model = network()
        of = {"steps": 20, "every": 4} | options
        return model, prune_and_quantize(model, plan, train, checkpoint=checkpoint, **of)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    model, report = run(tmp_path)
    assert stages == ["pruning", "quantization", "quantization"]
    stages.append("")  # from now on nothing interrupts
    expected, same = run()
    assert report == same
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    with pytest.raises(ValueError, match=r"pipeline: checkpoint .* is of another run"):
        run(tmp_path, steps=21)


@pytest.mark.parametrize(
    ("plan", "options", "message"),
    [
        (Plan.of(sparsity=0.5), {"steps": 0}, "steps is 0, expected at least 1"),
        (Plan.of(sparsity=0.5), {"every": 0}, "every is 0"),
        (Plan.of(sparsity=0.5), {"criterion": "luck"}, "expected one of taylor, magnitude"),
        (Plan.of(sparsity=0.5), {"by": "row"}, "expected one of weight, kernel, filter"),
        (Plan.of(sparsity=0.5), {"fade": 1.0}, r"fade is 1.0, expected a number in \[0, 1\)"),
        (Plan.of(sparsity=0.5), {"fade": float("nan")}, "fade is nan"),
        (Plan.of(sparsity=0.5), {"initial": 0.6}, "initial is 0.6, the sparsity of layer '0' 0.5"),
        (Plan.of(threshold=0.5), {}, "layer '0' gets threshold 0.5, expected a sparsity"),
        (Plan.of(quantizer="uq", k=2), {}, "prunes no layer"),
        (Plan.of("1", sparsity=0.5), {}, "pattern '1' matches no layer"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(plan, options, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        SoftPruning(model, plan, **{"steps": 10, **options})
    assert not masks(model)


def test_what_cannot_be_pruned_softly_is_an_error():
    model = network()
    soft = SoftPruning(model, Plan.of(sparsity=0.5), steps=10)
    with pytest.raises(ValueError, match="layer '0' has had no gradient"):
        soft.finish()
    with pytest.raises(ValueError, match="quantizes no layer"):
        prune_and_quantize(network(), Plan.of(sparsity=0.5), lambda *_: None, steps=1)
    shared = network()
    prune(shared, Plan.of(sparsity=0.5))
    quantize(shared, Plan.of(quantizer="cws", k=2))
    with pytest.raises(ValueError, match="layer '0' is quantized"):
        SoftPruning(shared, Plan.of(sparsity=0.5), steps=10)
