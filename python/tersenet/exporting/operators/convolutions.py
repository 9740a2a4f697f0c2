"""Convolutions, plain, transposed and compressed.

A transposed convolution's kernel [C, O/g, kh, kw] is stored as the kernel of the forward
convolution that computes the same: [O, C/g, kh, kw], channels swapped within each group and taps
in reverse order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tersenet.exporting.graph import Value
from tersenet.exporting.lowering import Arguments, Constant, Expanded, Operand, Step, lowers
from tersenet.payload import matrix_of


@lowers("aten.conv1d.default", "aten.conv2d.default", "aten.conv1d.padding", "aten.conv2d.padding")
def conv(step: Step, a: Arguments) -> Value:
    """Lower a convolution; a padding "same" puts the odd zero after."""
    x = _batched(step, a["input"])
    weight = step.matrix(a["weight"])
    kernel = list(weight.shape[2:])
    dilation = _each(a["dilation"], len(kernel))
    padding = a["padding"]
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = [(total // 2, total - total // 2) for total in totals]
    elif isinstance(padding, str):
        pads = [(0, 0)] * len(kernel)
    else:
        pads = [(p, p) for p in _each(padding, len(kernel))]
    stride = _each(a["stride"], len(kernel))
    ints = _geometry(kernel, stride, pads, dilation, a["groups"])
    bias = step.vector(a["bias"], "bias")
    return step.emit("conv", [x], weights=[weight, bias, None, None], ints=ints)


@lowers("aten.conv_transpose1d.default", "aten.conv_transpose2d.input")
def conv_transpose(step: Step, a: Arguments) -> Value:
    """Lower a transposed convolution; one over a length has height 1."""
    x = _batched(step, a["input"])
    constant, groups = a["weight"], a["groups"]
    if not isinstance(constant, Constant):
        step.refuse("its weight is computed from the input, expected a constant")
    kernel = _forward_kernel(step.floats(constant), groups)
    weight = step.weights.of(kernel, f"{constant.name}.forward", is_matrix=True)
    ndim = kernel.dim() - 2
    is_flat = ndim == 1
    sizes = _pair(list(kernel.shape[2:]), 1), _pair(_each(a["stride"], ndim), 1)
    padding = _pair(_each(a["padding"], ndim), 0)
    output_padding = _pair(_each(a["output_padding"], ndim), 0)
    dilation = _pair(_each(a["dilation"], ndim), 1)
    for pad, size, apart in zip(padding, sizes[0], dilation, strict=True):
        if pad > apart * (size - 1):
            step.refuse(
                f"its padding is {pad}, expected at most {apart * (size - 1)} for its kernel"
            )
    ints = [*sizes[0], *sizes[1], *padding, *output_padding, *dilation, groups]
    shape = step.shape
    if is_flat:
        x = step.reshape(x, (*x.shape[:2], 1, x.shape[2]))
        shape = (*shape[:2], 1, shape[2])
    weights = [weight, step.vector(a["bias"], "bias"), None, None]
    y = step.emit("conv_transpose", [x], shape, weights=weights, ints=ints)
    return step.reshape(y, step.shape)


@lowers("aten.convolution.default")
def convolution(step: Step, a: Arguments) -> Value:
    """Lower the general form to one of the above."""
    ndim = len(step.node.meta["val"].shape) - 2
    if ndim > 2:
        step.refuse(f"it is over {ndim} dimensions, expected 1 or 2")
    return conv_transpose(step, a) if a["transposed"] else conv(step, a)


@lowers("tersenet.conv.default")
def compressed_conv(step: Step, a: Arguments) -> Value:
    """Lower a compressed convolution; one over a length comes with height 1, which is taken off."""
    x, kernel, stride = step.value(a["x"]), a["kernel"], a["stride"]
    top, bottom, left, right = a["padding"]
    weights = [step.matrix(a["payload"]), None, None, None]
    pads = [(top, bottom), (left, right)]
    ints = _geometry(kernel, stride, pads, a["dilation"], a["groups"])
    shape = step.shape
    if x.shape[2] != 1 or shape[2] != 1 or kernel[0] != 1:
        return step.emit("conv", [x], weights=weights, ints=ints)
    flat = step.reshape(x, (*x.shape[:2], x.shape[3]))
    y = step.emit("conv", [flat], (*shape[:2], shape[3]), weights=weights, ints=ints)
    return step.reshape(y, shape)


@lowers("tersenet.rows.default", takes_integers=True)
def compressed_rows(step: Step, a: Arguments) -> Operand:
    """Lower a compressed embedding; of constant ids it is a constant, repeated over the batch."""
    matrix, ids = matrix_of(a["payload"].tensor), a["ids"]
    assert matrix.shape[1] == a["ncols"]
    if isinstance(ids, Expanded):
        found = torch.from_numpy(matrix.rows(ids.constant.tensor.reshape(-1).numpy()))
        rows = found.reshape(*ids.constant.tensor.shape, a["ncols"])
        return Expanded(Constant(rows, f"{a['payload'].name}.{step.node.name}"), step.shape)
    return step.emit("embedding", [a["ids"]], weights=[step.matrix(a["payload"])])


def _batched(step: Step, x: Any) -> Value:
    value = step.value(x)
    if value.ndim != len(step.node.meta["val"].shape) or value.shape[0] >= 0:
        step.refuse(f"its input has shape {list(value.shape)}, expected a batch in dimension 0")
    return value


def _forward_kernel(weight: Tensor, groups: int) -> Tensor:
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    swapped = grouped.transpose(1, 2).flip(*range(3, grouped.dim()))
    return swapped.reshape(-1, *swapped.shape[2:]).contiguous()


def _each(values: Any, ndim: int) -> list[int]:
    """Return a setting of each dimension; torch may give one for all."""
    each: list[int] = list(values) if isinstance(values, Sequence) else [values]
    return each * ndim if len(each) == 1 else each


def _pair(values: list[int], height: int) -> list[int]:
    """Return (height's, width's) of a setting."""
    return values if len(values) == 2 else [height, *values]


def _geometry(
    kernel: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> list[int]:
    if len(kernel) == 1:
        kernel, stride, dilation = [1, *kernel], [1, *stride], [1, *dilation]
        pads = [(0, 0), *pads]
    flat_pads = [p for pair in pads for p in pair]
    return [*kernel, *stride, *flat_pads, *dilation, groups]
