"""The training loop: what it computes, when it calls, and what it leaves behind."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tersenet.pruning import taylor_scores
from tersenet.training import Callback, TensorBatches, accuracy, evaluate, fit, recalibrate

INPUTS = torch.linspace(-1, 1, 24).reshape(12, 2)
TARGETS = INPUTS @ torch.tensor([[1.0], [-2.0]])


def small_model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1))


def batches(seed: int = 0, shuffle: bool = True) -> TensorBatches:
    return TensorBatches(INPUTS, TARGETS, batch_size=5, shuffle=shuffle, seed=seed)


def trained(seed: int) -> dict[str, torch.Tensor]:
    model = small_model()
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    fit(model, batches(seed), epochs=3, optimizer=adam, loss=F.mse_loss, seed=seed)
    return model.state_dict()


def test_a_plain_loop_by_hand_gives_the_same_weights():
    model, expected = nn.Linear(2, 1), nn.Linear(2, 1)
    expected.load_state_dict(model.state_dict())
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = fit(model, batches(shuffle=False), epochs=2, optimizer=sgd, loss=F.mse_loss)
    sgd = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(2):
        total = 0.0
        for start in (0, 5, 10):
            sgd.zero_grad()
            part = slice(start, start + 5)
            loss = F.mse_loss(expected(INPUTS[part]), TARGETS[part])
            loss.backward()
            sgd.step()
            total += loss.item()
        assert losses[epoch] == pytest.approx(total / 3)
    assert torch.equal(model.weight, expected.weight)


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    first, again, other = trained(1), trained(1), trained(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_the_callers_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.5))
    torch.manual_seed(5)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, batches(), epochs=1, optimizer=sgd, loss=F.mse_loss, seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_modes_are_restored_one_by_one():
    model = small_model().eval()
    model[1].train()
    before = [module.training for module in model.modules()]
    seen = []
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)

    def look(state):
        seen.append(model.training)
        evaluate(model, batches(), F.mse_loss)
        seen.append(model.training)

    fit(model, batches(), epochs=1, optimizer=sgd, loss=F.mse_loss, callbacks=[look])
    assert seen == [True, True]
    assert [module.training for module in model.modules()] == before


def test_modes_are_restored_after_an_error():
    model = small_model().eval()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)

    def fail(state):
        raise KeyError("mine")

    with pytest.raises(KeyError):
        fit(model, batches(), epochs=1, optimizer=sgd, loss=F.mse_loss, callbacks=[fail])
    assert not model.training


class Log(Callback):
    def __init__(self):
        self.places = []

    def __getattribute__(self, name):
        if name in vars(Callback) and not name.startswith("__"):
            return lambda state: self.places.append((name, state.epoch, state.step))
        return super().__getattribute__(name)


def test_callbacks_are_called_in_order():
    model, log = nn.Linear(2, 1), Log()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [(INPUTS, TARGETS), (INPUTS, TARGETS)]
    fit(model, data, epochs=2, optimizer=sgd, loss=F.mse_loss, callbacks=[log])
    names = [name for name, _, _ in log.places]
    step = ["step_start", "loss_computed", "gradients_computed", "step_end"]
    epoch = ["epoch_start", *step, *step, "epoch_end"]
    assert names == ["fit_start", *epoch, *epoch, "fit_end"]
    assert [(e, s) for name, e, s in log.places if name == "step_end"] == [
        (0, 0),
        (0, 1),
        (1, 2),
        (1, 3),
    ]


class Penalty(Callback):
    """Adds a term to the loss, as ADMM does."""

    def loss_computed(self, state):
        state.loss = state.loss + 10 * state.model.weight.square().sum()


class Freeze(Callback):
    """Takes away gradients."""

    def gradients_computed(self, state):
        state.model.bias.grad.zero_()


def test_callbacks_change_loss_and_gradients():
    model, plain = nn.Linear(2, 1), nn.Linear(2, 1)
    plain.load_state_dict(model.state_dict())
    bias = model.bias.detach().clone()
    for m, callbacks in ((plain, []), (model, [Penalty(), Freeze()])):
        sgd = torch.optim.SGD(m.parameters(), lr=0.01)
        fit(m, batches(), epochs=20, optimizer=sgd, loss=F.mse_loss, callbacks=callbacks)
    assert torch.equal(model.bias, bias)
    assert model.weight.norm().item() < 0.5 * plain.weight.norm().item()


def test_a_callback_stops_after_the_epoch():
    model = nn.Linear(2, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)

    def stop(state):
        state.stop = state.epoch == 1

    losses = fit(model, batches(), epochs=9, optimizer=sgd, loss=F.mse_loss, callbacks=[stop])
    assert len(losses) == 2


@pytest.mark.parametrize(("unit", "steps"), [("epoch", 2), ("step", 6)])
def test_schedulers_step_in_their_unit(unit, steps):
    model = nn.Linear(2, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(sgd, 0.5)
    fit(
        model,
        batches(),
        epochs=2,
        optimizer=sgd,
        loss=F.mse_loss,
        scheduler=scheduler,
        scheduler_unit=unit,
    )
    assert sgd.param_groups[0]["lr"] == pytest.approx(0.5**steps)


def test_a_scheduler_that_watches_gets_the_loss():
    model = nn.Linear(2, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, factor=0.5, patience=0)
    losses = fit(model, batches(), epochs=2, optimizer=sgd, loss=F.mse_loss, scheduler=scheduler)
    assert scheduler.best == pytest.approx(min(losses))


def test_an_optimizer_that_evaluates_many_times_works():
    model = nn.Linear(2, 1)
    lbfgs = torch.optim.LBFGS(model.parameters(), max_iter=20)
    losses = fit(model, [(INPUTS, TARGETS)], epochs=5, optimizer=lbfgs, loss=F.mse_loss)
    assert losses[-1] < 1e-6


def test_under_autocast_each_step_sees_the_weights_of_the_step_before():
    model, expected = nn.Linear(2, 1), nn.Linear(2, 1)
    expected.load_state_dict(model.state_dict())
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        fit(model, batches(shuffle=False), epochs=2, optimizer=sgd, loss=F.mse_loss)
    sgd = torch.optim.SGD(expected.parameters(), lr=0.1)
    for part in [slice(start, start + 5) for start in (0, 5, 10)] * 2:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.mse_loss(expected(INPUTS[part]), TARGETS[part])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    torch.testing.assert_close(model.weight, expected.weight)


class Pairs(Dataset):
    """Examples of two inputs and a target, as a DataLoader collates them."""

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return len(INPUTS)

    def __getitem__(self, place):
        first, second, target = INPUTS[place], INPUTS[place], TARGETS[place]
        inputs = {"input1": first, "input2": second} if self.kind is dict else (first, second)
        return inputs, target


@pytest.mark.parametrize("kind", [tuple, dict])
def test_several_inputs_become_arguments(kind):
    torch.manual_seed(0)
    model = nn.Bilinear(2, 2, 1)
    by_hand = copy.deepcopy(model)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    data = DataLoader(Pairs(kind), batch_size=5)
    expected = F.mse_loss(by_hand(INPUTS, INPUTS), TARGETS).item()
    assert evaluate(model, data, F.mse_loss) == pytest.approx(expected)
    of = {"epochs": 1, "optimizer": sgd, "loss": F.mse_loss}
    fit(model, data, **of)
    own = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    for x, y in zip(INPUTS.split(5), TARGETS.split(5), strict=True):
        own.zero_grad()
        F.mse_loss(by_hand(x, x), y).backward()
        own.step()
    assert torch.equal(model.weight, by_hand.weight)


@pytest.mark.parametrize("kind", ["tensor", "list", "dict", "pair", "own"])
def test_inputs_without_targets(kind):
    data = {
        "tensor": DataLoader(INPUTS, batch_size=5),
        "list": DataLoader(TensorDataset(INPUTS), batch_size=5),
        "dict": [{"input": part} for part in INPUTS.split(5)],
        "pair": [(part, None) for part in INPUTS.split(5)],
        "own": TensorBatches(INPUTS, batch_size=5, shuffle=False),
    }[kind]
    model = nn.Linear(2, 1)

    def size(outputs, targets):
        assert targets is None
        return outputs.square().mean()

    assert evaluate(model, data, size) == pytest.approx(model(INPUTS).square().mean().item())
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    first, last = fit(model, data, epochs=2, optimizer=sgd, loss=size)
    assert last < first
    assert list(taylor_scores(model, data, size)) == [""]
    norm = nn.BatchNorm1d(2)
    recalibrate(nn.Sequential(norm), data)
    torch.testing.assert_close(norm.running_mean, INPUTS.mean(0))


def test_a_batch_of_three_parts_is_an_error():
    for call in (
        lambda data: evaluate(nn.Bilinear(2, 2, 1), data, F.mse_loss),
        lambda data: recalibrate(nn.BatchNorm1d(2), data),
    ):
        with pytest.raises(ValueError, match=r"batch: 3 parts, expected \(inputs, targets\)"):
            call([(INPUTS, INPUTS, TARGETS)])


def test_evaluate_weighs_examples_and_keeps_no_gradients():
    model = nn.Linear(2, 1)
    found = evaluate(model, batches(), F.mse_loss)
    assert found == pytest.approx(F.mse_loss(model(INPUTS), TARGETS).item())
    assert model.weight.grad is None


def test_accuracy_counts_the_largest_output():
    outputs = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert accuracy(outputs, torch.tensor([1, 0, 0, 1])) == 0.75


def test_batches_hold_every_example_once_in_a_new_order_each_time():
    data = TensorBatches(torch.arange(7), torch.arange(7), batch_size=3, seed=1)
    first = torch.cat([inputs for inputs, _ in data])
    second = torch.cat([inputs for inputs, _ in data])
    assert len(data) == 3
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(7))
    assert first.tolist() != second.tolist()


def test_bad_arguments_are_named():
    model = nn.Linear(2, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    common = {"optimizer": sgd, "loss": F.mse_loss}
    with pytest.raises(ValueError, match="epochs is -1"):
        fit(model, batches(), epochs=-1, **common)
    with pytest.raises(ValueError, match="scheduler_unit is 'batch'"):
        fit(model, batches(), epochs=1, scheduler_unit="batch", **common)
    with pytest.raises(ValueError, match="no batches"):
        fit(model, [], epochs=1, **common)
    with pytest.raises(ValueError, match="no examples"):
        evaluate(model, [], F.mse_loss)
    with pytest.raises(ValueError, match="batch_size is 0"):
        TensorBatches(INPUTS, TARGETS, batch_size=0)
    with pytest.raises(ValueError, match="3 targets, expected 12"):
        TensorBatches(INPUTS, TARGETS[:3], batch_size=1)
