"""Operators that move or repeat numbers, or ids, without computing: shapes, orders, parts, joins.

All that torch counts as a view is a reshape, a permutation, a slice or an expansion of contiguous
values here; what copies, casts float32 to float32 or drops out in training only, is nothing.
"""

from __future__ import annotations

from typing import Any

import torch

from tersenet.exporting.graph import Shape, Value
from tersenet.exporting.lowering import Arguments, Constant, Expanded, Operand, Step, lowers


@lowers(
    *("aten.clone.default", "aten.contiguous.default", "aten.detach.default"),
    *("aten.alias.default", "aten.lift_fresh_copy.default", "aten.dropout.default"),
    *("aten.feature_dropout.default", "aten.alpha_dropout.default"),
    *("aten._to_copy.default", "aten.to.dtype", "aten.to.device", "aten.type_as.default"),
    takes_integers=True,
)
def nothing(step: Step, a: Arguments) -> Operand:
    """Lower what changes no number; another type is refused by its result."""
    x: Operand = next(iter(a.values()))
    dtype = str(step.node.meta["val"].dtype).removeprefix("torch.")
    if a.get("train"):
        step.refuse("it drops numbers at random in evaluation mode, too")
    if isinstance(x, Value) and x.dtype != dtype:
        step.refuse(f"it makes {dtype} of {x.dtype}, expected the same type")
    return x


@lowers(
    *("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default"),
    *("aten.flatten.using_ints", "aten.unflatten.int", "aten.view_as.default"),
    *("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims", "aten.unsqueeze.default"),
    takes_integers=True,
)
def reshape(step: Step, a: Arguments) -> Value:
    """Lower a change of shape."""
    return step.reshape(step.value(a["self"]), step.shape)


@lowers("aten.permute.default", takes_integers=True)
def permute(step: Step, a: Arguments) -> Value:
    """Lower a permutation."""
    x = step.value(a["self"])
    return step.permute(x, [dim % x.ndim for dim in a["dims"]])


@lowers("aten.transpose.int", takes_integers=True)
def transpose(step: Step, a: Arguments) -> Value:
    """Lower an exchange of two dimensions."""
    x = step.value(a["self"])
    order = list(range(x.ndim))
    first, second = a["dim0"] % x.ndim, a["dim1"] % x.ndim
    order[first], order[second] = second, first
    return step.permute(x, order)


@lowers("aten.t.default", "aten.mT.default", takes_integers=True)
def matrix_transpose(step: Step, a: Arguments) -> Value:
    """Lower an exchange of the last two dimensions."""
    x = step.value(a["self"])
    return step.permute(x, [*range(x.ndim - 2), x.ndim - 1, x.ndim - 2])


@lowers("aten.expand.default", takes_integers=True)
def expand(step: Step, a: Arguments) -> Operand:
    """Lower a repetition of dimensions of size 1."""
    x, shape = a["self"], step.shape
    if isinstance(x, Constant):
        return Expanded(x, shape)
    if isinstance(x, Expanded):
        return Expanded(x.constant, shape)
    return expanded(step, step.value(x), shape)


@lowers("aten.full.default", takes_integers=True)
def full(step: Step, a: Arguments) -> Operand:
    """Lower one number repeated over the batch."""
    number = a["fill_value"]
    if not isinstance(number, (int, float)):
        step.refuse(f"its number is {number}, expected a constant")
    dtype = step.node.meta["val"].dtype
    tensor = torch.full((1,) * len(step.shape), number, dtype=dtype)
    return Expanded(Constant(tensor, step.path + "." + step.node.name), step.shape)


@lowers(
    "aten.full_like.default",
    "aten.zeros_like.default",
    "aten.ones_like.default",
    takes_integers=True,
)
def full_like(step: Step, a: Arguments) -> Operand:
    """Lower one number in the shape of a value."""
    name = str(step.node.target).split(".")[1]
    number = {"zeros_like": 0, "ones_like": 1}.get(name, a.get("fill_value"))
    return full(step, {"fill_value": number})


@lowers("aten.repeat.default", takes_integers=True)
def repeat(step: Step, a: Arguments) -> Value:
    """Lower a repetition: [n] to [1, n], expanded to [r, n], is [r n]."""
    x, repeats = step.value(a["self"]), list(a["repeats"])
    if not all(isinstance(count, int) for count in repeats):
        shape = (1,) * (len(repeats) - x.ndim) + x.shape
        if any(r != 1 and n != 1 for r, n in zip(repeats, shape, strict=True)):
            step.refuse("it repeats more than a size of 1 over the batch")
        return expanded(step, x, step.shape)
    x = step.reshape(x, (1,) * (len(repeats) - x.ndim) + x.shape)
    apart = tuple(size for n in x.shape for size in (1, n))
    wide = tuple(size for r, n in zip(repeats, x.shape, strict=True) for size in (r, n))
    return step.reshape(expanded(step, step.reshape(x, apart), wide), step.shape)


@lowers("aten.repeat_interleave.self_int", takes_integers=True)
def repeat_interleave(step: Step, a: Arguments) -> Value:
    """Lower a repetition of each element in place."""
    x = step.value(a["self"])
    if a["dim"] is None:
        step.refuse("it has no dim, expected one")
    after = a["dim"] % x.ndim + 1
    apart = (*x.shape[:after], 1, *x.shape[after:])
    wide = (*x.shape[:after], a["repeats"], *x.shape[after:])
    return step.reshape(expanded(step, step.reshape(x, apart), wide), step.shape)


@lowers("aten.cat.default", takes_integers=True)
def cat(step: Step, a: Arguments) -> Value:
    """Lower a join; empty tensors, which torch lets pass, are left out."""
    ndim = len(step.shape)
    parts = [x for x in a["tensors"] if not (isinstance(x, Constant) and x.tensor.numel() == 0)]
    return concat(step, parts, a["dim"] % ndim, step.shape)


@lowers("aten.stack.default", takes_integers=True)
def stack(step: Step, a: Arguments) -> Value:
    """Lower a join along a new dimension."""
    dim = a["dim"] % len(step.shape)
    values = [step.value(x) for x in a["tensors"]]
    parts = [step.reshape(x, (*x.shape[:dim], 1, *x.shape[dim:])) for x in values]
    return concat(step, parts, dim, step.shape)


@lowers("aten.slice.Tensor", takes_integers=True)
def take(step: Step, a: Arguments) -> Value:
    """Lower a slice."""
    x = step.value(a["self"])
    dim = a["dim"] % x.ndim
    size, start = x.shape[dim], a["start"] or 0
    end = (1 << 62) if a["end"] is None else a["end"]
    if size < 0:
        if isinstance(end, torch.SymInt) and step.shape == x.shape:
            return x
        return step.slice(x, dim, start, end, a["step"])
    start, end, _ = slice(start, end).indices(size)
    return step.slice(x, dim, start, max(start, end), a["step"])


@lowers("aten.select.int", takes_integers=True)
def select(step: Step, a: Arguments) -> Value:
    """Lower the choice of one index."""
    x = step.value(a["self"])
    dim = a["dim"] % x.ndim
    if x.shape[dim] < 0:
        step.refuse("it takes a part of the batch, expected all of it")
    index = a["index"] % x.shape[dim]
    return step.reshape(step.slice(x, dim, index, index + 1), step.shape)


@lowers("aten.split.Tensor", "aten.split_with_sizes.default", takes_integers=True)
def split(step: Step, a: Arguments) -> list[Value]:
    """Lower a division into parts of one size or of given sizes."""
    x = step.value(a["self"])
    dim = a["dim"] % x.ndim
    if x.shape[dim] < 0:
        step.refuse("it takes a part of the batch, expected all of it")
    sizes = a.get("split_sizes")
    if sizes is None:
        sizes = [a["split_size"]] * -(-x.shape[dim] // a["split_size"])
    return _parts(step, x, dim, sizes)


@lowers("aten.chunk.default", takes_integers=True)
def chunk(step: Step, a: Arguments) -> list[Value]:
    """Lower a division into so many parts."""
    x = step.value(a["self"])
    dim = a["dim"] % x.ndim
    size = -(-x.shape[dim] // a["chunks"])
    return split(step, {"self": x, "dim": dim, "split_size": max(size, 1)})


@lowers("aten.unbind.int", takes_integers=True)
def unbind(step: Step, a: Arguments) -> list[Value]:
    """Lower a division into all single indices."""
    x = step.value(a["self"])
    dim = a["dim"] % x.ndim
    if x.shape[dim] < 0:
        step.refuse("it takes a part of the batch, expected all of it")
    shape = (*x.shape[:dim], *x.shape[dim + 1 :])
    return [step.reshape(part, shape) for part in _parts(step, x, dim, [1] * x.shape[dim])]


@lowers("aten.roll.default", takes_integers=True)
def roll(step: Step, a: Arguments) -> Value:
    """Lower a cyclic shift: two parts, joined the other way round."""
    x, dims = step.value(a["self"]), list(a["dims"])
    if not dims:
        step.refuse("it has no dims, expected some")
    for shift, dim in zip(a["shifts"], (dim % x.ndim for dim in dims), strict=True):
        if x.shape[dim] < 0:
            step.refuse("it shifts the batch, expected other dims")
        at = -shift % x.shape[dim]
        if at:
            parts = [step.slice(x, dim, at, x.shape[dim]), step.slice(x, dim, 0, at)]
            x = concat(step, parts, dim, x.shape)
    return x


@lowers("aten.pixel_shuffle.default")
def pixel_shuffle(step: Step, a: Arguments) -> Value:
    """Lower a pixel shuffle: [N, C r r, H, W] to [N, C, H r, W r]."""
    x, r = step.value(a["self"]), a["upscale_factor"]
    n, channels, height, width = _four(step, x)
    apart = step.reshape(x, (n, channels // (r * r), r, r, height, width))
    return step.reshape(step.permute(apart, [0, 1, 4, 2, 5, 3]), step.shape)


@lowers("aten.pixel_unshuffle.default")
def pixel_unshuffle(step: Step, a: Arguments) -> Value:
    """Lower the inverse of a pixel shuffle."""
    x, r = step.value(a["self"]), a["downscale_factor"]
    n, channels, height, width = _four(step, x)
    apart = step.reshape(x, (n, channels, height // r, r, width // r, r))
    return step.reshape(step.permute(apart, [0, 1, 3, 5, 2, 4]), step.shape)


@lowers("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def channel_shuffle(step: Step, a: Arguments) -> Value:
    """Lower a channel shuffle: groups by channels becomes channels by groups."""
    x, groups = step.value(a["self"]), a["groups"]
    apart = step.reshape(x, (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))
    swapped = step.permute(apart, [0, 2, 1, *range(3, apart.ndim)])
    return step.reshape(swapped, step.shape)


def expanded(step: Step, x: Value, shape: Shape) -> Value:
    """Append an expansion, unless the shape is that of x."""
    if x.ndim < len(shape):
        x = step.reshape(x, (1,) * (len(shape) - x.ndim) + x.shape)
    return x if x.shape == shape else step.emit("expand", [x], shape, ints=shape)


def concat(step: Step, parts: list[Any], dim: int, shape: Shape) -> Value:
    """Append a join, unless there is one part."""
    if len(parts) == 1:
        return step.value(parts[0])
    return step.emit("concat", parts, shape, ints=[dim])


def _parts(step: Step, x: Value, dim: int, sizes: list[int]) -> list[Value]:
    parts = []
    start = 0
    for size in sizes:
        end = min(start + size, x.shape[dim])
        parts.append(step.slice(x, dim, start, end))
        start = end
    return parts


def _four(step: Step, x: Value) -> Shape:
    if x.ndim != 4:
        step.refuse(f"its input has shape {list(x.shape)}, expected four dimensions")
    return x.shape
