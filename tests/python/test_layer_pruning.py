"""Layer pruning: shortcuts that fuse away exactly, factors that reach zero, layers that go."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exported import check, lively
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

import tersenet
from tersenet.layer_pruning import LayerL1, ResConv2d, convert, fuse, normalize, remove, scales
from tersenet.plan import Plan
from tersenet.pruning import reinitialize, reset_parameters
from tersenet.reporting import report
from tersenet.training import TensorBatches, fit


@pytest.fixture(autouse=True)
def _one_thread():
    """On networks this small a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@st.composite
def pairs(draw):
    """A convolution around which a shortcut fits, and a norm with statistics, or None."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    kernel = draw(st.sampled_from([1, 3, 5, (1, 3), (5, 3)]))
    height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    dilation = draw(st.sampled_from([1, 2]))
    same = (dilation * (height - 1) // 2, dilation * (width - 1) // 2)
    conv = nn.Conv2d(
        8,
        8,
        kernel,
        dilation=dilation,
        groups=draw(st.sampled_from([1, 2, 8])),
        bias=draw(st.booleans()),
        padding=draw(st.sampled_from([same, "same"])),
        padding_mode=draw(st.sampled_from(["zeros", "circular"])),
    )
    bn = None
    if draw(st.booleans()):
        bn = lively(nn.BatchNorm2d(8, eps=draw(st.sampled_from([1e-5, 1e-3])), affine=draw(BOOLS)))
    return conv.eval(), bn


BOOLS = st.booleans()
X = torch.randn(2, 8, 11, 9, generator=torch.Generator().manual_seed(5))


def plain(conv, bn, x):
    """What torch's own convolution and norm give in float64, in evaluation mode."""
    x = copy.deepcopy(conv).double()(x.double())
    return (x if bn is None else copy.deepcopy(bn).eval().double()(x)).detach()


def assert_close(found, expected, size):
    """Compare to 1e-5 of the largest number that enters a sum."""
    limit = 1e-5 * max(float(size.detach().abs().max()), 1.0)
    assert (found.double() - expected).abs().max() <= limit


@given(pair=pairs(), scale=st.sampled_from([0.0, 1e-3, 0.7, 1.0, -2.5]))
@settings(max_examples=30)
def test_a_layer_and_its_fusion_compute_the_formula(pair, scale):
    conv, bn = pair
    y = plain(conv, bn, X)
    layer = ResConv2d(conv, bn, scale=scale)
    fused = layer.fuse()
    assert type(fused) is nn.Conv2d
    assert (fused.bias is None) == (conv.bias is None and bn is None)
    with torch.no_grad():
        for found in (layer(X), fused(X)):
            assert_close(found, scale * y + X.double(), scale * y)


@given(pair=pairs(), scale=st.sampled_from([0.3, 1.0, -2.0]))
@settings(max_examples=30)
def test_a_layer_from_a_trained_pair_computes_what_that_did(pair, scale):
    conv, bn = pair
    before = copy.deepcopy((conv.state_dict(), None if bn is None else bn.state_dict()))
    expected = plain(conv, bn, X)
    layer = ResConv2d.from_conv(conv, bn, scale=scale)
    fused = layer.fuse()
    with torch.no_grad():
        assert_close(layer(X), expected, torch.cat([expected, X.double()]))
        assert_close(layer.train()(X), expected, torch.cat([expected, X.double()]))
        assert_close(fused(X), expected, expected)
    factor = 1.0
    if bn is not None:
        gamma = bn.weight.detach().double() if bn.affine else 1.0
        factor = (gamma / (bn.running_var.double() + bn.eps).sqrt()).reshape(8, 1, 1, 1)
    kernel = (factor * conv.weight.detach().double()).numpy()
    np.testing.assert_allclose(fused.weight.detach().numpy(), kernel, rtol=1e-5, atol=1e-6)
    for module, state in zip((conv, bn), before, strict=True):
        assert module is None or all(
            torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items()
        )


def test_fused_kernels_match_a_hand_computation():
    conv = nn.Conv2d(2, 2, 1).eval()
    bn = nn.BatchNorm2d(2, eps=0.0).eval()
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]])[:, :, None, None])
        conv.bias.copy_(torch.tensor([1.0, -1.0]))
        bn.weight.copy_(torch.tensor([2.0, 3.0]))
        bn.bias.copy_(torch.tensor([0.5, 0.25]))
        bn.running_mean.copy_(torch.tensor([3.0, 1.0]))
        bn.running_var.copy_(torch.tensor([4.0, 9.0]))
    # g = (1, 1), shift = (1 * (1 - 3) + 0.5, 1 * (-1 - 1) + 0.25), times 0.5, plus Dirac
    fused = ResConv2d(conv, bn, scale=0.5).fuse()
    assert fused.weight[:, :, 0, 0].tolist() == [[1.5, 1.0], [1.5, 3.0]]
    assert fused.bias.tolist() == [-0.75, -0.875]


class Net(nn.Module):
    """Convolutions that fit and that do not, norms after and before them, and a residual block."""

    def __init__(self, channels=8):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.before = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 5, padding=4, dilation=2, groups=2)
        self.down = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.down_bn = nn.BatchNorm2d(channels)
        self.point = nn.Conv2d(channels, channels, 1, bias=False)
        self.seen = nn.Conv2d(channels, channels, 3, padding=1)
        self.seen_bn = nn.BatchNorm2d(channels)
        self.twice = nn.Conv2d(channels, channels, 1)
        self.idle = nn.Conv2d(channels, channels, 1)
        self.even = nn.Conv2d(channels, channels, 2, padding=1)
        self.thin = nn.Conv2d(channels, channels, 3)
        self.tied = nn.Conv2d(channels, channels, 1)
        self.other = nn.Conv2d(channels, channels, 1)
        self.other.weight = self.tied.weight
        self.head = nn.Linear(channels, 2)

    def forward(self, x):
        x = F.relu(self.stem_bn(self.stem(x)))
        x = F.relu(self.bn1(self.conv1(x)) + x)
        x = F.relu(self.conv2(self.before(x)))
        x = self.point(F.relu(self.down_bn(self.down(x))))
        seen = self.seen(x)
        x = F.relu(self.seen_bn(seen) + seen)
        x = self.thin(self.even(self.twice(F.relu(self.twice(x)))))
        return self.head(self.other(self.tied(x)).mean((2, 3)))


REASONS = {
    "stem": "channels are 3 -> 8",
    "down": "stride is 2 x 2",
    "twice": "is called 2 times",
    "idle": "is not called",
    "even": "kernel is 2 x 2",
    "thin": "padding is 0 x 0, expected 1 x 1",
    "tied": "shares a parameter",
    "other": "shares a parameter",
}
CONVERTED = {"conv1": "bn1", "conv2": None, "point": None, "seen": None}
IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(3))


def net(seed=0):
    torch.manual_seed(seed)
    return lively(Net())


def test_converting_keeps_the_function_and_says_why_layers_stay():
    model = net()
    expected = copy.deepcopy(model).double()(IMAGES.double())
    table = convert(model)
    assert {row.name: row.bn for row in table if row.reason is None} == CONVERTED
    left = {row.name: row.reason for row in table if row.reason is not None}
    assert left.keys() == REASONS.keys()
    for name, reason in REASONS.items():
        assert reason in left[name], name
        assert left[name] in str(table)
    assert "4 of 12 convolutions converted" in str(table)
    assert [n for n, m in model.named_modules() if isinstance(m, ResConv2d)] == list(CONVERTED)
    assert type(model.bn1) is nn.Identity
    assert type(model.seen_bn) is nn.BatchNorm2d
    assert_close(model(IMAGES), expected, expected)
    fuse(model)
    assert not any(isinstance(m, ResConv2d) for m in model.modules())
    assert_close(model(IMAGES), expected, expected)


def test_converting_with_weights_kept_adds_the_input():
    model = net()
    conv, bn = model.conv1, model.bn1
    parameters = {id(p) for p in model.parameters()}
    convert(model, "conv*", keep="weights")
    assert model.conv1.conv is conv
    assert model.conv1.bn is bn
    new = [p for p in model.parameters() if id(p) not in parameters]
    assert {id(p) for p in new} == {id(p) for p in scales(model).values()}
    x = torch.rand(1, 8, 6, 6)
    assert torch.equal(model.bn1(model.conv1(x)), bn(conv(x)) + x)


def test_pairs_convert_what_cannot_be_traced():
    class Branching(Net):
        def forward(self, x):
            return super().forward(x) if x.sum() < 1e9 else x

    torch.manual_seed(0)
    model = lively(Branching())
    expected = model(IMAGES).detach().double()
    with pytest.raises(ValueError, match=r"cannot be traced .* expected `pairs`"):
        convert(model)
    rows = convert(model, pairs={"conv1": "bn1", "point": None, "down": "down_bn"})
    assert {row.name for row in rows if row.reason is None} == {"conv1", "point"}
    reasons = {row.name: row.reason for row in rows}
    assert "stride" in reasons["down"]
    assert reasons["conv2"] == "is not in pairs"
    assert_close(model(IMAGES), expected, expected)


def test_normalize_keeps_the_function_and_gives_norms_that_fit_the_data():
    model = net()
    expected = model(IMAGES).detach().double()
    convert(model)
    outputs = []
    handle = model.conv1.conv.register_forward_hook(lambda *given: outputs.append(given[2]))
    model(IMAGES)
    handle.remove()
    normalize(model, TensorBatches(IMAGES, torch.zeros(4), batch_size=3))
    bn = model.conv1.bn
    assert model.conv2.bn.running_mean.abs().max() > 0
    np.testing.assert_allclose(bn.running_mean, outputs[0].detach().mean((0, 2, 3)), atol=1e-5)
    variance = outputs[0].detach().var((0, 2, 3), unbiased=False)
    np.testing.assert_allclose(bn.running_var, variance, rtol=1e-4)
    assert_close(model(IMAGES), expected, expected)
    with torch.no_grad():
        x = F.relu(model.stem_bn(model.stem(IMAGES)))
        usual = model.conv1(x).double()
        # In training mode with the batch's own statistics, which are those of all data here.
        assert_close(model.conv1.train()(x), usual, x)
    with pytest.raises(ValueError, match="no examples"):
        normalize(net_of(ResConv2d(nn.Conv2d(8, 8, 1))), [])
    unseen = convertible()
    unseen.aside = ResConv2d(nn.Conv2d(8, 8, 1))
    unseen.forward = lambda x: x
    with pytest.raises(ValueError, match="layer 'aside' sees no example"):
        normalize(unseen, [(X, torch.zeros(2))])


def net_of(*layers):
    return nn.Sequential(*layers)


def convertible(depth=3, seed=0):
    """A network of relu(scale * bn(conv(x)) + x), behind a ReLU."""
    torch.manual_seed(seed)
    layers = []
    for _ in range(depth):
        conv, bn = nn.Conv2d(8, 8, 3, padding=1), lively(nn.BatchNorm2d(8))
        layers += [ResConv2d(conv.eval(), bn), nn.ReLU()]
    return net_of(*layers).eval()


@given(zeros=st.sets(st.integers(0, 4)), seed=st.integers(0, 20))
@settings(max_examples=12)
def test_removed_layers_leave_every_bit(zeros, seed):
    model = convertible(5, seed)
    with torch.no_grad():
        for number in zeros:
            model[2 * number].scale.zero_()
        x = F.relu(X)
        expected = model(x)
        sizes = [sum(p.numel() for p in model[2 * n].parameters()) for n in sorted(zeros)]
        table = remove(model)
        assert torch.equal(model(x), expected)
    removed = [row for row in table if row.is_removed]
    assert [row.name for row in removed] == [str(2 * n) for n in sorted(zeros)]
    assert [row.parameters for row in removed] == sizes
    assert all(type(model[2 * n]) is nn.Identity for n in zeros)
    assert f"{len(zeros)} of 5 layers removed" in str(table)
    ends = [line.split()[-1] for line in str(table).splitlines()[2:7]]
    assert ends == ["yes" if number in zeros else "no" for number in range(5)]
    if len(zeros) < 5:
        fuse(model)
        exact = copy.deepcopy(model).double()(x.double())
        assert_close(model(x), exact, exact)
        assert_close(expected, exact, exact)


def test_a_model_whose_layers_are_all_gone_has_nothing_to_fuse():
    model = convertible()
    with torch.no_grad():
        for scale in scales(model).values():
            scale.zero_()
    assert all(row.is_removed for row in remove(model))
    x = F.relu(X)
    assert fuse(model) == []
    assert torch.equal(model(x), x)
    model = convertible()
    assert fuse(model) == ["0", "2", "4"]
    assert fuse(model) == []


@given(
    values=st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=4),
    strength=st.floats(0, 3),
    rate=st.sampled_from([0.0, 0.1, 0.5]),
)
@settings(max_examples=50)
def test_a_proximal_step_is_the_soft_threshold(values, strength, rate):
    model = net_of(*(ResConv2d(nn.Conv2d(2, 2, 1), scale=value) for value in values))
    sgd = torch.optim.SGD(model.parameters(), lr=rate)
    LayerL1(model, strength).step(sgd)
    for value, scale in zip(values, scales(model).values(), strict=True):
        expected = np.sign(value) * max(abs(value) - rate * strength, 0)
        assert scale.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
        if abs(value) < rate * strength * (1 - 1e-5):
            assert scale.item() == 0


def needless():
    """Layers whose loss is least without what they add, and data for it."""
    torch.manual_seed(1)
    model = net_of(*(ResConv2d(nn.Conv2d(4, 4, 1, bias=False)) for _ in range(2)))
    x = torch.randn(4, 4, 5, 5)
    return model, [(x, x)] * 60


def test_proximal_steps_reach_zero_and_stay_where_subgradients_do_not():
    model, batches = needless()
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    l1 = LayerL1(model, 0.1)
    seen = []
    watch = [l1, lambda state: seen.append([s.item() for s in scales(state.model).values()])]
    fit(model, batches, epochs=3, optimizer=sgd, loss=F.mse_loss, callbacks=watch)
    assert seen[1:] == [[0.0, 0.0]] * 2

    model, batches = needless()
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    values = []
    for x, y in batches * 3:
        sgd.zero_grad()
        penalty = sum(scale.abs() for scale in scales(model).values())
        (F.mse_loss(model(x), y) + 0.1 * penalty).backward()
        sgd.step()
        values += [scale.item() for scale in scales(model).values()]
    assert all(value != 0 for value in values[-100:])


def test_a_loop_of_ones_own_and_fit_take_the_same_steps_under_a_schedule():
    def parts():
        model, batches = needless()
        adam = torch.optim.AdamW(model.parameters(), lr=0.02)
        return model, batches[:20], adam, torch.optim.lr_scheduler.StepLR(adam, 3, 0.5)

    model, batches, adam, schedule = parts()
    fit(
        model,
        batches,
        epochs=1,
        optimizer=adam,
        loss=F.mse_loss,
        scheduler=schedule,
        scheduler_unit="step",
        callbacks=[LayerL1(model, 0.3)],
    )
    own, batches, adam, schedule = parts()
    l1 = LayerL1(own, 0.3)
    for x, y in batches:
        adam.zero_grad()
        F.mse_loss(own(x), y).backward()
        adam.step()
        l1.step(adam)
        schedule.step()
    for name, tensor in own.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_strengths_follow_parameters_or_multiply_adds():
    model = net_of(
        ResConv2d(nn.Conv2d(4, 4, 3, padding=1, bias=False)),
        nn.MaxPool2d(2),
        ResConv2d(nn.Conv2d(4, 4, 1, bias=False)),
    )
    assert LayerL1(model, 2.0).strengths == {"0": 2.0, "2": 2.0}
    by_weights = LayerL1(model, 2.0, weighting="parameters").strengths
    assert by_weights == pytest.approx({"0": 2 * 144 / 80, "2": 2 * 16 / 80})
    example = torch.zeros(1, 4, 6, 6)
    by_work = LayerL1(model, 2.0, weighting="multiply_adds", example=example).strengths
    first, second = 144 * 36, 16 * 9
    mean = (first + second) / 2
    assert by_work == pytest.approx({"0": 2 * first / mean, "2": 2 * second / mean})


def deep(depth=20):
    """A plain network that is hard to train, and two classes of images: stripes either way."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    model = net_of(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    labels = torch.arange(128) % 2
    waves = torch.sin(torch.arange(12) * 1.3 + torch.rand(128, 1) * 6)
    stripes = torch.where(labels[:, None, None] == 0, waves[:, None, :], waves[:, :, None])
    images = (stripes + 0.7 * torch.randn(128, 12, 12))[:, None]
    return model, TensorBatches(images, labels, batch_size=32, seed=0)


def test_a_deep_plain_network_trains_further_with_shortcuts():
    losses = {}
    for name in ("plain", "resconv"):
        model, batches = deep()
        if name == "resconv":
            rows = convert(model, keep="weights")
            assert sum(row.reason is None for row in rows) == 19
        sgd = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        losses[name] = fit(model, batches, epochs=4, optimizer=sgd, loss=F.cross_entropy, seed=0)[
            -1
        ]
    assert losses["resconv"] < 0.5 * losses["plain"], losses


def test_what_remains_is_pruned_quantized_compressed_and_exported(tmp_path):
    model = net()
    convert(model)
    with torch.no_grad():
        model.conv1.scale.zero_()
    remove(model)
    fuse(model)
    small = tersenet.compress(model, Plan.of(sparsity=0.5, quantizer="cws", k=8))
    rows = {row.name: row for row in report(small)}
    assert "conv1" not in rows
    assert rows["conv2"].k <= 8
    assert rows["conv2"].density == pytest.approx(0.5, abs=0.01)
    tersenet.export(small, (IMAGES,), tmp_path / "net.terse")
    network = tersenet.Network.load(tmp_path / "net.terse")
    check(network, small, (IMAGES,), reference=tersenet.decompress(small))


@pytest.mark.parametrize("step", ["prune", "compress"])
def test_reduced_weights_are_neither_converted_nor_fused(step):
    model = net()
    convert(model, "conv*")
    plan = Plan.of("conv2*", sparsity=0.9, quantizer="cws", k=4)
    if step == "prune":
        tersenet.prune(model, Plan.of("conv2*", sparsity=0.5))
    else:
        model = tersenet.compress(model, plan)
    with pytest.raises(ValueError, match=r"pruned, quantized or compressed.*\(layer 'conv2'\)"):
        fuse(model)
    assert isinstance(model.conv1, ResConv2d)
    with torch.no_grad():
        model.conv2.scale.zero_()
        expected = model(IMAGES)
        remove(model)
        assert torch.equal(model(IMAGES), expected)

    pruned = net()
    tersenet.prune(pruned, Plan.of("conv2", sparsity=0.5))
    parametrizations.weight_norm(pruned.point)
    rows = {row.name: row.reason for row in convert(pruned, ["conv*", "point"])}
    assert rows["conv1"] is None
    assert "pruned" in rows["conv2"]
    assert "computed" in rows["point"]


def test_layers_copy_pickle_and_load():
    model = net()
    convert(model)
    normalize(model, [(IMAGES, torch.zeros(4))])
    expected = model(IMAGES)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(IMAGES), expected)
        with torch.no_grad():
            other.conv1.scale.zero_()
    assert torch.equal(model(IMAGES), expected)
    other = net(seed=1)
    convert(other)
    normalize(other, [(IMAGES, torch.zeros(4))])
    with torch.no_grad():
        model.conv2.scale.fill_(0.25)
    other.load_state_dict(model.state_dict())
    assert other.conv2.scale.item() == 0.25
    assert torch.equal(other(IMAGES), model(IMAGES))


@pytest.mark.parametrize("bn", [False, True])
def test_parameters_are_drawn_anew_and_factors_as_they_began(bn):
    torch.manual_seed(0)
    norm = lively(nn.BatchNorm2d(4)) if bn else None
    layer = ResConv2d(nn.Conv2d(4, 4, 3, padding=1).train(), norm, scale=0.5)
    with torch.no_grad():
        layer.scale.zero_()
    torch.manual_seed(7)
    layer.reset_parameters()
    torch.manual_seed(7)
    fresh = ResConv2d(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4) if bn else None, scale=0.5)
    assert {name: tensor.tolist() for name, tensor in layer.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in fresh.state_dict().items()
    }
    assert ResConv2d.from_conv(nn.Conv2d(4, 4, 1), scale=-2.0).reset_parameters() is None


@pytest.mark.parametrize("keep", ["function", "weights"])
def test_converted_models_start_again_under_their_masks(keep):
    models = []
    for seed in (0, 1):
        model = net(seed)
        convert(model, keep=keep)
        with torch.no_grad():
            for scale in scales(model).values():
                scale.fill_(0.25)
        tersenet.prune(model, Plan.of("conv*", sparsity=0.5))
        reinitialize(model, seed=3)
        assert [scale.item() for scale in scales(model).values()] == [1.0] * 4
        assert (model.conv1.conv.weight == 0).float().mean() == 0.5
        models.append(model)
    first, second = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    reset_parameters(convertible())


def made_again(model, state, stage):
    """What `tersenet.layer_pruning` says: the steps anew, on any data, before the state."""
    convert(model)
    normalize(model, [(torch.zeros(1, 3, 12, 12), torch.zeros(1))])
    for name, scale in scales(model).items():
        if not any(key.startswith(f"{name}.") for key in state):
            scale.detach().zero_()
    if stage != "normalize":
        remove(model)
    if stage == "fuse":
        fuse(model)
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("stage", ["normalize", "remove", "remove all", "fuse"])
def test_a_training_goes_on_from_its_state_in_a_fresh_model(stage, tmp_path):
    def parts(model):
        sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        return model, sgd, [LayerL1(model, 0.1)] if scales(model) else []

    def trained(model, sgd, callbacks):
        data = [(IMAGES, torch.tensor([0, 1, 1, 0]))] * 2
        fit(model, data, epochs=1, optimizer=sgd, loss=F.cross_entropy, callbacks=callbacks)

    model = net()
    convert(model)
    normalize(model, TensorBatches(IMAGES, torch.zeros(4), batch_size=2))
    trained(*parts(model))
    with torch.no_grad():
        for name, scale in scales(model).items():
            if stage != "normalize" and (stage == "remove all" or name in ("conv2", "seen")):
                scale.zero_()
    if stage != "normalize":
        remove(model)
    if stage == "fuse":
        fuse(model)
    going = parts(model)
    trained(*going)
    torch.save({"model": model.state_dict(), "sgd": going[1].state_dict()}, tmp_path / "state.pt")

    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = parts(made_again(net(seed=1), state["model"], stage))
    other[1].load_state_dict(state["sgd"])
    for run in (going, other):
        trained(*run)
    assert str(other[0]) == str(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other[0].state_dict()[name]), name

    torch.save(model, tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert torch.equal(whole(IMAGES), model(IMAGES))


def test_converting_twice_draws_nothing_and_gives_the_same_bits():
    first, second = net(), net()
    before = torch.get_rng_state()
    convert(first)
    convert(second)
    fuse(first)
    fuse(second)
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize(
    ("conv", "bn", "scale", "message"),
    [
        (nn.Linear(2, 2), None, 1.0, "layer is Linear"),
        (nn.Conv2d(2, 4, 1), None, 1.0, "channels are 2 -> 4"),
        (nn.Conv2d(2, 2, 1, stride=2), None, 1.0, "stride is 2 x 2"),
        (nn.Conv2d(2, 2, 4, padding="same"), None, 1.0, "kernel is 4 x 4"),
        (nn.Conv2d(2, 2, 3, padding="valid"), None, 1.0, "padding is valid, expected 1 x 1"),
        (nn.Conv2d(2, 2, 3, padding=1, dilation=2), None, 1.0, "expected 2 x 2"),
        (nn.Conv2d(2, 2, 1, dtype=torch.complex64), None, 1.0, "complex64"),
        (nn.Conv2d(2, 2, 1, device="meta"), None, 1.0, "on meta"),
        (nn.Conv2d(2, 2, 1), nn.BatchNorm2d(3), 1.0, "3 channels, expected 2"),
        (nn.Conv2d(2, 2, 1), nn.BatchNorm1d(2), 1.0, "norm is BatchNorm1d"),
        (
            nn.Conv2d(2, 2, 1),
            nn.BatchNorm2d(2, track_running_stats=False),
            1.0,
            "no running statistics",
        ),
        (nn.Conv2d(2, 2, 1), None, float("nan"), "scale is nan"),
    ],
)
def test_a_shortcut_that_does_not_fit_is_an_error(conv, bn, scale, message):
    for make in (ResConv2d, ResConv2d.from_conv):
        with pytest.raises(ValueError, match=message):
            make(conv, bn, scale=scale)


def test_bad_arguments_are_errors():
    with pytest.raises(ValueError, match="scale is 0"):
        ResConv2d.from_conv(nn.Conv2d(2, 2, 1), scale=0.0)
    for options, message in [
        ({"layers": "nothing*"}, "matches no layer"),
        ({"keep": "norms"}, "keep is 'norms'"),
        ({"pairs": {"absent": None}}, "'absent' is not there, expected a Conv2d"),
        ({"pairs": {"head": None}}, "'head' is Linear, expected a Conv2d"),
        ({"pairs": {"conv1": "conv2"}}, "'conv2' is Conv2d, expected a BatchNorm2d"),
        ({"pairs": {"conv1": "bn1", "conv2": "bn1"}}, "'bn1' is named 2 times"),
    ]:
        model = net()
        with pytest.raises(ValueError, match=message):
            convert(model, **options)
        assert not scales(model)
    with pytest.raises(ValueError, match="no Conv2d left"):
        convert(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="itself is a Conv2d"):
        convert(nn.Conv2d(2, 2, 1))
    layer = ResConv2d(nn.Conv2d(2, 2, 1))
    with pytest.raises(ValueError, match=r"has no ResConv2d.*\(convert first\)"):
        remove(net())
    for function in (remove, fuse):
        with pytest.raises(TypeError, match="itself is a ResConv2d"):
            function(layer)
    example = torch.zeros(1, 2, 3, 3)
    for model, options, message in [
        (net(), {}, "has no ResConv2d"),
        (layer, {"strength": -1.0}, "strength is -1"),
        (layer, {"strength": float("nan")}, "strength is nan"),
        (layer, {"weighting": "flops"}, "weighting is 'flops'"),
        (layer, {"weighting": "multiply_adds"}, "with no example"),
        (layer, {"weighting": "parameters", "example": example}, "with an example"),
    ]:
        with pytest.raises(ValueError, match=message):
            LayerL1(model, **{"strength": 1.0, **options})
    with pytest.raises(ValueError, match="not the optimizer's"):
        LayerL1(layer, 1.0).step(torch.optim.SGD(layer.conv.parameters(), lr=0.1))
