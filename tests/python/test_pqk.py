"""PQK: one set of tensors, a pruned and quantized student, and a teacher with all weights."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tersenet
from tersenet import Plan, Rule, compress, decompress, masks
from tersenet.pqk import PQK, softened_divergence
from tersenet.pruning import SoftPruning, unparametrize
from tersenet.quantization import prepare_qat
from tersenet.training import Callback, TensorBatches, fit

X = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
Y = X[:, :3].argmax(1)
PLAN = Plan.of(sparsity=0.8, quantizer="lsq", k=2**2)


def network(seed=0, norm=False):
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(16)] if norm else []
    return nn.Sequential(nn.Linear(12, 16), *middle, nn.ReLU(), nn.Linear(16, 3))


def head(model):
    return model[len(model) - 1]


def originals(model):
    return [layer.parametrizations.weight.original for layer in (model[0], head(model))]


def trained(model, pqk, epochs, optimizer=None, seed=0):
    fit(
        model,
        TensorBatches(X, Y, batch_size=16, seed=seed),  # 4 steps an epoch
        epochs=epochs,
        optimizer=optimizer or torch.optim.Adam(model.parameters(), lr=0.02),
        loss=F.cross_entropy,
        callbacks=[pqk],
        seed=seed,
    )
    return model


def distilling(norm=False, plan=PLAN, **options):
    """A model at the beginning of phase 2."""
    model = network(norm=norm)
    pqk = PQK(model, plan, steps=8, every=2, **options)
    trained(model, pqk, 2)
    model.zero_grad()
    assert pqk.is_distilling
    return model, pqk


def test_both_views_are_of_one_storage():
    model, pqk = distilling()
    names = [name for name, _ in model.named_parameters()]
    for layer, original in zip((model[0], head(model)), originals(model), strict=True):
        student = layer.weight.detach().clone()
        with pqk.teacher():
            assert layer.weight.data_ptr() == original.data_ptr()
            assert (layer.weight != 0).all() and len(layer.weight.unique()) > 4
        assert torch.equal(layer.weight, student) and len(student.unique()) <= 4
    assert [name for name, _ in model.named_parameters()] == names


def test_a_step_in_either_view_moves_the_other():
    model, pqk = distilling()
    before = model(X)
    sgd = torch.optim.SGD(originals(model), lr=100.0)
    with pqk.teacher():
        F.cross_entropy(model(X), Y).backward()
    sgd.step()
    assert not torch.equal(model(X), before)


def test_unimportant_weights_get_no_gradient_through_the_student_and_one_through_the_teacher():
    model, pqk = distilling()
    F.cross_entropy(model(X), Y).backward()
    for original, mask in zip(originals(model), masks(model).values(), strict=True):
        assert (original.grad[~mask] == 0).all() and (original.grad[mask] != 0).any()
    model.zero_grad()
    with pqk.teacher():
        F.cross_entropy(model(X), Y).backward()
    for original, mask in zip(originals(model), masks(model).values(), strict=True):
        assert (original.grad[~mask] != 0).any()
    assert all(p.grad is None for name, p in model.named_parameters() if name.endswith("step"))


def test_the_loss_is_that_of_two_plain_networks():
    model, pqk = distilling(temperature=3.0, weight=0.7)
    student, teacher = copy.deepcopy(model), network()
    unparametrize(student)
    teacher[0].weight.data, teacher[2].weight.data = (o.detach().clone() for o in originals(model))
    teacher[0].bias, teacher[2].bias = student[0].bias, student[2].bias
    a, b = student(X), teacher(X)
    p, q = (b.detach() / 3).softmax(1), (a / 3).softmax(1)
    divergence = 9 * (p * (p / q).log()).sum(1).mean()
    expected = F.cross_entropy(a, Y) + F.cross_entropy(b, Y) + 0.7 * divergence
    found = pqk.loss(model(X), X, Y)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    found.backward()
    assert torch.allclose(model[0].bias.grad, student[0].bias.grad, atol=1e-6)
    hidden = ~masks(model)["0"]
    # the divergence teaches the student alone
    assert torch.allclose(
        originals(model)[0].grad[hidden], teacher[0].weight.grad[hidden], atol=1e-6
    )


def test_a_divergence_of_a_thing_from_itself_is_none_and_otherwise_above():
    scores = torch.randn(5, 4, 3)
    assert softened_divergence(scores, scores, 2.0).abs() < 1e-6
    assert softened_divergence(scores, scores.flip(1), 2.0) > 0


def test_the_first_phase_is_soft_pruning_with_quantization_aware_training():
    model, twin = network(), network()
    trained(model, PQK(model, PLAN, steps=8, every=2), 2)
    prepare_qat(twin, PLAN)
    trained(twin, SoftPruning(twin, PLAN, steps=8, every=2, criterion="magnitude"), 2)
    for layer, other in ((model[0], twin[0]), (head(model), head(twin))):
        assert torch.equal(layer.weight, other.weight) and torch.equal(layer.bias, other.bias)
    assert all(torch.equal(masks(twin)[name], mask) for name, mask in masks(model).items())


@pytest.mark.parametrize("fade", [0.0, 0.3])
@pytest.mark.parametrize("initial", [0.0, 0.5])
@pytest.mark.parametrize("by_fit", [True, False])
def test_the_teacher_begins_with_weights_as_they_were_when_they_were_pruned(fade, initial, by_fit):
    model = network()
    kept = [layer.weight.detach().clone() for layer in (model[0], model[2])]
    pqk = PQK(model, PLAN, steps=12, every=3, fade=fade, initial=initial)
    adam = torch.optim.Adam(model.parameters(), lr=0.05)

    def remember(state=None):
        weights = zip(originals(model), masks(model).values(), strict=True)
        for number, (original, mask) in enumerate(weights):
            kept[number] = torch.where(mask, original.detach(), kept[number])

    if by_fit:
        watch = Callback()
        watch.step_end = remember  # before the masks are chosen
        fit(
            model,
            TensorBatches(X, Y, batch_size=16),
            epochs=3,
            optimizer=adam,
            loss=F.cross_entropy,
            callbacks=[watch, pqk],
        )
    else:
        for number in range(12):
            adam.zero_grad()
            pqk.loss(model(X), X, Y).backward()
            remember()
            pqk.step()
            assert pqk.is_distilling == (number == 11)
            if number < 11:
                adam.step()
    remember()  # what has returned with the last choice
    with pqk.teacher():
        for layer, weight in zip((model[0], model[2]), kept, strict=True):
            assert torch.equal(layer.weight, weight)
    assert (model[0].weight != 0).sum() == 38


def test_weights_return_in_the_first_phase_and_the_masks_stay_in_the_second():
    model = trained(network(), Callback(), 3)
    pqk = PQK(model, PLAN, steps=40, every=2)
    seen, returned, phases = [], [], []

    def watch(state):
        mask = masks(model)["0"].clone()
        returned.append(bool(seen and (mask & ~seen[-1]).any()))
        seen.append(mask)
        phases.append(pqk.is_distilling)

    adam = torch.optim.Adam(model.parameters(), lr=0.05)
    batches = TensorBatches(X, Y, batch_size=16)
    fit(
        model,
        batches,
        epochs=14,
        optimizer=adam,
        loss=F.cross_entropy,
        callbacks=[pqk, watch],
    )
    assert phases == [False] * 9 + [True] * 5
    assert any(returned[:10]) and not any(returned[10:])


@pytest.mark.parametrize(("quantizer", "k"), [("lsq", 4), ("lsq", 16), ("cws", 4)])
def test_the_student_is_valid_and_carries_nothing_of_the_teacher(tmp_path, quantizer, k):
    plan = Plan({"*": Rule(sparsity=0.8, quantizer=quantizer, k=k), "2": Rule(sparsity=0.5)})
    model, _ = distilling(plan=plan)
    most = k if quantizer == "lsq" else k + 1  # the values of a codebook, and zero
    for name, kept in (("0", 192 - 154), ("2", 24)):
        weight = model.get_submodule(name).weight
        assert (weight != 0).sum() == kept and len(weight.unique()) <= most
    other = copy.deepcopy(model)
    for original, mask in zip(originals(other), masks(other).values(), strict=True):
        original.data[~mask] = float("nan")
    files = []
    for number, one in enumerate((model, other)):
        small = compress(one)
        assert torch.equal(decompress(small)(X), model(X))
        tersenet.export(small.eval(), X, tmp_path / f"{number}.terse")
        tersenet.save(small, tmp_path / f"{number}-saved.terse")
        names = (f"{number}.terse", f"{number}-saved.terse")
        files.append([(tmp_path / name).read_bytes() for name in names])
    assert files[0] == files[1]
    found = tersenet.Network.load(tmp_path / "0.terse").run(X.numpy())
    np.testing.assert_allclose(found, model(X).detach().numpy(), atol=1e-5)
    unparametrize(other)
    assert torch.equal(other(X), model(X)) and len(other.state_dict()) == 4


def test_the_teacher_leaves_running_statistics_alone_and_modes_as_they_were():
    model, pqk = distilling(norm=True)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    with pqk.teacher():
        model(X)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    model(X)
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert model[1].num_batches_tracked == before["1.num_batches_tracked"] + 1


def test_an_error_in_the_teacher_leaves_the_student():
    model, pqk = distilling()
    before = model(X)
    with pytest.raises(RuntimeError), pqk.teacher():
        model(X[:, :3])
    assert torch.equal(model(X), before)


def test_a_cache_of_weights_around_the_teacher_is_an_error():
    _, pqk = distilling()
    with (
        torch.nn.utils.parametrize.cached(),
        pytest.raises(RuntimeError, match=r"within parametrize\.cached"),
        pqk.teacher(),
    ):
        pass


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.05, max_iter=3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_leaves_a_valid_student(name):
    model = network()
    pqk = PQK(model, PLAN, steps=8, every=2)
    trained(model, pqk, 5, OPTIMIZERS[name](model.parameters()))
    for layer, kept in ((model[0], 38), (model[2], 10)):
        assert (layer.weight != 0).sum() == kept and len(layer.weight.unique()) <= 4
        assert layer.weight.isfinite().all()


def by_hand(model, pqk, optimizer, steps, start=0):
    for step in range(start, start + steps):
        part = slice(step % 4 * 16, step % 4 * 16 + 16)
        optimizer.zero_grad()
        pqk.loss(model(X[part]), X[part], Y[part]).backward()
        pqk.step()
        optimizer.step()


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
@pytest.mark.parametrize("quantizer", ["lsq", "cws"])
@pytest.mark.parametrize("stop", [3, 5, 11])
def test_training_goes_on_from_states_to_the_same_bits(criterion, quantizer, stop):
    plan = Plan.of(sparsity=0.7, quantizer=quantizer, k=4)

    def start(seed):
        model = network(seed, norm=True)
        pqk = PQK(model, plan, steps=8, every=4, criterion=criterion)
        return model, pqk, torch.optim.Adam(model.parameters(), lr=0.02)

    model, pqk, adam = start(0)
    by_hand(model, pqk, adam, stop)
    states = copy.deepcopy([part.state_dict() for part in (model, pqk, adam)])
    again = start(1)
    for part, state in zip(again, states, strict=True):
        part.load_state_dict(state)
    by_hand(model, pqk, adam, 16 - stop, stop)
    by_hand(*again, 16 - stop, stop)
    found = again[0].state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    assert again[1].finish() == pqk.finish()
    assert torch.equal(again[0](X), model(X))


def test_a_state_of_another_model_is_an_error():
    _, pqk = distilling()
    state = pqk.state_dict()
    with pytest.raises(ValueError, match=r"layers \['5'\], expected"):
        pqk.load_state_dict({**state, "kept": {"5": 1}})
    with pytest.raises(ValueError, match=r"teacher's weights of layer '5' .* \[2\], expected none"):
        pqk.load_state_dict({**state, "teacher": {"5": torch.ones(2)}})
    with pytest.raises(ValueError, match=r"layer '0' .* \[2\], expected \[16, 12\]"):
        pqk.load_state_dict({**state, "teacher": {"0": torch.ones(2)}})
    pqk = PQK(network(), PLAN, steps=8)
    with pytest.raises(ValueError, match=r"teacher's weights of \[\], expected \['0', '2'\]"):
        pqk.load_state_dict({**pqk.state_dict(), "teacher": {}})


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    found = []
    for seed in (3, 3, 4):
        model = network()
        trained(model, PQK(model, PLAN, steps=8, every=2), 4, seed=seed)
        found.append(model(X))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_any_loss_and_outputs_train():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 1), nn.Linear(16, 1)

        def forward(self, x, scale):
            x = torch.relu(self.body(x)) * scale
            return {"a": self.a(x), "b": self.b(x)}

    def loss(outputs, targets):
        return F.mse_loss(outputs["a"], targets) + outputs["b"].square().mean()

    seen = []

    def divergence(student, teacher):
        seen.append(teacher["a"].requires_grad or not student["a"].requires_grad)
        return F.mse_loss(student["a"], teacher["a"])

    torch.manual_seed(0)
    model, target = Two(), X[:, :1]
    pqk = PQK(model, PLAN, steps=5, loss=loss, divergence=divergence)
    inputs = (X, torch.tensor(1.0))
    adam = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = fit(
        model, [(inputs, target)] * 30, epochs=3, optimizer=adam, loss=loss, callbacks=[pqk]
    )
    assert losses[-1] < losses[1] and len(seen) == 85 and not any(seen)


def test_layers_of_a_plan_may_be_only_pruned_or_only_quantized():
    plan = Plan({"0": Rule(sparsity=0.5), "2": Rule(quantizer="lsq", k=4)})
    model, pqk = distilling(plan=plan)
    assert (model[0].weight != 0).sum() == 96 and len(model[0].weight.unique()) == 97
    assert len(model[2].weight.unique()) <= 3
    with pqk.teacher():
        assert (model[0].weight != 0).all() and len(model[2].weight.unique()) == 48


@pytest.mark.parametrize(
    ("plan", "options", "message"),
    [
        (PLAN, {"steps": 0}, "steps is 0"),
        (PLAN, {"temperature": 0.0}, "temperature is 0.0, expected a number above 0"),
        (PLAN, {"weight": -1.0}, "weight is -1.0, expected a number of at least 0"),
        (Plan.of(sparsity=0.5), {}, "quantizes no layer"),
        (Plan.of(quantizer="lsq", k=4), {}, "pqk: the plan prunes no layer"),
        (Plan.of(threshold=0.5, quantizer="lsq", k=4), {}, "gets threshold 0.5"),
        (Plan.of(sparsity=0.5, quantizer="lsq", k=2), {}, "k is 2, expected at least 3"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(plan, options, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        PQK(model, plan, **{"steps": 10, **options})
    assert not masks(model)
