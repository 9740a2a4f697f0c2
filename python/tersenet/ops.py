"""Products with compressed weights as torch operators: one node each for compile and export.

::

    tersenet::matmul(x, payload, nrows)              y = x W^T       x [..., ncols]
    tersenet::matmul_transposed(x, payload, ncols)   y = x W         x [..., nrows]
    tersenet::conv(x, payload, nrows, ...)           y = x * W       x [N, channels, height, width]
    tersenet::conv_input(g, payload, size, ...)      its gradient    g [N, nrows, height, width]
    tersenet::rows(payload, ids, ncols)              y = W[ids]      ids, any shape

    payload: uint8 [nbytes], the bytes of one CompressedMatrix (module `payload`)

A convolution's gradient is that of its windows: a product, then the windows' sums (`fold`).

Why `Library.define` and not `custom_op`: a third of the overhead a call, about 5 µs (10 where a
gradient may be recorded). Sums are in float32 whatever the type of x, and the result is rounded to
that type once. A pruned weight contributes nothing, even where x is not finite.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from tersenet.payload import matrix_of

F32 = npt.NDArray[np.float32]


class Geometry(NamedTuple):
    """How a kernel moves over its input: height, then width, as torch's conv2d.

    `padding` is before and after the height, then before and after the width.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int


def matmul(x: Tensor, payload: Tensor, nrows: int) -> Tensor:
    """Return x W^T, and gradients flow to x.

    Args:
        x: float32, float64, float16 or bfloat16 [..., ncols].
        payload: uint8 [nbytes], the matrix W [nrows, ncols].
        nrows: the number of rows of W.

    Returns:
        [..., nrows] in the type of x, summed in float32.

    Raises:
        ValueError: if types or shapes do not fit.
        FormatError: if the payload is damaged.
    """
    return _MATMUL(x, payload, nrows)


def matmul_transposed(x: Tensor, payload: Tensor, ncols: int) -> Tensor:
    """Return x W, the gradient of `matmul`; x is [..., nrows], the result [..., ncols].

    Raises:
        ValueError: if types or shapes do not fit.
        FormatError: if the payload is damaged.
    """
    return _MATMUL_TRANSPOSED(x, payload, ncols)


def conv(x: Tensor, payload: Tensor, nrows: int, geometry: Geometry) -> Tensor:
    """Return the convolution of x with the kernels W, and gradients flow to x.

    Args:
        x: float32, float64, float16 or bfloat16 [N, channels, height, width].
        payload: uint8 [nbytes], the matrix W [nrows, channels / groups * kernel].
        nrows: the number of rows of W.
        geometry: kernel, stride, padding, dilation and groups.

    Returns:
        [N, nrows, height, width] in the type of x, summed in float32.

    Raises:
        ValueError: if types or shapes do not fit.
        FormatError: if the payload is damaged.
    """
    return _CONV(x, payload, nrows, *geometry)


def rows(payload: Tensor, ids: Tensor, ncols: int) -> Tensor:
    """Return the rows `ids` of W as float32 [*ids.shape, ncols]; no gradient flows.

    Raises:
        ValueError: if an id is no integer or not in [0, nrows), or ncols is not that of W.
        FormatError: if the payload is damaged.
    """
    return _ROWS(payload, ids, ncols)


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


def _matmul(x: Tensor, payload: Tensor, nrows: int) -> Tensor:
    matrix = matrix_of(payload)
    if matrix.shape[0] != nrows:
        raise ValueError(f"matmul: nrows is {nrows}, expected {matrix.shape[0]} as in the payload")
    batch = _batch("matmul", x, matrix.shape[1])
    y = matrix.matmul(batch, _threads())
    return _unbatched(y, x)


def _matmul_transposed(x: Tensor, payload: Tensor, ncols: int) -> Tensor:
    matrix = matrix_of(payload)
    if matrix.shape[1] != ncols:
        found = f"ncols is {ncols}, expected {matrix.shape[1]} as in the payload"
        raise ValueError(f"matmul_transposed: {found}")
    batch = _batch("matmul_transposed", x, matrix.shape[0])
    y = matrix.matmul_transposed(batch, _threads())
    return _unbatched(y, x)


def _images(what: str, x: Tensor) -> F32:
    """Return x [N, channels, height, width] as float32."""
    if not x.is_floating_point():
        raise ValueError(f"{what}: x is {x.dtype}, expected a real floating-point type")
    if x.dim() != 4:
        expected = "expected [N, channels, height, width]"
        raise ValueError(f"{what}: x has shape {list(x.shape)}, {expected}")
    array: F32 = x.detach().to(torch.float32).contiguous().numpy()
    return array


def _conv(x: Tensor, payload: Tensor, nrows: int, *fields: Any) -> Tensor:
    matrix, geometry = matrix_of(payload), _geometry(fields)
    if matrix.shape[0] != nrows:
        raise ValueError(f"conv: nrows is {nrows}, expected {matrix.shape[0]} as in the payload")
    top, bottom, left, right = geometry.padding
    padding = ((top, bottom), (left, right))
    y = matrix.conv(
        _images("conv", x),
        geometry.kernel,
        geometry.stride,
        padding,
        geometry.dilation,
        geometry.groups,
        threads=_threads(),
    )
    return torch.from_numpy(y).to(x.dtype)


def _conv_input(grad: Tensor, payload: Tensor, size: Sequence[int], *fields: Any) -> Tensor:
    matrix, geometry = matrix_of(payload), _geometry(fields)
    _, height, width = size
    top, bottom, left, right = geometry.padding
    images, nrows, *positions = _images("conv_input", grad).shape
    by_position = grad.detach().permute(0, 2, 3, 1).reshape(-1, nrows)
    batch = _batch("conv_input", by_position, matrix.shape[0])
    windows = matrix.matmul_transposed(batch, _threads(), groups=geometry.groups)
    columns = torch.from_numpy(windows).reshape(images, prod(positions), -1).transpose(1, 2)
    padded = F.fold(
        columns,
        (height + top + bottom, width + left + right),
        kernel_size=geometry.kernel,
        dilation=geometry.dilation,
        stride=geometry.stride,
    )
    return padded[..., top : top + height, left : left + width].contiguous().to(grad.dtype)


def _geometry(fields: Sequence[Any]) -> Geometry:
    """Return the geometry that an operator was called with."""
    kernel, stride, padding, dilation, groups = fields
    return Geometry(tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), groups)


def _rows(payload: Tensor, ids: Tensor, ncols: int) -> Tensor:
    matrix = matrix_of(payload)
    if matrix.shape[1] != ncols:
        raise ValueError(f"rows: ncols is {ncols}, expected {matrix.shape[1]} as in the payload")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"rows: ids are {ids.dtype}, expected an integer type")
    flat = ids.detach().reshape(-1).to(torch.int64).contiguous().numpy()
    return torch.from_numpy(matrix.rows(flat)).reshape(*ids.shape, ncols)


def _fake_matmul(x: Tensor, payload: Tensor, nrows: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], nrows))


def _fake_matmul_transposed(x: Tensor, payload: Tensor, ncols: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], ncols))


def _fake_conv(x: Tensor, payload: Tensor, nrows: int, *fields: Any) -> Tensor:
    geometry = _geometry(fields)
    sizes = []
    for dim in range(2):
        before, after = geometry.padding[2 * dim : 2 * dim + 2]
        span = geometry.dilation[dim] * (geometry.kernel[dim] - 1) + 1
        sizes.append((x.shape[2 + dim] + before + after - span) // geometry.stride[dim] + 1)
    return x.new_empty((x.shape[0], nrows, *sizes))


def _fake_conv_input(grad: Tensor, payload: Tensor, size: Sequence[int], *fields: Any) -> Tensor:
    return grad.new_empty((grad.shape[0], *size))


def _fake_rows(payload: Tensor, ids: Tensor, ncols: int) -> Tensor:
    return ids.new_empty((*ids.shape, ncols), dtype=torch.float32)


def _save_for_product(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, payload, _ = inputs
    ctx.save_for_backward(payload)
    ctx.width = x.shape[-1]


def _matmul_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (payload,) = ctx.saved_tensors
    return _MATMUL_TRANSPOSED(grad, payload, ctx.width), None, None


def _matmul_transposed_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (payload,) = ctx.saved_tensors
    return _MATMUL(grad, payload, ctx.width), None, None


def _save_for_conv(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, payload, _, *fields = inputs
    ctx.save_for_backward(payload)
    # Of conv the gradient needs the size of x, of conv_input the number of rows.
    ctx.size, ctx.fields = tuple(x.shape[1:]), fields


def _conv_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (payload,) = ctx.saved_tensors
    x_grad = _CONV_INPUT(grad, payload, ctx.size, *ctx.fields)
    return x_grad, *[None] * (2 + len(ctx.fields))


def _conv_input_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (payload,) = ctx.saved_tensors
    g_grad = _CONV(grad, payload, ctx.size[0], *ctx.fields)
    return g_grad, *[None] * (2 + len(ctx.fields))


_FIELDS = "int[2] kernel, int[2] stride, int[4] padding, int[2] dilation, int groups"

_Function = Callable[..., Any]
_OPERATORS: tuple[tuple[str, _Function, _Function, _Function | None, _Function | None], ...] = (
    (
        "matmul(Tensor x, Tensor payload, int nrows)",
        *(_matmul, _fake_matmul, _matmul_backward, _save_for_product),
    ),
    (
        "matmul_transposed(Tensor x, Tensor payload, int ncols)",
        *(_matmul_transposed, _fake_matmul_transposed),
        *(_matmul_transposed_backward, _save_for_product),
    ),
    (
        f"conv(Tensor x, Tensor payload, int nrows, {_FIELDS})",
        *(_conv, _fake_conv, _conv_backward, _save_for_conv),
    ),
    (
        f"conv_input(Tensor grad, Tensor payload, int[3] size, {_FIELDS})",
        *(_conv_input, _fake_conv_input, _conv_input_backward, _save_for_conv),
    ),
    ("rows(Tensor payload, Tensor ids, int ncols)", _rows, _fake_rows, None, None),
)


def _register() -> torch.library.Library:
    """Define the operators; they live as long as the library that is returned."""
    library = torch.library.Library("tersenet", "DEF")  # type: ignore[no-untyped-call]
    define: Callable[..., str] = library.define
    implement: Callable[..., None] = library.impl
    for signature, function, fake, backward, save in _OPERATORS:
        name = signature.partition("(")[0]
        define(f"{signature} -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
        implement(name, function, "CPU")
        torch.library.register_fake(f"tersenet::{name}", fake, lib=library)
        if backward is not None:
            torch.library.register_autograd(
                f"tersenet::{name}", backward, setup_context=save, lib=library
            )
    return library


_LIBRARY = _register()
_MATMUL: Callable[..., Tensor] = torch.ops.tersenet.matmul.default
_MATMUL_TRANSPOSED: Callable[..., Tensor] = torch.ops.tersenet.matmul_transposed.default
_CONV: Callable[..., Tensor] = torch.ops.tersenet.conv.default
_CONV_INPUT: Callable[..., Tensor] = torch.ops.tersenet.conv_input.default
_ROWS: Callable[..., Tensor] = torch.ops.tersenet.rows.default
