"""Products with compressed weights as torch operators: one node each for compile and export.

::

    tersenet::matmul(x, payload, nrows, groups)              y = x W^T     x [..., groups * ncols]
    tersenet::matmul_transposed(x, payload, ncols, groups)   y = x W       x [..., nrows]
    tersenet::rows(payload, ids, ncols)                      y = W[ids]    ids, any shape

    payload: uint8 [nbytes], the bytes of one CompressedMatrix  ──▶  the matrix that views them

A payload is a plain uint8 tensor, so state_dict, torch.save, compile and export carry it without
knowing what it is. Python's bytes object owns the memory; the tensor and the matrix both view it,
so the weights are there once. Which matrix belongs to a payload is remembered for as long as the
tensor's storage lives. A payload never seen before (in an exported program), or one that was
written to since (its version counter tells), is checked in full and its matrix made from a copy.

With groups > 1 the rows of W are cut into that many equal groups, and group g sees only its own
part of x, as in a grouped convolution. Rows are then decoded a few at a time and multiplied
densely, so no more than 256 KiB (or one row) are dense at any moment.

Why `Library.define` and not `custom_op`: a third of the overhead a call, about 5 µs (10 where a
gradient may be recorded). Sums are in float32 whatever the type of x, and the result is rounded to
that type once. A pruned weight contributes nothing, even where x is not finite.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tersenet._core import CompressedMatrix

F32 = npt.NDArray[np.float32]

_DENSE_BLOCK = 65_536  # values of W that are dense at a time when it has groups

_Entry = tuple[int, CompressedMatrix]
_matrices: weakref.WeakKeyDictionary[torch.UntypedStorage, dict[tuple[int, int], _Entry]] = (
    weakref.WeakKeyDictionary()
)


class Payload:
    """A compressed matrix and the tensor of its bytes, in one memory; never changed, so shared.

    `tensor` is uint8 [nbytes]. Deep copies are the object itself; pickles hold the bytes.
    """

    def __init__(self, data: bytes) -> None:
        """Check the bytes of one matrix and make a tensor that views them.

        Raises:
            FormatError: if they are not the bytes of one matrix.
        """
        self.data = data
        matrix = CompressedMatrix.from_bytes(data)
        with warnings.catch_warnings(), torch.inference_mode(False):
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            self.tensor = torch.frombuffer(data, dtype=torch.uint8)
        _remember(self.tensor, matrix)

    @classmethod
    def of(cls, source: CompressedMatrix | Tensor) -> Payload:
        """Return the payload of a matrix, or of a tensor that holds the bytes of one.

        Raises:
            FormatError: if the tensor holds something else.
            ValueError: if it is not uint8 [nbytes] on the CPU.
        """
        if isinstance(source, CompressedMatrix):
            return cls(source.to_bytes())
        _check_payload(source)
        return cls(_bytes_of(source))

    @property
    def matrix(self) -> CompressedMatrix:
        """The matrix."""
        return matrix_of(self.tensor)

    def __deepcopy__(self, memo: dict[int, Any]) -> Payload:
        """Return the object itself."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the bytes, as they are now."""
        return Payload, (self.data,)


def matrix_of(payload: Tensor) -> CompressedMatrix:
    """Return the matrix whose bytes a tensor holds.

    Raises:
        FormatError: if the tensor was not seen before or was written to, and is not valid.
        ValueError: if it is not uint8 [nbytes] on the CPU.
    """
    if payload.is_inference():  # has no version counter: nothing could tell that it was written to
        _check_payload(payload)
        return CompressedMatrix.from_bytes(_bytes_of(payload))
    known = _matrices.get(payload.untyped_storage())
    if known is not None and payload.is_contiguous():
        entry = known.get((payload.data_ptr(), payload.nbytes))
        if entry is not None and entry[0] == payload._version:
            return entry[1]
    _check_payload(payload)
    matrix = CompressedMatrix.from_bytes(_bytes_of(payload))
    if payload.is_contiguous():
        _remember(payload, matrix)
    return matrix


def matmul(x: Tensor, payload: Tensor, nrows: int, groups: int = 1) -> Tensor:
    """Return x W^T, and gradients flow to x.

    Args:
        x: float32, float64, float16 or bfloat16 [..., groups * ncols].
        payload: uint8 [nbytes], the matrix W [nrows, ncols].
        nrows: the number of rows of W.
        groups: how many equal groups the rows form; each sees its own part of x.

    Returns:
        [..., nrows] in the type of x, summed in float32.

    Raises:
        ValueError: if types or shapes do not fit.
        FormatError: if the payload is damaged.
    """
    return _MATMUL(x, payload, nrows, groups)


def matmul_transposed(x: Tensor, payload: Tensor, ncols: int, groups: int = 1) -> Tensor:
    """Return x W, the gradient of `matmul`; x is [..., nrows], the result [..., groups * ncols].

    Raises:
        ValueError: if types or shapes do not fit.
        FormatError: if the payload is damaged.
    """
    return _MATMUL_TRANSPOSED(x, payload, ncols, groups)


def rows(payload: Tensor, ids: Tensor, ncols: int) -> Tensor:
    """Return the rows `ids` of W as float32 [*ids.shape, ncols]; no gradient flows.

    Raises:
        ValueError: if an id is no integer or not in [0, nrows), or ncols is not that of W.
        FormatError: if the payload is damaged.
    """
    return _ROWS(payload, ids, ncols)


def _bytes_of(payload: Tensor) -> bytes:
    return payload.detach().numpy().tobytes()


def _check_payload(payload: Tensor) -> None:
    if payload.dtype != torch.uint8 or payload.dim() != 1 or payload.device.type != "cpu":
        raise ValueError(
            f"payload: {payload.dtype} {list(payload.shape)} on {payload.device}, "
            "expected torch.uint8 [nbytes] on the cpu"
        )


def _remember(payload: Tensor, matrix: CompressedMatrix) -> None:
    known = _matrices.setdefault(payload.untyped_storage(), {})
    known[payload.data_ptr(), payload.nbytes] = (payload._version, matrix)


def _batch(what: str, x: Tensor, width: int) -> F32:
    """Return x [..., width] as float32 [batch, width]."""
    if not x.is_floating_point():
        raise ValueError(f"{what}: x is {x.dtype}, expected a real floating-point type")
    if x.dim() == 0 or x.shape[-1] != width:
        raise ValueError(f"{what}: x has shape {list(x.shape)}, expected [..., {width}]")
    flat = x.detach()
    if x.dim() != 2 or x.dtype != torch.float32 or not x.is_contiguous():
        batch = x.numel() // width if width else x.shape[:-1].numel()
        flat = flat.reshape(batch, width).to(torch.float32).contiguous()
    array: F32 = flat.numpy()
    return array


def _unbatched(y: F32, x: Tensor) -> Tensor:
    """Return the product y [batch, width] in the leading shape and the type of x."""
    product = torch.from_numpy(y)
    if x.dim() != 2 or x.dtype != torch.float32:
        product = product.reshape(*x.shape[:-1], y.shape[1]).to(x.dtype)
    return product


def _threads() -> int:
    """Return how many threads to use: torch's number, but no more than this process may."""
    threads = torch.get_num_threads()
    return threads if threads == 1 else min(threads, len(os.sched_getaffinity(0)))


def _check_rows(what: str, matrix: CompressedMatrix, groups: int) -> None:
    if groups < 1 or matrix.shape[0] % groups:
        raise ValueError(
            f"{what}: groups is {groups}, expected a divisor of nrows = {matrix.shape[0]}"
        )


def _matmul(x: Tensor, payload: Tensor, nrows: int, groups: int = 1) -> Tensor:
    matrix = matrix_of(payload)
    if matrix.shape[0] != nrows:
        raise ValueError(f"matmul: nrows is {nrows}, expected {matrix.shape[0]} as in the payload")
    _check_rows("matmul", matrix, groups)
    batch = _batch("matmul", x, groups * matrix.shape[1])
    y = matrix.matmul(batch, _threads()) if groups == 1 else _grouped(matrix, batch, groups)
    return _unbatched(y, x)


def _matmul_transposed(x: Tensor, payload: Tensor, ncols: int, groups: int = 1) -> Tensor:
    matrix = matrix_of(payload)
    if matrix.shape[1] != ncols:
        found = f"ncols is {ncols}, expected {matrix.shape[1]} as in the payload"
        raise ValueError(f"matmul_transposed: {found}")
    _check_rows("matmul_transposed", matrix, groups)
    batch = _batch("matmul_transposed", x, matrix.shape[0])
    if groups == 1:
        y = matrix.matmul_transposed(batch, _threads())
    else:
        y = _grouped_transposed(matrix, batch, groups)
    return _unbatched(y, x)


def _rows(payload: Tensor, ids: Tensor, ncols: int) -> Tensor:
    matrix = matrix_of(payload)
    if matrix.shape[1] != ncols:
        raise ValueError(f"rows: ncols is {ncols}, expected {matrix.shape[1]} as in the payload")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"rows: ids are {ids.dtype}, expected an integer type")
    flat = ids.detach().reshape(-1).to(torch.int64).contiguous().numpy()
    return torch.from_numpy(matrix.rows(flat)).reshape(*ids.shape, ncols)


def _blocks(matrix: CompressedMatrix, groups: int) -> list[tuple[slice, slice]]:
    """Return (groups, rows within each group): as much of W as may be dense at a time."""
    per_group, ncols = matrix.shape[0] // groups, matrix.shape[1]
    size = max(per_group * ncols, 1)
    if size <= _DENSE_BLOCK:
        step = _DENSE_BLOCK // size
        starts = range(0, groups, step)
        return [(slice(g, min(g + step, groups)), slice(0, per_group)) for g in starts]
    step = max(_DENSE_BLOCK // ncols, 1)
    starts = range(0, per_group, step)
    return [
        (slice(g, g + 1), slice(r, min(r + step, per_group))) for g in range(groups) for r in starts
    ]


def _dense_block(matrix: CompressedMatrix, groups: int, which: slice, inner: slice) -> F32:
    """Return the rows `inner` of the groups `which` as [groups, rows, ncols]."""
    per_group, ncols = matrix.shape[0] // groups, matrix.shape[1]
    ids = np.arange(which.start, which.stop)[:, None] * per_group
    ids = ids + np.arange(inner.start, inner.stop)
    block: F32 = matrix.rows(ids.reshape(-1)).reshape(*ids.shape, ncols)
    return block


def _is_finite(x: F32) -> bool:
    """Tell whether all of x is surely finite: an infinity or NaN would show in the sum."""
    return bool(torch.from_numpy(x).sum().isfinite())


def _grouped(matrix: CompressedMatrix, x: F32, groups: int) -> F32:
    nrows, ncols = matrix.shape
    parts = torch.from_numpy(x).reshape(-1, groups, ncols).transpose(0, 1)
    y = parts.new_empty((parts.shape[1], groups, nrows // groups))
    if _is_finite(x):
        for which, inner in _blocks(matrix, groups):
            block = torch.from_numpy(_dense_block(matrix, groups, which, inner))
            y[:, which, inner] = (parts[which] @ block.mT).transpose(0, 1)
    else:  # a dense product would turn 0 * inf into NaN
        for g, mine in enumerate(torch.arange(nrows).chunk(groups)):
            alone = matrix.matmul(parts[g].contiguous().numpy(), _threads())
            y[:, g] = torch.from_numpy(alone)[:, mine]
    product: F32 = y.reshape(-1, nrows).numpy()
    return product


def _grouped_transposed(matrix: CompressedMatrix, x: F32, groups: int) -> F32:
    nrows, ncols = matrix.shape
    parts = torch.from_numpy(x).reshape(-1, groups, nrows // groups).transpose(0, 1)
    y = parts.new_zeros((parts.shape[1], groups, ncols))
    if _is_finite(x):
        for which, inner in _blocks(matrix, groups):
            block = torch.from_numpy(_dense_block(matrix, groups, which, inner))
            y[:, which] += (parts[which][:, :, inner] @ block).transpose(0, 1)
    else:
        for g, mine in enumerate(torch.arange(nrows).chunk(groups)):
            alone = np.zeros_like(x)
            alone[:, mine] = x[:, mine]
            y[:, g] = torch.from_numpy(matrix.matmul_transposed(alone, _threads()))
    product: F32 = y.reshape(-1, groups * ncols).numpy()
    return product


def _fake_matmul(x: Tensor, payload: Tensor, nrows: int, groups: int = 1) -> Tensor:
    return x.new_empty((*x.shape[:-1], nrows))


def _fake_matmul_transposed(x: Tensor, payload: Tensor, ncols: int, groups: int = 1) -> Tensor:
    return x.new_empty((*x.shape[:-1], groups * ncols))


def _fake_rows(payload: Tensor, ids: Tensor, ncols: int) -> Tensor:
    return ids.new_empty((*ids.shape, ncols), dtype=torch.float32)


def _save_for_matmul(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, payload, _, groups = inputs
    ctx.save_for_backward(payload)
    ctx.ncols, ctx.groups = x.shape[-1] // max(groups, 1), groups


def _save_for_matmul_transposed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, payload, _, groups = inputs
    ctx.save_for_backward(payload)
    ctx.nrows, ctx.groups = x.shape[-1], groups


def _matmul_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (payload,) = ctx.saved_tensors
    return matmul_transposed(grad, payload, ctx.ncols, ctx.groups), None, None, None


def _matmul_transposed_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (payload,) = ctx.saved_tensors
    return matmul(grad, payload, ctx.nrows, ctx.groups), None, None, None


def _register() -> torch.library.Library:
    """Define the operators; they live as long as the library that is returned."""
    library = torch.library.Library("tersenet", "DEF")  # type: ignore[no-untyped-call]
    define: Callable[..., str] = library.define
    implement: Callable[..., None] = library.impl
    for arguments, function, fake in (
        ("(Tensor x, Tensor payload, int nrows, int groups=1)", _matmul, _fake_matmul),
        (
            "(Tensor x, Tensor payload, int ncols, int groups=1)",
            _matmul_transposed,
            _fake_matmul_transposed,
        ),
        ("(Tensor payload, Tensor ids, int ncols)", _rows, _fake_rows),
    ):
        name = function.__name__.removeprefix("_")
        define(f"{name}{arguments} -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
        implement(name, function, "CPU")
        torch.library.register_fake(f"tersenet::{name}", fake, lib=library)
    for name, backward, save in (
        ("matmul", _matmul_backward, _save_for_matmul),
        ("matmul_transposed", _matmul_transposed_backward, _save_for_matmul_transposed),
    ):
        torch.library.register_autograd(
            f"tersenet::{name}", backward, setup_context=save, lib=library
        )
    return library


_LIBRARY = _register()
_MATMUL: Callable[..., Tensor] = torch.ops.tersenet.matmul.default
_MATMUL_TRANSPOSED: Callable[..., Tensor] = torch.ops.tersenet.matmul_transposed.default
_ROWS: Callable[..., Tensor] = torch.ops.tersenet.rows.default
