"""The shapes of a network's values for a batch of one, by the graph that its file holds.

::

    inputs ─▶ node 0 ─▶ node 1 ─▶ ...      a rule for each operator: operands, weights, ints ─▶ shape

The core plans the same shapes when a network runs, with its weights loaded; these are for who only
reads the header. The operators and their ints are in FORMAT.md.

Price: a few numbers a node; no weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import prod
from typing import TYPE_CHECKING

from tersenet.errors import FormatError

if TYPE_CHECKING:
    from tersenet._core import Graph

Shape = tuple[int, ...]

_MOST = 1 << 62  # numbers of a value


def value_shapes(graph: Graph, weights: Mapping[str, Shape]) -> list[Shape]:
    """Return the shape of each value: of the inputs, then of what each node makes.

    Args:
        graph: as `export` wrote it.
        weights: the shape of each tensor that a node names.

    Raises:
        FormatError: if a node and its operands do not fit, naming it.
    """
    inputs, nodes, _, _ = graph
    shapes = [_for_one(dims) for _, _, dims in inputs]
    for number, (op, operands, names, ints, _, place) in enumerate(nodes):
        where = f"node {number} ({op}, {place})"
        if op not in _RULES:
            raise FormatError(f"{where}: expected one of {', '.join(_RULES)}")
        given = _Given([shapes[value] for value in operands], [], ints)
        try:
            given.weights.extend(weights[name] for name in names[:1] if name)
            shape = _RULES[op](given)
            if any(size < 0 for size in shape) or prod(shape) > _MOST:
                raise ValueError("a result of under 0 or over 2**62 numbers")
        except (ArithmeticError, LookupError, ValueError) as error:
            found = ", ".join(str(list(shape)) for shape in given.operands)
            raise FormatError(
                f"{where}: operands of {found} with {ints}, expected what fits ({error})"
            ) from error
        shapes.append(shape)
    return shapes


@dataclass(frozen=True)
class _Given:
    """What a rule takes; of the weights only the first one, where there is one."""

    operands: list[Shape]
    weights: list[Shape]
    ints: list[int]

    @property
    def x(self) -> Shape:
        """The first operand."""
        return self.operands[0]


def _for_one(dims: Sequence[int]) -> Shape:
    """Return dimensions for a batch of one; −m is m times the batch."""
    return tuple(map(abs, dims))


def _place(dim: int, rank: int) -> int:
    """Return the number of a dimension, which counts from the end where it is negative."""
    if not -rank <= dim < rank:
        raise ValueError(f"dimension {dim}, expected one of {rank}")
    return dim % rank


def _image(shape: Shape) -> tuple[int, int, int, int]:
    """Return images, channels, height and width of [N, C, H, W] or [N, C, L]."""
    if len(shape) not in (3, 4):
        raise ValueError("expected 3 or 4 dimensions")
    return shape[0], shape[1], shape[-2] if len(shape) == 4 else 1, shape[-1]


def _like(x: Shape, channels: int, height: int, width: int) -> Shape:
    """Return the shape of an image with the images and the rank of `x`."""
    _image(x)
    if len(x) == 4:
        return x[0], channels, height, width
    if height != 1:
        raise ValueError(f"a height of {height}, expected 1 for three dimensions")
    return x[0], channels, width


def _windows(
    size: int, kernel: int, stride: int, before: int, after: int, dilation: int, is_ceil: bool
) -> int:
    """Return how many windows there are along a side."""
    room = size + before + after - dilation * (kernel - 1) - 1
    if min(kernel, stride, dilation) < 1 or room < 0:
        raise ValueError(f"a side of {size}, expected room for a kernel of {kernel}")
    if not is_ceil:
        return room // stride + 1
    count = -(-room // stride) + 1
    return count if (count - 1) * stride < size + before else count - 1


def _conv(given: _Given) -> Shape:
    kh, kw, sh, sw, top, bottom, left, right, dh, dw, groups = given.ints[:11]
    _, channels, height, width = _image(given.x)
    if prod(given.weights[0][1:]) != channels // groups * kh * kw:
        raise ValueError(f"expected what kernels of {list(given.weights[0])} go over")
    rows = _windows(height, kh, sh, top, bottom, dh, False)
    columns = _windows(width, kw, sw, left, right, dw, False)
    return _like(given.x, given.weights[0][0], rows, columns)


def _conv_transpose(given: _Given) -> Shape:
    kh, kw, sh, sw, ph, pw, oph, opw, dh, dw = given.ints[:10]
    _, _, height, width = _image(given.x)
    rows = (height - 1) * sh - 2 * ph + dh * (kh - 1) + oph + 1
    columns = (width - 1) * sw - 2 * pw + dw * (kw - 1) + opw + 1
    return _like(given.x, given.weights[0][0], rows, columns)


def _linear(given: _Given) -> Shape:
    nrows, *ncols = given.weights[0]
    if prod(ncols) != given.x[-1]:
        raise ValueError(f"expected rows for a weight of {list(given.weights[0])}")
    return (*given.x[:-1], nrows)


def _max_pool(given: _Given) -> Shape:
    kh, kw, sh, sw, ph, pw, dh, dw, is_ceil = given.ints
    return _pool(given.x, (kh, sh, ph, dh), (kw, sw, pw, dw), bool(is_ceil))


def _avg_pool(given: _Given) -> Shape:
    kh, kw, sh, sw, ph, pw, is_ceil = given.ints[:7]
    return _pool(given.x, (kh, sh, ph, 1), (kw, sw, pw, 1), bool(is_ceil))


def _pool(
    x: Shape, down: tuple[int, int, int, int], right: tuple[int, int, int, int], is_ceil: bool
) -> Shape:
    """Pool by windows, each of (kernel, stride, padding, dilation)."""
    _, channels, height, width = _image(x)
    sides = []
    for size, (kernel, stride, padding, dilation) in ((height, down), (width, right)):
        sides.append(_windows(size, kernel, stride, padding, padding, dilation, is_ceil))
    return _like(x, channels, *sides)


def _concat(given: _Given) -> Shape:
    joined = _place(given.ints[0], len(given.x))
    rests = {shape[:joined] + shape[joined + 1 :] for shape in given.operands}
    if len(rests) > 1:
        raise ValueError(f"expected equal dimensions but {joined}")
    total = sum(shape[joined] for shape in given.operands)
    return (*given.x[:joined], total, *given.x[joined + 1 :])


def _slice(given: _Given) -> Shape:
    dim, start, end, step = given.ints
    dim = _place(dim, len(given.x))
    if step < 1:
        raise ValueError(f"a step of {step}, expected at least 1")
    size = given.x[dim]
    first, last = (min(max(at + size if at < 0 else at, 0), size) for at in (start, end))
    return (*given.x[:dim], -(-max(last - first, 0) // step), *given.x[dim + 1 :])


def _reshape(given: _Given) -> Shape:
    shape = _for_one(given.ints)
    if prod(shape) != prod(given.x):
        raise ValueError(f"expected as many numbers as in {list(shape)}")
    return shape


def _permute(given: _Given) -> Shape:
    order = [_place(dim, len(given.x)) for dim in given.ints]
    if sorted(order) != list(range(len(given.x))):
        raise ValueError("expected each dimension once")
    return tuple(given.x[dim] for dim in order)


def _expand(given: _Given) -> Shape:
    shape = _for_one(given.ints)
    if _broadcast(given.x, shape) != shape:
        raise ValueError(f"expected dimensions of {list(shape)}, or 1")
    return shape


def _reduce(given: _Given) -> Shape:
    _, keeps_dims, *dims = given.ints
    goes = {_place(dim, len(given.x)) for dim in dims}
    left = (1 if dim in goes else size for dim, size in enumerate(given.x))
    return tuple(size for dim, size in enumerate(left) if keeps_dims or dim not in goes)


def _pad(given: _Given) -> Shape:
    pairs = zip(given.ints[1::2], given.ints[2::2], strict=True)
    return tuple(
        size + before + after for size, (before, after) in zip(given.x, pairs, strict=True)
    )


def _matmul(given: _Given) -> Shape:
    a, b = given.operands
    inner = b[-2] if len(b) > 1 else b[0]
    if a[-1] != inner:
        raise ValueError("expected [..., m, k] and [..., k, n]")
    return _broadcast(a[:-2], b[:-2]) + a[-2:-1] + (b[-1:] if len(b) > 1 else ())


def _attention(given: _Given) -> Shape:
    (q, k, v), groups_heads = given.operands[:3], given.ints[1]
    outer = _broadcast(k[:-2], v[:-2])
    if groups_heads and len(q) > 2 and outer:
        outer = (*outer[:-1], q[-3])
    return (*_broadcast(q[:-2], outer), q[-2], v[-1])


def _broadcast(a: Shape, b: Shape) -> Shape:
    pairs = list(zip_longest(reversed(a), reversed(b), fillvalue=1))
    if any(first != second and 1 not in (first, second) for first, second in pairs):
        raise ValueError("expected shapes that broadcast")
    return tuple(second if first == 1 else first for first, second in reversed(pairs))


_RULES: dict[str, Callable[[_Given], Shape]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "embedding": lambda given: (*given.x, prod(given.weights[0][1:])),
    "binary": lambda given: _broadcast(*given.operands),
    "constant": lambda given: given.weights[0],
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": lambda given: _like(given.x, given.x[1], *given.ints),
    "adaptive_max_pool": lambda given: _like(given.x, given.x[1], *given.ints),
    "concat": _concat,
    "slice": _slice,
    "reshape": _reshape,
    "permute": _permute,
    "expand": _expand,
    "reduce": _reduce,
    "pad": _pad,
    "upsample": lambda given: _like(given.x, given.x[1], *given.ints[2:]),
    "matmul": _matmul,
    "attention": _attention,
    **dict.fromkeys(
        (
            *("affine", "unary", "binary_scalar", "layer_norm", "group_norm"),
            *("softmax", "log_softmax"),
        ),
        lambda given: given.x,
    ),
}
