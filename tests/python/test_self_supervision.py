"""Pretext tasks against their formulas in NumPy, and probes against solutions found otherwise."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tersenet.plan import Plan
from tersenet.pruning import masks, prune
from tersenet.self_supervision import (
    InstanceMemory,
    RotatedBatches,
    contrastive_loss,
    features,
    linear_probe,
    rotated,
    with_head,
)
from tersenet.training import TensorBatches, accuracy, evaluate, fit

torch.set_num_threads(1)
SMALL = np.random.default_rng(5)


def test_all_turns_are_those_of_numpy_with_their_classes():
    images = torch.arange(2 * 3 * 5 * 5).reshape(2, 3, 5, 5)
    found, classes = rotated(images)
    assert classes.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for number, k in enumerate(classes.tolist()):
        expected = np.rot90(images[number % 2].numpy(), k, axes=(-2, -1))
        assert np.array_equal(found[number].numpy(), expected)


@given(turns=st.lists(st.integers(0, 3), min_size=1, max_size=9))
@settings(max_examples=30)
def test_each_image_is_turned_by_its_own_turn(turns):
    images = torch.randn(len(turns), 2, 4, 4, generator=torch.Generator().manual_seed(1))
    before = images.clone()
    found, classes = rotated(images, torch.tensor(turns))
    assert classes.tolist() == turns and classes.dtype == torch.int64
    assert torch.equal(images, before)
    for image, turned, k in zip(images, found, turns, strict=True):
        assert torch.equal(turned, torch.rot90(image, k, (1, 2)))


def test_batches_of_random_turns_have_every_class_and_one_seed_draws_one():
    images = torch.randn(400, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    batches = TensorBatches(images, torch.zeros(400), batch_size=64, shuffle=False)
    first, second = (RotatedBatches(batches, turns="random", seed=3) for _ in range(2))
    assert len(first) == 7
    classes = []
    for (turned, k), (again, same) in zip(first, second, strict=True):
        assert torch.equal(turned, again) and torch.equal(k, same)
        classes.append(k)
    counts = torch.cat(classes).bincount()
    assert counts.sum() == 400
    assert (counts > 100 - 5 * 8.7).all()  # of 400 draws, 100 each, deviation 8.7
    assert [len(k) for _, k in RotatedBatches(batches)] == [256] * 6 + [64]


@pytest.mark.parametrize(
    ("images", "turns", "message"),
    [
        (torch.zeros(2, 3, 4, 5), None, r"images are \[2, 3, 4, 5\], expected square"),
        (torch.zeros(4, 4), None, "expected square"),
        (torch.zeros(2, 4, 4), torch.tensor([1]), r"turns are torch.int64 \[1\]"),
        (torch.zeros(2, 4, 4), torch.tensor([1.0, 2.0]), "turns are torch.float32"),
        (torch.zeros(2, 4, 4), torch.tensor([1, 4]), "turns are from 1 to 4"),
    ],
)
def test_images_and_turns_that_do_not_fit_are_errors(images, turns, message):
    with pytest.raises(ValueError, match=message):
        rotated(images, turns)


def test_turns_that_are_neither_all_nor_random_are_an_error():
    with pytest.raises(ValueError, match="turns is 'some', expected 'all' or 'random'"):
        RotatedBatches([], turns="some")


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@given(count=st.integers(1, 6), width=st.integers(1, 5), temperature=st.floats(0.1, 3))
@settings(max_examples=40)
def test_the_contrastive_loss_is_its_formula_pair_by_pair(count, width, temperature):
    first, second = SMALL.standard_normal((2, count, width)) + 0.1
    z = unit(np.concatenate([first, second]))
    losses = []
    for i in range(2 * count):
        others = [k for k in range(2 * count) if k != i]
        exponents = {k: np.exp(z[i] @ z[k] / temperature) for k in others}
        losses.append(-np.log(exponents[(i + count) % (2 * count)] / sum(exponents.values())))
    found = contrastive_loss(
        torch.from_numpy(first), torch.from_numpy(second), temperature=temperature
    )
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-9, abs=1e-12)


def test_the_instance_loss_is_the_softmax_over_the_memory_and_moves_it():
    instances = InstanceMemory(6, 4, temperature=0.2, momentum=0.25).double()
    memory = instances.memory.numpy().copy()
    assert np.allclose(np.linalg.norm(memory, axis=1), 1)
    drawn = SMALL.standard_normal((3, 4))
    outputs = torch.from_numpy(drawn).requires_grad_()
    loss = instances(outputs, torch.tensor([4, 0, 2]))
    v = unit(drawn)
    p = np.exp(v @ memory.T / 0.2)
    p /= p.sum(1, keepdims=True)
    assert loss.item() == pytest.approx(-np.log(p[[0, 1, 2], [4, 0, 2]]).mean(), rel=1e-10)
    # By hand: dL/dv = (sum_j p_j m_j - m_i) / (temperature batch), through v = x / |x|.
    loss.backward()
    toward = (p @ memory - memory[[4, 0, 2]]) / (0.2 * 3)
    toward -= (toward * v).sum(1, keepdims=True) * v
    expected = toward / np.linalg.norm(drawn, axis=1, keepdims=True)
    assert np.allclose(outputs.grad.numpy(), expected, rtol=1e-9, atol=1e-12)
    memory[[4, 0, 2]] = unit(0.25 * memory[[4, 0, 2]] + 0.75 * v)
    assert np.allclose(instances.memory.numpy(), memory, rtol=1e-12)
    for quiet in (instances.eval(), instances.train()):
        with torch.no_grad():
            quiet(outputs, torch.tensor([4, 0, 2]))
    assert np.allclose(instances.memory.numpy(), memory, rtol=1e-12)


def test_the_estimated_instance_loss_is_noise_contrastive_with_one_constant():
    instances = InstanceMemory(9, 4, temperature=0.5, negatives=5, seed=2).double()
    generator = torch.Generator().manual_seed(2)
    torch.randn(9, 4, generator=generator)  # the memory
    constant = None
    for _ in range(2):
        memory = instances.memory.numpy().copy()
        drawn, numbers = SMALL.standard_normal((3, 4)), np.array([4, 0, 8])
        loss = instances(torch.from_numpy(drawn).requires_grad_(), torch.tensor(numbers)).item()
        others = torch.randint(9, (3, 5), generator=generator).numpy()
        v = unit(drawn)
        total = 0.0
        if constant is None:
            constant = 9 * np.mean([np.exp(memory[others[i]] @ v[i] / 0.5) for i in range(3)])

        def h(j, row, memory=memory, constant=constant):
            p = np.exp(memory[j] @ row / 0.5) / constant
            return p / (p + 5 / 9)

        for i in range(3):
            total -= np.log(h(numbers[i], v[i]))
            total -= sum(np.log(1 - h(j, v[i])) for j in others[i])
        assert loss == pytest.approx(total / 3, rel=1e-9)
        assert float(instances.constant) == pytest.approx(constant, rel=1e-12)
    again = InstanceMemory(9, 4, temperature=0.5, negatives=5).double()
    again.load_state_dict(instances.state_dict())
    assert torch.equal(again.memory, instances.memory) and again.constant == instances.constant


def losses_of(instances, steps, *, start=0):
    """Return the losses of so many steps, each with its own features."""
    found = []
    for step in range(start, start + steps):
        drawn = np.random.default_rng(step).standard_normal((3, 4))
        outputs = torch.from_numpy(drawn).float().requires_grad_()
        found.append(instances(outputs, torch.tensor([4, 0, 8])).item())
    return found


def test_negatives_are_those_of_the_seed_and_torchs_generator_stays():
    first, second = (InstanceMemory(50, 4, negatives=3, seed=1) for _ in range(2))
    other = InstanceMemory(50, 4, negatives=3, seed=2)
    other.load_state_dict({**other.state_dict(), "memory": first.memory})
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first(torch.ones(1, 4), torch.tensor([0]))
    assert torch.equal(torch.get_rng_state(), before)
    second(torch.ones(1, 4), torch.tensor([0]))
    assert losses_of(first, 4) == losses_of(second, 4) != losses_of(other, 4)


@pytest.mark.parametrize("way", ["state", "file", "copy"])
def test_training_with_negatives_goes_on_to_the_same_bits(way, tmp_path):
    whole = InstanceMemory(50, 4, negatives=3, seed=1)
    stopped = copy.deepcopy(whole)
    expected = losses_of(whole, 6)
    assert losses_of(stopped, 3) == expected[:3]
    if way == "copy":
        resumed = copy.deepcopy(stopped)
    else:
        resumed, state = InstanceMemory(50, 4, negatives=3, seed=9), stopped.state_dict()
        if way == "file":
            torch.save(state, tmp_path / "state.pt")
            state = torch.load(tmp_path / "state.pt", weights_only=True)
        resumed.load_state_dict(state)
    losses_of(stopped, 2)  # which does not reach the other
    assert losses_of(resumed, 3, start=3) == expected[3:]
    assert torch.equal(resumed.memory, whole.memory)


def test_instances_are_told_apart_by_training_in_fit():
    torch.manual_seed(0)
    images = torch.randn(40, 12)
    model, instances = nn.Linear(12, 8), InstanceMemory(40, 8)
    losses = fit(
        model,
        TensorBatches(images, torch.arange(40), batch_size=20),
        epochs=30,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        loss=instances,
        seed=0,
    )
    assert losses[-1] < losses[0] / 2
    nearest = (F.normalize(model(images), dim=1) @ instances.memory.T).argmax(1)
    assert (nearest == torch.arange(40)).float().mean() > 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InstanceMemory(0, 4), "count is 0"),
        (lambda: InstanceMemory(4, 4, negatives=0), "negatives is 0"),
        (lambda: InstanceMemory(4, 4, temperature=0.0), "temperature is 0.0"),
        (lambda: InstanceMemory(4, 4, momentum=1.0), "momentum is 1.0"),
        (lambda: InstanceMemory(4, 4)(torch.ones(2, 3), torch.ones(2)), r"expected \[batch, 4\]"),
        (lambda: InstanceMemory(4, 4)(torch.ones(2, 4), torch.ones(2)), "expected integers"),
        (lambda: InstanceMemory(4, 4)(torch.ones(1, 4), torch.tensor([4])), "expected 0 to 3"),
        (lambda: contrastive_loss(torch.ones(2, 3), torch.ones(3, 2)), "features are"),
        (lambda: contrastive_loss(torch.ones(2, 3), torch.ones(2, 3), temperature=0), "is 0"),
    ],
)
def test_bad_arguments_of_losses_are_errors_that_name_them(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def problem(seed=0, count=60):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 4)) * [1, 10, 0.1, 3] + [0, 5, -2, 1]
    classes = (x[:, 0] + x[:, 1] / 10 + rng.standard_normal(count) > 0).astype(int)
    classes += x[:, 3] > 4
    return x, classes


def standardized(x):
    return (x - x.mean(0)) / x.std(0)


def test_a_squared_probe_is_the_least_squares_of_numpy():
    """Ridge as plain least squares: sqrt(n l2) I below the features, targets of 0 for it."""
    x, classes = problem()
    probe = linear_probe(torch.from_numpy(x), torch.from_numpy(classes), l2=0.3, loss="squared")
    s, wanted = standardized(x), np.eye(3)[classes]
    rows = np.concatenate(
        [np.c_[s, np.ones(60)], np.c_[np.sqrt(60 * 0.3) * np.eye(4), np.zeros(4)]]
    )
    solution, *_ = np.linalg.lstsq(rows, np.concatenate([wanted, np.zeros((4, 3))]), rcond=None)
    expected = s @ solution[:4] + solution[4]
    assert np.allclose(probe(torch.from_numpy(x)).detach().numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_a_logistic_probe_is_the_minimum_that_newton_finds(l2):
    x, classes = problem(seed=2)
    probe = linear_probe(torch.from_numpy(x), torch.from_numpy(classes), l2=l2)
    s, wanted = np.c_[standardized(x), np.ones(60)], np.eye(3)[classes]
    price = np.diag([l2] * 4 + [0])
    theta = np.zeros((3, 5))
    for _ in range(60):
        scores = s @ theta.T
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = (p - wanted).T @ s / 60 + theta @ price
        hessian = np.kron(np.eye(3), price)
        for row, q in zip(s, p, strict=True):
            hessian += np.kron(np.diag(q) - np.outer(q, q), np.outer(row, row)) / 60
        step, *_ = np.linalg.lstsq(hessian, gradient.ravel(), rcond=1e-12)
        theta -= step.reshape(3, 5)
    assert np.abs(gradient).max() < 1e-10
    p = np.exp(s @ theta.T)
    p /= p.sum(1, keepdims=True)
    found = probe(torch.from_numpy(x)).softmax(1).detach().numpy()
    assert np.allclose(found, p, atol=1e-5)


def test_a_probe_ignores_constant_features_and_keeps_type_and_count():
    x = torch.tensor([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0]])
    probe = linear_probe(x, torch.tensor([0, 1, 1]), count=5)
    assert probe.weight.shape == (5, 2) and probe.weight.dtype == torch.float32
    assert (probe.weight[:, 1] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(2, 3), torch.zeros(3)), {}, "features are"),
        ((torch.ones(0, 3), torch.zeros(0)), {}, "n above 0"),
        ((torch.ones(2, 3), torch.zeros(2)), {}, "classes are torch.float32"),
        ((torch.ones(2, 3), torch.tensor([0, 3])), {"count": 3}, "from 0 to 3, expected 0 to 2"),
        ((torch.full((2, 3), torch.nan), torch.tensor([0, 1])), {}, "NaN or infinities"),
        ((torch.ones(2, 3), torch.tensor([0, 1])), {"l2": 0}, "l2 is 0"),
        ((torch.ones(2, 3), torch.tensor([0, 1])), {"loss": "hinge"}, "loss is 'hinge'"),
    ],
)
def test_bad_arguments_of_probes_are_errors_that_name_them(arguments, options, message):
    with pytest.raises(ValueError, match=f"probe: .*{message}"):
        linear_probe(*arguments, **options)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.AdaptiveAvgPool2d(2)
        )
        self.heads = nn.ModuleDict({"turns": nn.Linear(16, 4)})

    def forward(self, x):
        return self.heads["turns"](self.body(x).flatten(1))


def test_features_are_what_goes_into_the_layer_and_the_model_stays():
    model = Net()
    model.body[1].eval()
    before = copy.deepcopy(model)
    x, y = torch.randn(10, 1, 6, 6), torch.arange(10)
    found, targets = features(
        model, TensorBatches(x, y, batch_size=4, shuffle=False), "heads.turns"
    )
    assert torch.equal(targets, y) and not found.requires_grad
    assert torch.allclose(found, copy.deepcopy(model).eval().body(x).flatten(1), atol=1e-6)
    for (name, tensor), other in zip(
        model.state_dict().items(), before.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, other), name
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert not model.heads["turns"]._forward_pre_hooks
    for layer in ("heads.other", ""):
        with pytest.raises(ValueError, match="the model has no layer"):
            features(model, [(x, y)], layer)
    with pytest.raises(ValueError, match="was called 0 times"):
        features(model, [(x, y)], "heads")
    with pytest.raises(ValueError, match="no batches"):
        features(model, [], "body")


def test_a_probe_as_head_is_the_classifier_that_fine_tuning_starts_from():
    model = Net()
    prune(model, Plan.of(sparsity=0.5))
    torch.manual_seed(4)
    x = torch.randn(64, 1, 6, 6)
    y = (x.mean((1, 2, 3)) > 0).long()
    inputs, classes = features(model, [(x, y)], "heads.turns")
    probe = linear_probe(inputs, classes)
    classifier = with_head(model, "heads.turns", probe)
    assert torch.equal(masks(classifier)["body.0"], masks(model)["body.0"])
    assert model.heads["turns"].out_features == 4
    expected = accuracy(probe(inputs), y)
    assert evaluate(classifier, [(x, y)], accuracy) == expected > 0.6
    sgd = torch.optim.SGD(classifier.parameters(), lr=0.1)
    start = evaluate(classifier, [(x, y)], F.cross_entropy)
    fit(classifier, [(x, y)], epochs=20, optimizer=sgd, loss=F.cross_entropy, seed=0)
    assert evaluate(classifier, [(x, y)], F.cross_entropy) < start
    assert (classifier.body[0].weight[~masks(model)["body.0"]] == 0).all()
    with pytest.raises(ValueError, match="the model has no layer 'head'"):
        with_head(model, "head", probe)
