"""The torch operators: values, gradients, shapes, compile and export, and what a payload is."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn

from tersenet import CompressedMatrix, ops
from tersenet import payload as payload_registry
from tersenet.errors import FormatError
from tersenet.payload import Payload, matrix_of


def sparse(nrows: int, ncols: int, seed: int = 0, k: int = 16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    codebook = rng.standard_normal(k).astype(np.float32)
    dense = codebook[rng.integers(0, k, (nrows, ncols))]
    return np.where(rng.random((nrows, ncols)) < 0.3, dense, np.float32(0))


def payload_of(w: np.ndarray) -> Tensor:
    return Payload.of(CompressedMatrix.compress(w)).tensor


def bound(x: Tensor, w: Tensor) -> Tensor:
    n = w.shape[1]
    return (n + 2) * 2.0**-24 * (x.double().abs() @ w.double().abs().T) + n * 2.0**-149


@pytest.mark.parametrize("shape", [(4,), (3, 4), (0, 4), (2, 3, 4)])
def test_matmul_is_within_the_bound_of_a_float64_product(shape: tuple[int, ...]):
    w = sparse(6, 4)
    dense = torch.from_numpy(w).double()
    x = torch.randn(*shape)
    y = ops.matmul(x, payload_of(w), 6)
    expected = x.double() @ dense.T
    assert y.shape == expected.shape
    assert y.dtype == torch.float32
    assert ((y - expected).abs() <= bound(x, dense)).all()


def test_matmul_transposed_is_within_the_bound_of_a_float64_product():
    w = sparse(6, 5)
    dense = torch.from_numpy(w).double()
    g = torch.randn(7, 6)
    y = ops.matmul_transposed(g, payload_of(w), 5)
    assert ((y - g.double() @ dense).abs() <= bound(g, dense.T)).all()


def test_a_pruned_weight_contributes_nothing_where_x_is_not_finite():
    w = np.float32([[0, 1], [2, 0]])
    y = ops.matmul(torch.tensor([[torch.inf, 3.0]]), payload_of(w), 2)
    assert y.tolist() == ([[3.0, torch.inf]])
    back = ops.matmul_transposed(torch.tensor([[torch.nan, 1.0]]), payload_of(w), 2)
    np.testing.assert_array_equal(back.numpy(), np.float32([[2.0, torch.nan]]))


GEOMETRIES = (
    ops.Geometry((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ops.Geometry((3, 2), (2, 1), (1, 0, 2, 1), (1, 2), 2),
    ops.Geometry((1, 5), (1, 3), (0, 0, 2, 2), (1, 1), 4),
)


def torch_conv(x: Tensor, w: Tensor, geometry: ops.Geometry) -> Tensor:
    top, bottom, left, right = geometry.padding
    kernels = w.reshape(w.shape[0], -1, *geometry.kernel)
    padded = nn.functional.pad(x, (left, right, top, bottom))
    strides = {"stride": geometry.stride, "dilation": geometry.dilation}
    return nn.functional.conv2d(padded, kernels, **strides, groups=geometry.groups)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_conv_and_its_gradients_of_any_order_are_torchs(geometry: ops.Geometry):
    w = sparse(8, 4 // geometry.groups * geometry.kernel[0] * geometry.kernel[1])
    payload = payload_of(w)
    x = torch.randn(2, 4, 9, 11, requires_grad=True)
    reference = x.detach().double().requires_grad_()
    y = ops.conv(x, payload, 8, geometry)
    expected = torch_conv(reference, torch.from_numpy(w).double(), geometry)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    (first,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    (first_expected,) = torch.autograd.grad((expected**3).sum(), reference, create_graph=True)
    torch.testing.assert_close(first.double(), first_expected, rtol=1e-4, atol=1e-4)
    (second,) = torch.autograd.grad((first**2).sum(), x)
    (second_expected,) = torch.autograd.grad((first_expected**2).sum(), reference)
    torch.testing.assert_close(second.double(), second_expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_summed_in_float32_and_rounded_once(dtype: torch.dtype):
    w = sparse(6, 40)
    x = torch.randn(3, 40).to(dtype)
    y = ops.matmul(x, payload_of(w), 6)
    assert y.dtype == dtype
    torch.testing.assert_close(y, ops.matmul(x.float(), payload_of(w), 6).to(dtype), rtol=0, atol=0)


def test_rows_are_the_dense_rows_bit_by_bit():
    w = sparse(9, 5)
    ids = torch.tensor([[3, 3, 0], [8, 1, 2]], dtype=torch.int32)
    rows = ops.rows(payload_of(w), ids, 5)
    np.testing.assert_array_equal(rows.numpy().view(np.int32), w[ids.numpy()].view(np.int32))
    assert ops.rows(payload_of(w), ids[:0], 5).shape == (0, 3, 5)


def test_gradients_of_any_order_reach_the_input():
    w = sparse(4, 3)
    dense = torch.from_numpy(w)
    x = torch.randn(5, 3, requires_grad=True)
    payload = payload_of(w)
    (ops.matmul(x, payload, 4) ** 3).sum().backward()
    reference = x.detach().clone().requires_grad_()
    ((reference @ dense.T) ** 3).sum().backward()
    torch.testing.assert_close(x.grad, reference.grad)

    def second(product: object, x: Tensor) -> Tensor:
        (first,) = torch.autograd.grad((product(x) ** 3).sum(), x, create_graph=True)
        return torch.autograd.grad((first**2).sum(), x)[0]

    torch.testing.assert_close(
        second(lambda x: ops.matmul(x, payload, 4), x),
        second(lambda x: x @ dense.T, reference),
    )


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_pass_opcheck(requires_grad: bool, dtype: torch.dtype):
    payload = payload_of(sparse(6, 4))
    library = torch.ops.tersenet
    x = torch.randn(3, 4, dtype=dtype).requires_grad_(requires_grad)
    g = torch.randn(2, 3, 6, dtype=dtype).requires_grad_(requires_grad)
    torch.library.opcheck(library.matmul.default, (x, payload, 6))
    torch.library.opcheck(library.matmul_transposed.default, (g, payload, 4))
    geometry = ops.Geometry((2, 1), (2, 1), (1, 0, 0, 1), (1, 2), 1)
    images = torch.randn(2, 2, 5, 6, dtype=dtype).requires_grad_(requires_grad)
    grads = torch.randn(2, 6, 3, 7, dtype=dtype).requires_grad_(requires_grad)
    torch.library.opcheck(library.conv.default, (images, payload, 6, *geometry))
    torch.library.opcheck(library.conv_input.default, (grads, payload, (2, 5, 6), *geometry))
    torch.library.opcheck(library.rows.default, (payload, torch.tensor([[1, 5]]), 4))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("payload", payload_of(sparse(6, 4)))

    def forward(self, x: Tensor) -> Tensor:
        return ops.matmul(torch.relu(x), self.payload, 6) + 1


def test_compile_sees_one_graph_and_export_one_node():
    net, x = Net(), torch.randn(3, 4)
    explained = torch._dynamo.explain(net)(x)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x), rtol=0, atol=0)
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
    nodes = [node for node in program.graph.nodes if "tersenet" in str(node.target)]
    assert len(nodes) == 1
    longer = torch.randn(11, 4)
    torch.testing.assert_close(program.module()(longer), net(longer), rtol=0, atol=0)


def test_an_exported_program_saves_and_loads(tmp_path):
    net, x = Net(), torch.randn(3, 4)
    torch.export.save(torch.export.export(net, (x,)), tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(loaded(x), net(x), rtol=0, atol=0)
    assert next(iter(loaded.buffers())).data_ptr() != net.payload.data_ptr()


def test_the_matrix_reads_the_memory_of_the_payload():
    payload = Payload.of(CompressedMatrix.compress(sparse(6, 4)))
    start = np.frombuffer(payload.data, np.uint8).__array_interface__["data"][0]
    assert payload.tensor.data_ptr() == start
    assert matrix_of(payload.tensor) is matrix_of(payload.tensor.detach()[:])


def test_a_matrix_is_forgotten_with_the_last_tensor_of_its_payload():
    gc.collect()
    before = len(payload_registry._matrices)
    payload = Payload.of(CompressedMatrix.compress(sparse(6, 4)))
    storage = weakref.ref(payload.tensor.untyped_storage())
    view = payload.tensor[:]
    del payload
    gc.collect()
    assert len(payload_registry._matrices) == before + 1
    del view
    gc.collect()
    assert storage() is None
    assert len(payload_registry._matrices) == before


def test_a_payload_that_was_written_to_is_checked_again():
    a, b = sparse(6, 4, seed=1), sparse(6, 4, seed=2, k=16)
    payload = payload_of(a).clone()
    x = torch.randn(2, 4)
    first = ops.matmul(x, payload, 6)
    other = payload_of(b)
    payload = torch.empty(max(len(payload), len(other)), dtype=torch.uint8)[: len(other)]
    payload.copy_(other)
    torch.testing.assert_close(ops.matmul(x, payload, 6), ops.matmul(x, other, 6), rtol=0, atol=0)
    payload[len(payload) // 2 :] = 0
    with pytest.raises(FormatError):
        ops.matmul(x, payload, 6)
    assert not torch.equal(first, ops.matmul(x, other, 6))


def test_payloads_work_under_inference_mode():
    w, x = sparse(6, 4), torch.randn(2, 4)
    expected = ops.matmul(x, payload_of(w), 6)
    with torch.inference_mode():
        made = payload_of(w)
        assert not made.is_inference()
        copied = made.clone()
        assert copied.is_inference()
        for payload in (made, copied):
            torch.testing.assert_close(ops.matmul(x, payload, 6), expected, rtol=0, atol=0)


def test_copies_are_the_payload_itself_and_pickles_hold_its_bytes():
    payload = Payload.of(CompressedMatrix.compress(sparse(6, 4)))
    assert copy.deepcopy(payload) is payload
    pair = pickle.loads(pickle.dumps([payload, payload]))
    assert pair[0] is pair[1]
    assert pair[0].data == payload.data


def test_wrong_arguments_are_named():
    payload, x = payload_of(sparse(6, 4)), torch.randn(2, 4)
    with pytest.raises(ValueError, match=r"x has shape \[2, 3\], expected \[..., 4\]"):
        ops.matmul(torch.randn(2, 3), payload, 6)
    with pytest.raises(ValueError, match="nrows is 7, expected 6"):
        ops.matmul(x, payload, 7)
    geometry = ops.Geometry((2, 2), (1, 1), (0, 0, 0, 0), (1, 1), 4)
    with pytest.raises(ValueError, match="conv: 4 channels in 4 groups"):
        ops.conv(torch.randn(1, 4, 3, 3), payload, 6, geometry)
    with pytest.raises(ValueError, match=r"expected \[N, channels, height, width\]"):
        ops.conv(x, payload, 6, geometry)
    with pytest.raises(ValueError, match=r"x is torch\.int64"):
        ops.matmul(x.long(), payload, 6)
    with pytest.raises(ValueError, match="ncols is 3, expected 4"):
        ops.rows(payload, torch.tensor([0]), 3)
    with pytest.raises(ValueError, match=r"ids are torch\.float32"):
        ops.rows(payload, x, 4)
    with pytest.raises(ValueError, match="row 6"):
        ops.rows(payload, torch.tensor([6]), 4)
    with pytest.raises(ValueError, match=r"payload: torch\.float32"):
        ops.matmul(x, x, 6)
    with pytest.raises(FormatError):
        ops.matmul(x, torch.zeros(100, dtype=torch.uint8), 6)
