"""Every operator that can be exported, with several settings, against torch in float64."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exported import Call, check, graph_of, lively, ops
from models import SmallNet, small_net
from torch import nn

import tersenet
from tersenet.exporting.lowering import LOWERINGS

IMAGE, LENGTH, TOKENS = (4, 9, 10), (4, 11), (6, 8)


def ids(high, *shape):
    return high, shape


def conv2d(**settings):
    return nn.Conv2d(4, 6, settings.pop("kernel_size", 3), **settings)


def activations():
    modules = (
        *(nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.2), nn.Sigmoid()),
        *(nn.Tanh(), nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.Hardswish()),
        *(nn.Hardsigmoid(), nn.Hardtanh(-0.3, 0.7), nn.ELU(0.7), nn.Mish(), nn.SELU()),
        *(nn.CELU(1.3), nn.Softplus(), nn.Softplus(2, 5), nn.LogSigmoid(), nn.PReLU()),
        *(nn.PReLU(4), nn.Softsign(), nn.Tanhshrink(), nn.GLU(1), nn.Softmin(1)),
    )
    return {f"{type(m).__name__}-{n}": (m, IMAGE) for n, m in enumerate(modules)}


class Attention(nn.Module):
    """Attention of tokens to four of them, with its mean weights."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x[:, :4], x[:, :4])


def table(rows):
    """A look-up of rows of whole numbers, in any type."""
    return nn.Embedding(rows, 4, _weight=torch.arange(4.0 * rows).reshape(rows, 4) % 11)


def ones(x, *shape):
    return torch.ones(shape, dtype=x.dtype)


CASES = {
    **activations(),
    "conv": (conv2d(), IMAGE),
    "conv_stride": (conv2d(stride=(2, 3), padding=(1, 0), bias=False), IMAGE),
    "conv_dilation": (conv2d(dilation=2, padding=2), IMAGE),
    "conv_groups": (conv2d(groups=2, padding=1), IMAGE),
    "conv_depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1), IMAGE),
    "conv_same": (conv2d(padding="same"), IMAGE),
    "conv_same_even": (conv2d(kernel_size=(4, 2), padding="same"), IMAGE),
    "conv_reflect": (conv2d(padding=2, padding_mode="reflect"), IMAGE),
    "conv_circular": (conv2d(padding=1, padding_mode="circular"), IMAGE),
    "conv_1x1": (conv2d(kernel_size=1), IMAGE),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), LENGTH),
    "conv1d_same": (nn.Conv1d(4, 6, 4, padding="same", dilation=2), LENGTH),
    "conv1d_replicate": (nn.Conv1d(4, 6, 3, padding=2, padding_mode="replicate"), LENGTH),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), IMAGE),
    "transposed_stride": (
        nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), padding=1, output_padding=(1, 2)),
        IMAGE,
    ),
    "transposed_groups": (nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2, bias=False), IMAGE),
    "transposed1d": (nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1), LENGTH),
    "linear": (nn.Linear(8, 5), TOKENS),
    "linear_flat": (nn.Linear(8, 5, bias=False), (8,)),
    "bilinear_by_hand": (
        Call(lambda x, y: (x @ ones(x, 8, 3)) * (y @ ones(x, 8, 3))),
        TOKENS,
        TOKENS,
    ),
    "embedding": (nn.Embedding(30, 5, padding_idx=0), ids(30, 7)),
    "embedding_of_reshaped": (
        Call(lambda i: F.embedding(i.flatten(1), torch.eye(9))),
        ids(9, 2, 3),
    ),
    "embedding_of_slices": (
        Call(lambda i: table(9)(i[:, 1:-2]) + table(30)(i[:, 2:])[:, 1:]),
        ids(9, 7),
    ),
    "embedding_of_columns": (
        Call(lambda i: table(9)(i[:, 0]) * table(9)(i.unbind(1)[2]) + table(9)(i[:, ::2]).sum(1)),
        ids(9, 5),
    ),
    "embedding_of_joined": (
        Call(lambda i, j: table(9)(torch.cat([i, j[:, :1], i.chunk(2, 1)[1]], 1))),
        *(ids(9, 4), ids(5, 3)),
    ),
    "embedding_of_stacked": (
        Call(lambda i, j: table(9)(torch.stack([i, j], 1)).flatten(2)),
        *(ids(9, 4), ids(9, 4)),
    ),
    "embedding_of_turned": (
        Call(lambda i: table(9)(i.permute(0, 2, 1)) + table(9)(i.transpose(1, 2).contiguous())),
        ids(9, 2, 3),
    ),
    "embedding_of_batch_last": (Call(lambda i: table(9)(i.T).transpose(0, 1)), ids(9, 5)),
    "embedding_of_shifted": (Call(lambda i: table(9)(i.roll(2, 1).repeat(1, 2))), ids(9, 5)),
    "embedding_of_repeated": (
        Call(lambda i: table(9)(i[:, :1].expand(-1, 4).repeat_interleave(2, 1))),
        ids(9, 5),
    ),
    "embedding_with_a_first_id": (
        Call(lambda i: table(9)(torch.cat([i.new_full((i.shape[0], 1), 7), i], 1))),
        ids(9, 5),
    ),
    "embedding_with_constant_ids": (
        Call(lambda i: table(9)(torch.cat([torch.arange(3).expand(i.shape[0], 3), i], 1))),
        ids(9, 5),
    ),
    "embedding_of_one_kind": (
        Call(lambda i: table(9)(i) + table(2)(torch.zeros_like(i)) * table(2)(torch.ones_like(i))),
        ids(9, 5),
    ),
    "conv_of_sliced_letters": (
        Call(lambda i: F.conv1d(table(9)(i[:, 1:]).mT, torch.ones(2, 4, 3).cumsum(0))),
        ids(9, 8),
    ),
    "batch_norm": (nn.BatchNorm2d(4), IMAGE),
    "batch_norm_1d": (nn.BatchNorm1d(4, affine=False), LENGTH),
    "conv_norm_relu": (nn.Sequential(conv2d(), nn.BatchNorm2d(6), nn.ReLU()), IMAGE),
    "linear_norm_tanh": (nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Tanh()), (8,)),
    "linear_norm_of_tokens": (nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(6)), TOKENS),
    "transposed_norm": (nn.Sequential(nn.ConvTranspose2d(4, 6, 2, 2), nn.BatchNorm2d(6)), IMAGE),
    "norm_norm": (nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()), IMAGE),
    "clamp": (Call(lambda x: x.clamp(-0.5, 0.25)), IMAGE),
    "clamp_min": (Call(lambda x: x.clamp(min=0.1) + x.clamp_max(0.3)), IMAGE),
    "softmax": (nn.Softmax(1), IMAGE),
    "softmax_last": (nn.Softmax(-1), TOKENS),
    "log_softmax": (nn.LogSoftmax(-1), TOKENS),
    "max_pool": (nn.MaxPool2d(3, 2, 1), IMAGE),
    "max_pool_ceil": (nn.MaxPool2d((3, 2), 2, ceil_mode=True), IMAGE),
    "max_pool_dilation": (nn.MaxPool2d(2, 1, dilation=2), IMAGE),
    "max_pool1d": (nn.MaxPool1d(3, 2, 1), LENGTH),
    "avg_pool": (nn.AvgPool2d(3, 2, 1), IMAGE),
    "avg_pool_ceil": (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), IMAGE),
    "avg_pool_divisor": (nn.AvgPool2d(2, divisor_override=3), IMAGE),
    "avg_pool1d": (nn.AvgPool1d(2, ceil_mode=True), LENGTH),
    "adaptive_avg": (nn.AdaptiveAvgPool2d((4, 3)), IMAGE),
    "adaptive_avg_one": (nn.AdaptiveAvgPool2d(1), IMAGE),
    "adaptive_avg_none": (nn.AdaptiveAvgPool2d((None, 2)), IMAGE),
    "adaptive_avg_1d": (nn.AdaptiveAvgPool1d(3), LENGTH),
    "adaptive_max": (nn.AdaptiveMaxPool2d((4, 3)), IMAGE),
    "adaptive_max_1d": (nn.AdaptiveMaxPool1d(5), LENGTH),
    "global_pools": (Call(lambda x: x.mean((2, 3)) + x.amax((-1, -2)) - x.sum((2, 3)) / 7), IMAGE),
    "arithmetic": (Call(lambda x, y: (x + 2 * y - 1) * y / (y.abs() + 1)), IMAGE, IMAGE),
    "reversed": (Call(lambda x: (2 - x) / 3 + 1 / (x * x + 1) + 2**x), IMAGE),
    "alpha": (Call(lambda x, y: torch.sub(torch.add(x, y, alpha=0.5), y, alpha=3)), IMAGE, IMAGE),
    "broadcast": (Call(lambda x, y: x[:, :, :1] * y + y[:, :1]), IMAGE, IMAGE),
    "constants": (Call(lambda x: x * torch.arange(4.0)[:, None, None] + torch.ones(9, 1)), IMAGE),
    "powers": (Call(lambda x: x**2 + (x.abs() + 1) ** -0.5 + x**3 + (x.abs() + 1) ** 1.7), IMAGE),
    "roots": (Call(lambda x: (x.abs() + 0.1).sqrt() + (x.abs() + 1).rsqrt() + x.square()), IMAGE),
    "exponential": (Call(lambda x: (-x).exp() + (x.abs() + 1).log() - x.neg()), IMAGE),
    "extremes": (Call(lambda x, y: torch.maximum(x, y) - torch.minimum(x, 2 * y)), IMAGE, IMAGE),
    "cat": (Call(lambda x, y: torch.cat([x, y, x[:, :2]], 1)), IMAGE, IMAGE),
    "stack": (Call(lambda x, y: torch.stack([x, y], -1)), LENGTH, LENGTH),
    "cat_zeros": (Call(lambda x: torch.cat([x, x.new_zeros(x.shape[0], 3, 9, 10)], 1)), IMAGE),
    "split": (
        Call(lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1) + x.chunk(2, 1)[0][:, :1]),
        IMAGE,
    ),
    "split_uneven": (Call(lambda x: x.split(4, -1)[2]), IMAGE),
    "slices": (Call(lambda x: x[:, 1:-1, ::2, -4:]), IMAGE),
    "select": (Call(lambda x: x[:, -1] + x[:, 0]), IMAGE),
    "unbind": (Call(lambda x: x.unbind(1)[2] * x.unbind(1)[0]), IMAGE),
    "flatten": (Call(lambda x: x.flatten(1) + x.reshape(x.shape[0], -1)), IMAGE),
    "views": (Call(lambda x: x.view(-1, 2, 2, 90).transpose(1, 3).squeeze(2).unsqueeze(-1)), IMAGE),
    "batch_into_rows": (Call(lambda x: x.reshape(-1, 8).mul(2).reshape(-1, 6, 8)), TOKENS),
    "permute": (Call(lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) + x), IMAGE),
    "batch_last": (Call(lambda x: x.movedim(0, -1).mul(3).movedim(-1, 0)), IMAGE),
    "matrix_transposes": (Call(lambda x: x.mT.clone() + x.transpose(-1, -2).detach()), TOKENS),
    "expand": (Call(lambda x: x[:, :1].expand(-1, 4, -1, -1) + x), IMAGE),
    "repeat": (Call(lambda x: x.repeat(1, 2, 1, 3)), IMAGE),
    "repeat_interleave": (Call(lambda x: x.repeat_interleave(3, 1)), IMAGE),
    "roll": (Call(lambda x: x.roll((1, -2), (2, 3))), IMAGE),
    "pixel_shuffle": (nn.PixelShuffle(2), IMAGE),
    "pixel_unshuffle": (nn.PixelUnshuffle(2), (3, 6, 8)),
    "channel_shuffle": (nn.ChannelShuffle(2), IMAGE),
    "reductions": (Call(lambda x: x.mean(1, True) * x.sum(1, True) + x.amin(-1, True)), IMAGE),
    "max_of_dim": (Call(lambda x: x.max(1).values - x.min(2, True).values[:, 0]), IMAGE),
    "var": (Call(lambda x: x.var(1) + x.std(1, unbiased=False)), IMAGE),
    "normalize": (Call(lambda x: F.normalize(x, dim=1)), IMAGE),
    "norms": (Call(lambda x: x.norm(dim=1) + x.norm(1, 2)[:, :1, :1] * x.norm(math.inf, 1)), IMAGE),
    "pad": (Call(lambda x: F.pad(x, (1, 2, 0, 3), value=0.5)), IMAGE),
    "pad_negative": (Call(lambda x: F.pad(x, (-1, 2, 1, -2))), IMAGE),
    "pad_channels": (Call(lambda x: F.pad(x, (0, 0, 0, 0, 1, 2))), IMAGE),
    "pad_reflect": (Call(lambda x: F.pad(x, (2, 1, 3, 0), "reflect")), IMAGE),
    "pad_replicate": (Call(lambda x: F.pad(x, (2, 1), "replicate")), LENGTH),
    "pad_circular": (Call(lambda x: F.pad(x, (2, 1, 3, 0), "circular")), IMAGE),
    "nearest": (nn.Upsample(scale_factor=2), IMAGE),
    "nearest_odd_factor": (
        nn.Upsample(scale_factor=1.7),
        (1, 30, 30),
    ),
    "nearest_size": (nn.Upsample((13, 7)), IMAGE),
    "nearest_1d": (nn.Upsample(scale_factor=1.5), LENGTH),
    "bilinear": (nn.Upsample(scale_factor=(2, 1.5), mode="bilinear"), IMAGE),
    "bilinear_corners": (nn.Upsample((13, 7), mode="bilinear", align_corners=True), IMAGE),
    "linear_1d": (nn.Upsample(17, mode="linear"), LENGTH),
    "layer_norm": (nn.LayerNorm(8), TOKENS),
    "layer_norm_two": (nn.LayerNorm((6, 8), elementwise_affine=False), TOKENS),
    "rms_norm": (nn.RMSNorm(8), TOKENS),
    "group_norm": (nn.GroupNorm(2, 4), IMAGE),
    "instance_norm": (nn.InstanceNorm2d(4, affine=True), IMAGE),
    "matmul": (Call(lambda x, y: x @ y.mT), TOKENS, TOKENS),
    "matmul_broadcast": (Call(lambda x, y: x[:, None] @ y[:, :, :, None]), TOKENS, TOKENS),
    "matmul_left_constant": (Call(lambda x: ones(x, 3, 6) @ x), TOKENS),
    "matmul_vector": (Call(lambda x: x @ ones(x, 8).cumsum(0)), TOKENS),
    "bmm": (Call(lambda x, y: torch.bmm(x, y.mT).softmax(-1)), TOKENS, TOKENS),
    "baddbmm": (
        Call(lambda x, y: torch.baddbmm(x[:, :, :6], x, y.mT, beta=2, alpha=0.5)),
        *(TOKENS, TOKENS),
    ),
    "addmm": (Call(lambda x: torch.addmm(ones(x, 3), x, ones(x, 8, 3))), (8,)),
    "einsum": (Call(lambda x, y: torch.einsum("bij,bkj->bik", x, y)), TOKENS, TOKENS),
    "attention": (Call(lambda x, y: F.scaled_dot_product_attention(x, y, y)), (2, 5, 8), (2, 7, 8)),
    "attention_causal": (
        Call(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3)),
        (2, 5, 8),
    ),
    "attention_scale_zero": (
        Call(lambda x, y: F.scaled_dot_product_attention(x, y, y, scale=0.0)),
        *((2, 5, 8), (2, 7, 8)),
    ),
    "attention_mask": (
        Call(lambda x: F.scaled_dot_product_attention(x, x, x, torch.ones(5, 5).tril().bool())),
        (2, 5, 8),
    ),
    "attention_added": (
        Call(lambda x, m: F.scaled_dot_product_attention(x, x, x, m)),
        *((2, 5, 8), (1, 5, 5)),
    ),
    "attention_grouped": (
        Call(lambda x, y: F.scaled_dot_product_attention(x, y, y, enable_gqa=True)),
        *((4, 5, 8), (2, 5, 8)),
    ),
    "masked_fill": (
        Call(lambda x: x.masked_fill(torch.ones(6, 8).triu(1).bool(), -math.inf).softmax(-1)),
        TOKENS,
    ),
    "where": (Call(lambda x: torch.where(torch.eye(6, 8) == 0, x, 0.25)), TOKENS),
    "attention_module": (Attention(), TOKENS),
    "no_operator": (nn.Dropout(), IMAGE),
}


def inputs_of(shapes, batch):
    made = []
    for shape in shapes:
        if isinstance(shape[-1], tuple):
            made.append(torch.randint(shape[0], (batch, *shape[1])))
        else:
            made.append(torch.randn(batch, *shape))
    return tuple(made)


@pytest.mark.parametrize("name", CASES)
def test_an_operator_computes_what_torch_does_for_any_batch(tmp_path, name):
    torch.manual_seed(1)
    model, *shapes = CASES[name]
    model = lively(copy.deepcopy(model))
    path = tmp_path / "x.terse"
    tersenet.export(model, inputs_of(shapes, 1), path)
    network = tersenet.Network.load(path)
    for batch in (1, 3, 17):
        check(network, model, inputs_of(shapes, batch))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_layer_is_decomposed(tmp_path, batch_first, norm_first):
    torch.manual_seed(0)
    model = Encoder(batch_first, norm_first).eval()
    tersenet.export(model, torch.randn(1, 5, 16), tmp_path / "x.terse")
    network = tersenet.Network.load(tmp_path / "x.terse")
    for batch in (1, 3):
        check(network, model, (torch.randn(batch, 5, 16),))


class Encoder(nn.Module):
    def __init__(self, batch_first=False, norm_first=False):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            16, 4, 32, batch_first=batch_first, norm_first=norm_first, activation="gelu"
        )
        self.is_batch_first = batch_first

    def forward(self, x):
        if self.is_batch_first:
            return self.layer(x)
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


def rounded(model, k=4):
    """The model with few distinct values in each matrix, most of them zero."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            scale = parameter.detach().abs().amax()
            kept = parameter.detach().abs() > scale / 2
            parameter.data = torch.where(kept, (parameter / scale * k).round() * scale / k, 0.0)
    return model


def test_compressed_layers_inside_an_encoder_layer_export(tmp_path):
    torch.manual_seed(0)
    model = rounded(Encoder().eval())
    small = tersenet.compress(model)
    tersenet.export(small, torch.randn(2, 5, 16), tmp_path / "x.terse")
    check(tersenet.Network.load(tmp_path / "x.terse"), model, (torch.randn(3, 5, 16),))
    with tersenet.open(tmp_path / "x.terse") as file:
        assert file.info("layer.linear1.weight")["kind"] == "matrix"


@pytest.mark.parametrize("goal", [None, "size", "speed"])
def test_plain_and_compressed_models_give_the_same_weights_and_names(tmp_path, goal):
    small = small_net()
    plain = tersenet.decompress(small)
    example = SmallNet.example()[:1]
    tersenet.export(small, example, tmp_path / "small.terse", goal=goal)
    tersenet.export(plain, example, tmp_path / "plain.terse", goal=goal)
    for name in ("small", "plain"):
        network = tersenet.Network.load(tmp_path / f"{name}.terse")
        check(network, plain, (SmallNet.example(),))
    with (
        tersenet.open(tmp_path / "small.terse") as a,
        tersenet.open(tmp_path / "plain.terse") as b,
    ):
        assert set(a) == set(b)
        assert set(a) - {"norm.scale", "norm.shift"} <= set(plain.state_dict())
        for name in a:
            x, y = a.get(name), b.get(name)
            assert a.info(name)["shape"] == b.info(name)["shape"]
            if isinstance(x, np.ndarray):
                assert np.array_equal(x, y)
            else:
                assert np.array_equal(x.decompress(), y.decompress())
        assert "head.weight" not in a  # tied to the embedding
        assert a.info("embedding.weight")["kind"] == "matrix"


def test_compressed_convolutions_over_a_length_take_their_bias_and_norm(tmp_path):
    tersenet.export(small_net(), SmallNet.example(), tmp_path / "x.terse")
    assert ops(tmp_path / "x.terse") == [
        *("embedding", "permute", "conv", "reshape", "conv", "reduce", "reshape"),
        *("linear", "linear", "linear"),
    ]


def test_what_follows_a_layer_goes_into_it(tmp_path):
    model = lively(nn.Sequential(conv2d(), nn.BatchNorm2d(6), nn.Dropout(), nn.ReLU()))
    tersenet.export(model, torch.randn(1, *IMAGE), tmp_path / "x.terse")
    ((op, _, weights, ints, _, _),) = graph_of(tmp_path / "x.terse")[1]
    assert op == "conv"
    assert weights == ["0.weight", "0.bias", "1.scale", "1.shift"]
    assert ints[-1] == 1
    norm = model[1]
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    values = tersenet.load(tmp_path / "x.terse")
    assert np.array_equal(values["0.weight"], model[0].weight.detach().numpy())
    for name, expected in (("1.scale", scale), ("1.shift", shift)):
        error = np.abs(values[name] - expected.detach().numpy())
        assert (error <= 2.0**-24 * np.abs(values[name])).all()


def test_what_somebody_else_sees_is_not_fused(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = conv2d(), nn.BatchNorm2d(6)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y).relu() + y

    model = lively(Twice())
    tersenet.export(model, torch.randn(1, *IMAGE), tmp_path / "x.terse")
    assert ops(tmp_path / "x.terse") == ["conv", "affine", "binary"]
    check(tersenet.Network.load(tmp_path / "x.terse"), model, inputs_of([IMAGE], 2))


def test_transposed_convolutions_with_few_values_are_stored_compressed(tmp_path):
    torch.manual_seed(0)
    model = rounded(nn.ConvTranspose2d(16, 32, 3, stride=2, groups=2).eval())
    tersenet.export(model, torch.randn(1, 16, 4, 4), tmp_path / "x.terse")
    check(tersenet.Network.load(tmp_path / "x.terse"), model, (torch.randn(2, 16, 4, 4),))
    with tersenet.open(tmp_path / "x.terse") as file:
        info = file.info("weight.forward")
        assert info["kind"] == "matrix"
        assert info["shape"] == (32, 8, 3, 3)


def test_several_inputs_and_outputs_keep_their_order_and_names(tmp_path):
    class Two(nn.Module):
        def forward(self, left, right):
            return right * 2, left + 1, left.sum(1)

    tersenet.export(Two(), (torch.ones(1, 3), torch.ones(1, 5)), tmp_path / "x.terse")
    network = tersenet.Network.load(tmp_path / "x.terse")
    assert list(network.inputs) == ["left", "right"]
    check(network, Two(), (torch.randn(4, 3), torch.randn(4, 5)))


def test_what_the_result_does_not_need_is_not_lowered(tmp_path):
    def forward(x):
        x.cumsum(1)
        return x + 1

    tersenet.export(Call(forward), torch.ones(1, 3), tmp_path / "x.terse")
    assert ops(tmp_path / "x.terse") == ["binary_scalar"]


def test_one_output_in_a_tuple_stays_in_a_tuple(tmp_path):
    tersenet.export(Call(lambda x: (x + 1,)), torch.ones(1, 3), tmp_path / "x.terse")
    result = tersenet.Network.load(tmp_path / "x.terse").run(np.ones((2, 3)))
    assert isinstance(result, tuple)
    assert len(result) == 1


def test_the_model_stays_as_it_was(tmp_path):
    model = nn.Sequential(conv2d(), nn.BatchNorm2d(6), nn.Dropout())
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    fast = torch.backends.mha.get_fastpath_enabled()
    tersenet.export(model, torch.randn(1, *IMAGE), tmp_path / "x.terse")
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert torch.backends.mha.get_fastpath_enabled() is fast
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


class Outside(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), Call(lambda x: x.cumsum(1)))

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (
            nn.Conv3d(2, 3, 2),
            (2, 4, 5, 6),
            r"in 0 \(Conv3d\).*: it is over 3 dimensions, expected 1 or",
        ),
        (
            nn.ConvTranspose3d(2, 3, 2),
            (2, 4, 5, 6),
            r"\(ConvTranspose3d\).*: it is over 3 dimensions",
        ),
        (nn.ConvTranspose2d(4, 6, 2, 2, 2), IMAGE, "its padding is 2, expected at most 1 for its"),
        (nn.ConvTranspose1d(4, 6, 1, padding=1), LENGTH, "its padding is 1, expected at most 0"),
    ],
)
def test_a_convolution_that_no_operator_computes_is_named_and_where(
    tmp_path, model, shape, message
):
    with pytest.raises(ValueError, match=message):
        tersenet.export(nn.Sequential(model), torch.zeros(2, *shape), tmp_path / "x.terse")
    assert not (tmp_path / "x.terse").exists()


def test_an_operator_without_a_counterpart_is_named_with_its_place(tmp_path):
    with pytest.raises(ValueError, match=r"aten.cumsum in inner.1 \(Call\), line \d+") as caught:
        tersenet.export(Outside(), torch.ones(1, 3), tmp_path / "x.terse")
    assert "expected one of: " in str(caught.value)
    assert " conv2d, " in str(caught.value)
    assert not (tmp_path / "x.terse").exists()


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (
            nn.Linear(3, 3).double(),
            torch.ones(1, 3),
            "weight is torch.float64, expected torch.float32",
        ),
        (nn.Linear(3, 3).half(), torch.ones(1, 3), "expected torch.float32"),
        (nn.Linear(3, 3, device="meta"), torch.ones(1, 3), "is on meta, expected the cpu"),
        (nn.Linear(3, 3), torch.ones(1, 3).double(), "input 0 of the example is torch.float64"),
        (nn.Linear(3, 3), (), "empty tuple"),
        (nn.Linear(3, 3), [[1.0]], "input 0 of the example is list"),
        (nn.Linear(3, 3), torch.ones(0, 3), "expected one batch"),
        (nn.Linear(3, 3), torch.ones(2, 4), "torch cannot trace the model"),
        (Call(lambda x: x[:1]), torch.ones(4, 3), "the batch|fixed or a multiple"),
        (Call(lambda x: {"a": x + 1}), torch.ones(2, 3), "expected a tensor or a tuple"),
        (Call(lambda x: x.double() * 2), torch.ones(2, 3), "float64"),
        (Call(lambda x: x + torch.rand(3)), torch.ones(2, 3), "random"),
        (Call(lambda x: F.batch_norm(x, None, None, training=True)), torch.ones(2, 3), "batch"),
        (Call(lambda x: x.max(1).indices * 1.0), torch.ones(2, 3), "max in.*int64|not computed"),
        (
            Call(lambda x: F.max_pool2d(x, 2, return_indices=True)[1]),
            torch.ones(2, 1, 4, 4),
            "int64|not",
        ),
        (Call(lambda x: F.dropout(x, 0.5, True)), torch.ones(2, 3), "drops numbers at random"),
        (Call(lambda x, i: x + i), (torch.ones(2, 3), torch.ones(2, 3).long()), "int64"),
        (lambda x: x, torch.ones(2, 3), "expected a torch module"),
    ],
)
def test_what_cannot_be_exported_says_why(tmp_path, model, example, message):
    with pytest.raises(ValueError, match=message):
        tersenet.export(model, example, tmp_path / "x.terse")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8])
@pytest.mark.parametrize("cast", [False, True])
def test_ids_of_any_width_are_taken(tmp_path, dtype, cast):
    torch.manual_seed(0)
    table = nn.Embedding(30, 5)
    model = Call(lambda i: table(i.long()) if cast else table(i))
    example = torch.randint(30, (4, 7)).to(dtype)
    tersenet.export(model, example[:1], tmp_path / "x.terse")
    network = tersenet.Network.load(tmp_path / "x.terse")
    assert [dtype for dtype, _ in network.inputs.values()] == ["int64"]
    for given in (example, example.long()):
        found = network.run(given.numpy())
        assert np.array_equal(found, table(example.int()).detach().numpy())


class Recommender(nn.Module):
    """Scores of a user and an item, the columns of one input, and of a kind that all have."""

    def __init__(self):
        super().__init__()
        self.user, self.item, self.kind = (
            nn.Embedding(50, 8),
            nn.Embedding(70, 8),
            nn.Embedding(3, 8),
        )
        self.score = nn.Linear(16, 1)

    def forward(self, pairs):
        user, item = self.user(pairs[:, 0]), self.item(pairs[:, 1])
        return self.score(torch.cat([user * item, self.kind(torch.zeros_like(pairs[:, 0]))], 1))


def test_columns_of_ids_are_looked_up_in_compressed_tables(tmp_path):
    torch.manual_seed(1)
    rule = tersenet.Rule(sparsity=0.5, quantizer="cws", k=8)
    plan = tersenet.Plan(dict.fromkeys(("user", "item", "kind", "score"), rule))
    model = tersenet.compress(Recommender().eval(), plan)
    assert isinstance(model.user, tersenet.nn.CompressedEmbedding)
    pairs = torch.stack([torch.randint(50, (9,)), torch.randint(70, (9,))], 1)
    tersenet.export(model, pairs[:1], tmp_path / "x.terse")
    network = tersenet.Network.load(tmp_path / "x.terse")
    check(network, model, (pairs,))
    with pytest.raises(ValueError, match=r"user \(embedding\): id 50, expected in \[0, 50\)"):
        network.run(pairs.fill_(50).numpy())


def test_a_batch_that_the_model_fixes_is_an_error(tmp_path):
    model = Call(lambda x: x * 2 if x.shape[0] > 2 else x)
    with pytest.raises(ValueError, match="for a batch of any size"):
        tersenet.export(model, torch.ones(2, 3), tmp_path / "x.terse")


def test_a_model_in_the_middle_of_pruning_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(30, 30))
    tersenet.prune(model, tersenet.Plan.of(sparsity=0.5))
    with pytest.raises(ValueError, match=r"layer '0'.*expected compress"):
        tersenet.export(model, torch.ones(1, 30), tmp_path / "x.terse")


def test_every_operator_has_a_schema_in_torch():
    for name in LOWERINGS:
        library, operator, overload = name.split(".")
        assert hasattr(getattr(getattr(torch.ops, library), operator), overload), name
