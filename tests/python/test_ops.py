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
from tersenet.errors import FormatError
from tersenet.ops import Payload


def sparse(nrows: int, ncols: int, seed: int = 0, k: int = 16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    codebook = rng.standard_normal(k).astype(np.float32)
    dense = codebook[rng.integers(0, k, (nrows, ncols))]
    return np.where(rng.random((nrows, ncols)) < 0.3, dense, np.float32(0))


def payload_of(w: np.ndarray) -> Tensor:
    return Payload.of(CompressedMatrix.compress(w)).tensor


def blockwise(w: np.ndarray, groups: int) -> Tensor:
    """The dense [nrows, groups * ncols] matrix that a grouped product multiplies with."""
    blocks = torch.from_numpy(w).double().chunk(groups)
    return torch.block_diag(*blocks)


def bound(x: Tensor, w: Tensor) -> Tensor:
    n = w.shape[1]
    return (n + 2) * 2.0**-24 * (x.double().abs() @ w.double().abs().T) + n * 2.0**-149


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (0, 4), (2, 3, 4)])
def test_matmul_is_within_the_bound_of_a_float64_product(groups: int, shape: tuple[int, ...]):
    w = sparse(6, 4)
    x = torch.randn(*shape[:-1], groups * 4)
    y = ops.matmul(x, payload_of(w), 6, groups)
    expected = x.double() @ blockwise(w, groups).T
    assert y.shape == expected.shape
    assert y.dtype == torch.float32
    assert ((y - expected).abs() <= bound(x, blockwise(w, groups))).all()


@pytest.mark.parametrize("groups", [1, 3])
def test_matmul_transposed_is_within_the_bound_of_a_float64_product(groups: int):
    w = sparse(6, 5)
    g = torch.randn(7, 6)
    y = ops.matmul_transposed(g, payload_of(w), 5, groups)
    dense = blockwise(w, groups)
    assert ((y - g.double() @ dense).abs() <= bound(g, dense.T)).all()


def test_a_group_larger_than_a_dense_block_is_decoded_in_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ops, "_DENSE_BLOCK", 20)
    w = sparse(18, 9)
    for groups in (2, 9):
        x = torch.randn(5, groups * 9)
        dense = blockwise(w, groups)
        y = ops.matmul(x, payload_of(w), 18, groups)
        assert ((y - x.double() @ dense.T).abs() <= bound(x, dense)).all()
        g = torch.randn(5, 18)
        back = ops.matmul_transposed(g, payload_of(w), 9, groups)
        assert ((back - g.double() @ dense).abs() <= bound(g, dense.T)).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_a_pruned_weight_contributes_nothing_where_x_is_not_finite(groups: int):
    w = np.float32([[0, 1], [2, 0]])
    x = torch.tensor([[torch.inf, 3.0] * groups])
    y = ops.matmul(x, payload_of(w), 2, groups)
    assert y.tolist() == ([[3.0, torch.inf]])
    g = torch.tensor([[torch.nan, 1.0]])
    back = ops.matmul_transposed(g, payload_of(w), 2, groups)
    expected = [0.0, torch.nan, 2.0, 0.0] if groups == 2 else [2.0, torch.nan]
    np.testing.assert_array_equal(back.numpy(), np.float32([expected]))


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


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_any_order_reach_the_input(groups: int):
    w = sparse(4, 3)
    dense = blockwise(w, groups).float()
    x = torch.randn(5, groups * 3, requires_grad=True)
    payload = payload_of(w)
    (ops.matmul(x, payload, 4, groups) ** 3).sum().backward()
    reference = x.detach().clone().requires_grad_()
    ((reference @ dense.T) ** 3).sum().backward()
    torch.testing.assert_close(x.grad, reference.grad)

    def second(product: object, x: Tensor) -> Tensor:
        (first,) = torch.autograd.grad((product(x) ** 3).sum(), x, create_graph=True)
        return torch.autograd.grad((first**2).sum(), x)[0]

    torch.testing.assert_close(
        second(lambda x: ops.matmul(x, payload, 4, groups), x),
        second(lambda x: x @ dense.T, reference),
    )


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_pass_opcheck(requires_grad: bool, dtype: torch.dtype):
    payload = payload_of(sparse(6, 4))
    library = torch.ops.tersenet
    for groups in (1, 2):
        x = torch.randn(3, 4 * groups, dtype=dtype).requires_grad_(requires_grad)
        g = torch.randn(2, 3, 6, dtype=dtype).requires_grad_(requires_grad)
        torch.library.opcheck(library.matmul.default, (x, payload, 6, groups))
        torch.library.opcheck(library.matmul_transposed.default, (g, payload, 4, groups))
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
    assert ops.matrix_of(payload.tensor) is ops.matrix_of(payload.tensor.detach()[:])


def test_a_matrix_is_forgotten_with_the_last_tensor_of_its_payload():
    gc.collect()
    before = len(ops._matrices)
    payload = Payload.of(CompressedMatrix.compress(sparse(6, 4)))
    storage = weakref.ref(payload.tensor.untyped_storage())
    view = payload.tensor[:]
    del payload
    gc.collect()
    assert len(ops._matrices) == before + 1
    del view
    gc.collect()
    assert storage() is None
    assert len(ops._matrices) == before


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
    with pytest.raises(ValueError, match="groups is 4, expected a divisor of nrows = 6"):
        ops.matmul(torch.randn(2, 16), payload, 6, 4)
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
