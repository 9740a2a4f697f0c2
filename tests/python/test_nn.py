"""Compressed layers agree with stock layers, and live like other modules."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch import Tensor, nn

from tersenet.errors import FormatError
from tersenet.nn import (
    COMPRESSED,
    CompressedConv1d,
    CompressedConv2d,
    CompressedEmbedding,
    CompressedLayer,
    CompressedLinear,
)

settings.register_profile("tersenet", deadline=None, max_examples=60)
settings.load_profile("tersenet")


def sparsified(layer: nn.Module, seed: int = 0, k: int = 8) -> nn.Module:
    """Give a layer few values, most of them zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = layer.weight
        values = torch.randn(k, generator=generator, dtype=torch.float32).to(weight.dtype)
        weight.copy_(values[torch.randint(0, k, weight.shape, generator=generator)])
        weight *= torch.rand(weight.shape, generator=generator) < 0.4
    return layer


def bits(tensor: Tensor) -> np.ndarray:
    size = tensor.element_size()
    signed = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    return tensor.detach().contiguous().view(signed).numpy()


LAYERS = [
    pytest.param(lambda **kw: nn.Linear(7, 5, **kw), (3, 7), id="linear"),
    pytest.param(lambda **kw: nn.Conv1d(4, 6, 3, groups=2, **kw), (2, 4, 9), id="conv1d"),
    pytest.param(lambda **kw: nn.Conv2d(4, 6, 3, padding=1, **kw), (2, 4, 5, 6), id="conv2d"),
    pytest.param(lambda **kw: nn.Embedding(11, 4, padding_idx=2, **kw), (3,), id="embedding"),
]


def example(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    if isinstance(layer, nn.Embedding | CompressedEmbedding):
        return torch.randint(0, 11, shape)
    return torch.randn(shape)


def compressed(make: Any, **kwargs: Any) -> tuple[nn.Module, CompressedLayer]:
    stock = sparsified(make(**kwargs))
    return stock, COMPRESSED[type(stock)].from_dense(stock)


@st.composite
def convolutions(draw: st.DrawFn, ndim: int) -> tuple[nn.Module, Tensor]:
    groups = draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(ndim))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(ndim))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    padding: Any = draw(st.sampled_from(["same", "valid"]) | st.tuples(*[st.integers(0, 2)] * ndim))
    is_same = padding == "same"
    stride = (1,) * ndim if is_same else tuple(draw(st.integers(1, 3)) for _ in range(ndim))
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    sizes = [draw(st.integers(max(s, 3), s + 6)) for s in span]
    make = nn.Conv1d if ndim == 1 else nn.Conv2d
    layer = make(
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    batch = draw(st.sampled_from([(), (1,), (2,), (0,)]))
    seed = draw(st.integers(0, 99))
    x = torch.randn(*batch, layer.in_channels, *sizes, generator=torch.manual_seed(seed))
    return sparsified(layer, seed), x


def check_within_bound(stock: nn.Module, layer: CompressedLayer, x: Tensor) -> None:
    """Compare with float64: products within the derived bound, one more rounding for the bias."""
    y = layer(x)
    double = copy.deepcopy(stock).double()
    reference = double(x.double())
    magnitudes = copy.deepcopy(double)
    with torch.no_grad():
        for parameter in magnitudes.parameters():
            parameter.abs_()
        total = magnitudes(x.double().abs())
    n = stock.weight[0].numel()
    assert y.shape == reference.shape
    assert y.is_contiguous()
    assert ((y - reference).abs() <= (n + 3) * 2.0**-24 * total + (n + 1) * 2.0**-149).all()


@given(convolutions(1))
def test_conv1d_agrees_with_torch(case: tuple[nn.Module, Tensor]):
    stock, x = case
    if x.shape[0] == 0 and x.dim() == 3 and stock.padding_mode != "zeros":
        return  # torch pads no empty batch by reflection
    check_within_bound(stock, CompressedConv1d.from_dense(stock), x)


@given(convolutions(2))
def test_conv2d_agrees_with_torch(case: tuple[nn.Module, Tensor]):
    stock, x = case
    if x.shape[0] == 0 and x.dim() == 4 and stock.padding_mode != "zeros":
        return
    check_within_bound(stock, CompressedConv2d.from_dense(stock), x)


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.lists(st.integers(0, 4), max_size=3),
    st.booleans(),
    st.integers(0, 9),
)
def test_linear_agrees_with_torch(ncols: int, nrows: int, batch: list[int], bias: bool, seed: int):
    stock = sparsified(nn.Linear(ncols, nrows, bias=bias), seed)
    x = torch.randn(*batch, ncols, generator=torch.manual_seed(seed))
    check_within_bound(stock, CompressedLinear.from_dense(stock), x)


def test_embedding_is_bit_equal_to_torch():
    stock, layer = compressed(LAYERS[3].values[0])
    ids = torch.randint(0, 11, (4, 3))
    np.testing.assert_array_equal(bits(layer(ids)), bits(stock(ids)))
    assert layer.padding_idx == 2


@pytest.mark.parametrize(("make", "shape"), LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layer_holds_its_payload_alone_and_gives_back_the_stock_layer(make, shape, dtype):
    stock, layer = compressed(make, dtype=dtype)
    assert [name for name, _ in layer.named_buffers()] == ["payload"]
    assert [name for name, _ in layer.named_parameters()] in ([], ["bias"])
    dense = layer.to_dense()
    assert type(dense) is type(stock)
    assert repr(dense) == repr(stock)
    assert dense.weight.dtype == dtype
    np.testing.assert_array_equal(bits(dense.weight), bits(stock.weight))
    np.testing.assert_array_equal(bits(layer.weight), bits(stock.weight))
    if not isinstance(stock, nn.Embedding):
        assert dense.bias is stock.bias


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_special_values_survive_in_every_type(make, shape):
    patterns = {
        torch.float32: [0x7FC00001, 0x7F800001, 0x80000000, 0x7F800000, 0xFF800000, 1],
        torch.bfloat16: [0x7FC1, 0x7F81, 0x8000, 0x7F80, 0xFF80, 1],
        torch.float16: [0x7E00, 0xFE00, 0x8000, 0x7C00, 0xFC00, 1],
    }
    for dtype, values in patterns.items():
        stock = sparsified(make(dtype=dtype))
        flat = bits(stock.weight).reshape(-1)
        flat[: len(values)] = np.array(values, f"uint{8 * flat.itemsize}").view(flat.dtype)
        dense = COMPRESSED[type(stock)].from_dense(stock).to_dense()
        np.testing.assert_array_equal(bits(dense.weight), bits(stock.weight))


@pytest.mark.parametrize(("make", "shape"), LAYERS[:3])
def test_gradients_reach_the_input_and_the_bias(make, shape):
    stock = sparsified(make())
    with torch.no_grad():  # small integers: sums are exact in any order
        for parameter in stock.parameters():
            parameter.mul_(4).round_()
    layer = copy.deepcopy(COMPRESSED[type(stock)].from_dense(stock))
    x = torch.randint(-9, 9, shape).float().requires_grad_()
    reference = x.detach().clone().requires_grad_()
    (layer(x) ** 2).sum().backward()
    (stock(reference) ** 2).sum().backward()
    np.testing.assert_array_equal(x.grad, reference.grad)
    np.testing.assert_array_equal(layer.bias.grad, stock.bias.grad)
    assert not layer.payload.requires_grad


@pytest.mark.parametrize(("make", "shape"), LAYERS)
@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda layer: pickle.loads(pickle.dumps(layer)), id="pickle"),
        pytest.param(lambda layer: _through_torch_save(layer), id="torch.save"),
    ],
)
def test_copies_compute_the_same(make, shape, copied):
    _, layer = compressed(make)
    x = example(layer, shape)
    twins = copied(nn.ModuleList([layer, layer]))
    assert twins[0] is twins[1]
    np.testing.assert_array_equal(bits(twins[0](x)), bits(layer(x)))
    assert twins[0].payload.data_ptr() == twins[0]._stored.tensor.data_ptr()


def _through_torch_save(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def test_deep_copies_share_the_payload_and_not_the_bias():
    _, layer = compressed(LAYERS[0].values[0])
    twin = copy.deepcopy(layer)
    assert twin.payload is layer.payload
    assert twin.bias is not layer.bias


def test_layers_that_share_a_payload_share_it_after_pickling():
    stock, layer = compressed(LAYERS[0].values[0])
    other = CompressedLinear.from_dense(stock, layer.stored())
    first, second = pickle.loads(pickle.dumps([layer, other]))
    assert first.payload is second.payload


@pytest.mark.parametrize(("make", "shape"), LAYERS)
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_of_another_size_loads(make, shape, assign):
    _, layer = compressed(make)
    x = example(layer, shape)
    other_stock = make()
    other = COMPRESSED[type(other_stock)].from_dense(other_stock)
    assert len(other.payload) != len(layer.payload)
    twin, before = copy.deepcopy(layer), layer(x)
    file = io.BytesIO()
    torch.save(other.state_dict(), file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    assert str(twin.load_state_dict(state, assign=assign)) == "<All keys matched successfully>"
    np.testing.assert_array_equal(bits(twin(x)), bits(other(x)))
    np.testing.assert_array_equal(bits(layer(x)), bits(before))
    assert twin.payload._version == 0


def test_a_state_dict_that_does_not_fit_is_refused_and_nothing_changes():
    _, layer = compressed(LAYERS[0].values[0])
    x = torch.randn(3, 7)
    before = layer(x)
    state = layer.state_dict()
    wide = CompressedLinear.from_dense(nn.Linear(8, 5))
    damaged = state["payload"].clone()
    damaged[len(damaged) // 2] ^= 1
    for payload, message in (
        (wide.payload, r"payload is a matrix \[5, 8\], expected \[5, 7\]"),
        (damaged, "payload"),
        (torch.randn(4), r"payload: torch\.float32"),
    ):
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict({**state, "payload": payload})
        np.testing.assert_array_equal(bits(layer(x)), bits(before))
    with pytest.raises(RuntimeError, match=r'Missing key.*"payload"'):
        layer.load_state_dict({"bias": state["bias"]})
    with pytest.raises(FormatError):
        pickle.loads(pickle.dumps(layer).replace(bytes(state["payload"][-8:]), b"12345678"))


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_changing_the_type_changes_what_a_stock_layer_would_change(make, shape):
    stock, layer = compressed(make)
    x = example(layer, shape)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        lower = copy.deepcopy(layer).to(dtype)
        assert lower.payload is layer.payload
        expected = copy.deepcopy(stock).to(dtype)
        np.testing.assert_array_equal(bits(lower.to_dense().weight), bits(expected.weight))
        if isinstance(stock, nn.Embedding):
            assert torch.equal(lower(x), expected(x))
            continue
        low = x.to(dtype)
        y = lower(low)
        assert y.dtype == dtype
        product = copy.deepcopy(layer)
        product.bias = None  # summed in float32, rounded once; then the bias in that type
        shape_of_bias = (
            -1,
            *[1] * (y.dim() - 2 if isinstance(stock, nn.Conv1d | nn.Conv2d) else 0),
        )
        bias = lower.bias.reshape(shape_of_bias)
        assert torch.equal(y, product(low.float()).to(dtype) + bias)
    kept = copy.deepcopy(layer).type(torch.float64).share_memory()
    assert kept.payload is layer.payload


def test_a_layer_on_a_gpu_is_refused():
    _, layer = compressed(LAYERS[0].values[0])
    with pytest.raises(ValueError, match="moved to meta, expected the cpu"):
        layer.to("meta")
    assert layer(torch.randn(3, 7)).shape == (3, 5)
    with pytest.raises(ValueError, match="weight is on meta"):
        CompressedLinear.from_dense(nn.Linear(3, 4, device="meta"))


def test_a_default_device_does_not_matter():
    stock = sparsified(nn.Linear(7, 5))
    with torch.device("meta"):
        layer = CompressedLinear.from_dense(stock).half().float()
        assert layer.payload.device.type == "cpu"
        assert torch.equal(layer.weight, stock.weight)
        dense = copy.deepcopy(layer).to_dense()
    assert torch.equal(dense.weight, stock.weight)


def test_autocast_leaves_the_type_of_the_input():
    stock, layer = compressed(LAYERS[0].values[0])
    x = torch.randn(3, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer(x.float()))
        assert layer(stock(x)[:, :1].expand(3, 7)).dtype == torch.bfloat16


def test_a_payload_replaced_through_functional_call_is_used():
    _, layer = compressed(LAYERS[0].values[0])
    other = CompressedLinear.from_dense(nn.Linear(7, 5))
    x = torch.randn(3, 7)
    found = torch.func.functional_call(layer, {"payload": other.payload.clone()}, x)
    expected = torch.func.functional_call(other, {"bias": layer.bias}, x)
    assert torch.equal(found, expected)


def test_wrong_arguments_are_named():
    _, linear = compressed(LAYERS[0].values[0])
    _, conv = compressed(LAYERS[2].values[0])
    with pytest.raises(ValueError, match=r"x has shape \[3, 6\], expected \[..., 7\]"):
        linear(torch.randn(3, 6))
    with pytest.raises(ValueError, match=r"x has shape \[2, 3, 5, 5\], expected \[N, 4, size"):
        conv(torch.randn(2, 3, 5, 5))
    with pytest.raises(ValueError, match=r"conv: width 2 .* expected room for the kernel"):
        CompressedConv2d.from_dense(nn.Conv2d(1, 1, 3))(torch.randn(1, 1, 5, 2))
    with pytest.raises(ValueError, match="module is Conv2d, expected Linear"):
        CompressedLinear.from_dense(nn.Conv2d(1, 1, 3))
    with pytest.raises(ValueError, match=r"max_norm is 1\.0, expected None"):
        CompressedEmbedding.from_dense(nn.Embedding(3, 4, max_norm=1.0))
    with pytest.raises(ValueError, match="weight is float64, expected values that float32 holds"):
        CompressedLinear.from_dense(nn.Linear(3, 4, dtype=torch.float64))


def test_a_model_compiles_without_breaks_and_exports_to_a_node_a_layer():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = compressed(LAYERS[3].values[0])[1]
            self.conv = compressed(LAYERS[1].values[0])[1]
            self.linear = compressed(LAYERS[0].values[0])[1]

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embedding(ids).movedim(1, 2)
            return self.linear(F.relu(self.conv(x)))

    net, ids = Net().eval(), torch.randint(0, 11, (2, 9))
    explained = torch._dynamo.explain(net)(ids)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    np.testing.assert_array_equal(bits(compiled(ids)), bits(net(ids)))
    program = torch.export.export(net, (ids,))
    nodes = [str(n.target) for n in program.graph.nodes if "tersenet" in str(n.target)]
    assert nodes == [f"tersenet.{name}.default" for name in ("rows", "conv", "matmul")]
    np.testing.assert_array_equal(bits(program.module()(ids)), bits(net(ids)))


def test_training_with_compile_gives_the_gradient_of_the_bias():
    _, layer = compressed(LAYERS[2].values[0])
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    (layer(x) ** 2).sum().backward()
    expected = layer.bias.grad.clone(), x.grad.clone()
    layer.zero_grad()
    x.grad = None
    (torch.compile(layer, backend="aot_eager", fullgraph=True)(x) ** 2).sum().backward()
    torch.testing.assert_close((layer.bias.grad, x.grad), expected)
