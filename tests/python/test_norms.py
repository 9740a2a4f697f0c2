"""Recalibrated batch norms against numpy, torch's own statistics, and the function before."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tersenet import Plan, compress, prune
from tersenet.training import TensorBatches, recalibrate


def network(dtype=torch.float64):
    """Two convolutions, each with a batch norm whose statistics fit, and a dropout."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4, eps=1e-12),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 3, 2, bias=False),
        nn.BatchNorm2d(3, eps=1e-12),
        nn.Flatten(),
        nn.Linear(12, 5),
    ).double()
    recalibrate(model, BATCHES)
    return model.to(dtype).eval()


X = torch.randn(24, 2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
BATCHES = [(X[:10], None), (X[10:20], None), (X[20:], None)]


def statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@given(
    sizes=st.lists(st.integers(2, 9), min_size=1, max_size=5),
    length=st.none() | st.integers(1, 3),
    offset=st.sampled_from([0.0, 100.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_statistics_are_of_all_inputs_however_they_are_batched(sizes, length, offset, dtype):
    torch.manual_seed(sum(sizes))
    shape = [sum(sizes), 3] if length is None else [sum(sizes), 3, length]
    inputs = (torch.randn(shape) + offset).to(dtype)
    norm = nn.BatchNorm1d(3, dtype=dtype)
    recalibrate(norm, [(part, None) for part in inputs.split(sizes)])
    values = np.moveaxis(inputs.double().numpy(), 1, 0).reshape(3, -1)
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(norm.running_mean, values.mean(1), rtol=rtol, atol=rtol)
    np.testing.assert_allclose(norm.running_var, values.var(1, ddof=1), rtol=10 * rtol)


def test_one_batch_gives_what_torch_measures():
    model = network()
    by_torch = copy.deepcopy(model).eval()
    for module in by_torch.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    with torch.no_grad():
        by_torch(X)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(7.0)
    recalibrate(model, [(X, None)])
    for mine, theirs in zip(model.buffers(), by_torch.buffers(), strict=True):
        if mine.is_floating_point():
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("with_reference", [False, True])
def test_a_layer_that_is_scaled_and_shifted_gives_the_same_afterwards(with_reference):
    model = network()
    expected = model(X)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed[0].weight *= 3.0
        changed[0].bias += 5.0
        changed[4].weight *= 0.25
    assert not torch.allclose(changed(X), expected)
    recalibrate(changed, BATCHES, reference=model if with_reference else None)
    torch.testing.assert_close(changed(X), expected, rtol=1e-9, atol=1e-9)


def test_with_a_reference_only_what_changed_is_taken_over():
    model = network()
    others = [(3 * X + 1, None)]  # not distributed as what the norms know
    before = statistics(model)
    same = copy.deepcopy(model)
    recalibrate(same, others, reference=model)
    for name, buffer in statistics(same).items():
        torch.testing.assert_close(buffer, before[name], rtol=1e-12, atol=1e-12)
    doubled = copy.deepcopy(model)
    with torch.no_grad():
        doubled[0].weight *= 2.0
        doubled[0].bias *= 2.0
    recalibrate(doubled, others, reference=model)
    torch.testing.assert_close(doubled[1].running_mean, 2 * before["1.running_mean"])
    torch.testing.assert_close(doubled[1].running_var, 4 * before["1.running_var"])
    for name, buffer in statistics(model).items():
        assert torch.equal(buffer, before[name])


def test_a_layer_that_went_needs_no_norm_of_its_own():
    model = nn.Sequential(
        nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()
    ).double()
    recalibrate(model, BATCHES)
    short = copy.deepcopy(model)
    short[2] = short[3] = nn.Identity()
    with torch.no_grad():
        short[0].weight *= 2.0
    others = [3 * X + 1]
    recalibrate(short, others, reference=model)
    # The norm that is left gives what it gave, by the mean and the variance of its channels.
    outputs = [m[:2](others[0]) for m in (short.eval(), model.eval())]
    for statistic in (torch.mean, torch.var):
        here, there = (statistic(y, (0, 2, 3)) for y in outputs)
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)


class Sees(nn.Module):
    """Two norms, of which the second may be left out."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.first, self.second, self.both = nn.BatchNorm2d(2), nn.BatchNorm2d(2), both

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)) if self.both else self.first(x)


def test_a_norm_that_sees_nothing_in_the_reference_is_named():
    with pytest.raises(ValueError, match="'second' sees no input in the reference"):
        recalibrate(Sees(both=True).double(), BATCHES, reference=Sees(both=False).double())


def test_a_channel_that_is_pruned_whole_is_near_its_mean_though_inputs_are_others():
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)).double()
    recalibrate(model, BATCHES)
    model.eval()
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        pruned[0].weight[1] = 0.0
    others = 3 * X + 1
    recalibrate(pruned, [others], reference=model)
    # A constant channel gives what the dense one gives in the mean, and not that over sqrt(eps).
    expected = model(others)[:, 1].mean()
    torch.testing.assert_close(pruned(others)[:, 1].mean(), expected, rtol=1e-6, atol=1e-6)


def test_a_channel_that_is_pruned_whole_has_finite_statistics():
    model = network()
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        pruned[0].weight[1] = 0.0
        model[4].weight[2] = 0.0
    recalibrate(pruned, BATCHES, reference=model)
    assert all(buffer.isfinite().all() for buffer in pruned.buffers())
    recalibrate(pruned, BATCHES)
    assert pruned[1].running_var[1] == 0
    assert pruned(X).isfinite().all()


def test_compressed_and_masked_models_as_the_plain_pruned_one():
    plan = Plan.of(sparsity=0.5)
    plain = network(torch.float32)
    batches = TensorBatches(X.float(), torch.zeros(len(X)), batch_size=8, shuffle=False)
    masked, compressed = copy.deepcopy(plain), compress(plain, plan)
    prune(masked, plan)
    with torch.no_grad():
        for place in (0, 4, 7):
            plain[place].weight.copy_(masked[place].weight)
    for model in (plain, masked, compressed):
        recalibrate(model, batches)
    assert not torch.equal(plain[1].running_mean, network(torch.float32)[1].running_mean)
    for model in (masked, compressed):
        torch.testing.assert_close(model[5].running_var, plain[5].running_var)
        torch.testing.assert_close(model(X.float()), plain(X.float()), rtol=1e-4, atol=1e-5)


def test_all_else_is_left_as_it_was():
    model = network()
    model.train()
    model[3].eval()
    model[5].momentum = None
    model[5].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = [((X,), "no target")]
    recalibrate(model, inputs)
    assert [module.training for module in model] == [True] * 3 + [False, True, False, True, True]
    assert model[5].momentum is None and model[1].momentum == 0.1
    assert not model[1]._forward_pre_hooks
    for name, value in model.state_dict().items():
        is_statistic = name.endswith(("running_mean", "running_var"))
        assert is_statistic != torch.equal(value, state[name])
    model.train()
    model(X)
    assert not torch.equal(model[1].running_mean, state["1.running_mean"])


def test_norms_without_running_statistics_or_inputs_stay():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.BatchNorm2d(2), nn.BatchNorm2d(9)
            self.untracked = nn.BatchNorm2d(2, track_running_stats=False)

        def forward(self, x):
            return self.untracked(self.used(x))

    model = Branch()
    recalibrate(model, [(X.float(), None)])
    assert model.untracked.running_mean is None and not model.untracked.track_running_stats
    assert torch.equal(model.unused.running_var, torch.ones(9))
    torch.testing.assert_close(model.used.running_mean, X.float().mean((0, 2, 3)))


BROKEN = {
    "no batches": ([], None),
    "no batch norm with running statistics": (BATCHES, None),
    "sees 1 value a channel": ([(X, None), (X[:1, :, :3, :3].expand(1, 2, 3, 3), None)], None),
    "batch norm '1' hold non-finite values": ([(X * float("nan"), None)], None),
    "'5' has 3 channels in the model, expected 4": (BATCHES, "other"),
    "'5' has 3 channels in the model, expected none": (BATCHES, "fewer"),
}


@pytest.mark.parametrize("message", BROKEN)
def test_bad_input_is_named_and_leaves_the_model(message):
    batches, reference = BROKEN[message]
    model = network()
    if message.startswith("no batch norm"):
        model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1, track_running_stats=False))
    other = copy.deepcopy(model)
    if reference:
        other[5] = nn.BatchNorm2d(4) if reference == "other" else nn.Identity()
    state, training = statistics(model), [m.training for m in model.modules()]
    with pytest.raises(ValueError, match=message):
        recalibrate(model, batches, reference=other if reference else None)
    assert [m.training for m in model.modules()] == training
    for name, buffer in statistics(model).items():
        assert torch.equal(buffer, state[name])


def test_an_error_within_the_model_leaves_it():
    model = network()
    state = statistics(model)
    with pytest.raises(RuntimeError):
        recalibrate(model, [(X, None), (X[:, :1], None)])
    assert all(torch.equal(buffer, state[name]) for name, buffer in statistics(model).items())
    assert model[1].track_running_stats and not model[1]._forward_pre_hooks
    with pytest.raises(ValueError, match="no batch norm sees an input"):
        recalibrate(Skipping(), [(X, None)])


class Skipping(nn.Module):
    """A model with a batch norm that it does not use."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x):
        return x
