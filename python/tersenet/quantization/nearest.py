"""Which of some sorted values is the nearest to each weight, which training asks for in every step.

::

    middles [k - 1] between the values            symbol of w = how many middles are less than w
    a grid of equal cells from the first middle to the last
    first[cell] = how many middles are in the cells before
    symbol = first[cell of w], and one more for each middle of that cell that is less

Why a grid: a binary search for each weight mispredicts its branches, log2(k) times; cells are found by
arithmetic on all weights at once. The cell of a number does not fall as the number grows, whatever is
rounded on the way, so the middles of other cells are on the side that their cells are on, and the
result is exact.

Price: as many comparisons as the fullest cell has middles. Where these are many, on accelerators, and
where the graph is compiled, it is torch.bucketize.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CELLS = 4096  # their table fits a first-level cache
_MOST = 8  # middles of a cell: more are found faster by a search
_AT_ONCE = 1 << 16  # weights, so that what is in between stays in a second-level cache


def nearest(weights: Tensor, middles: Tensor) -> Tensor:
    """Return for each weight how many of the middles are less, int32 in the shape of the weights.

    Args:
        weights: floats of any shape; a NaN counts as more than all middles.
        middles: floats [k - 1] of the same type, ascending.
    """
    width = 0.0
    if weights.device.type == "cpu" and len(middles) > 1 and not torch.compiler.is_compiling():
        width = float(middles[-1] - middles[0])
    scale = _CELLS / width if width else 0.0
    if not 0 < scale < torch.finfo(middles.dtype).max:
        return torch.bucketize(weights.contiguous(), middles, out_int32=True)
    low = float(middles[0])
    held = torch.bincount(_cells(middles, low, scale), minlength=_CELLS)
    most = int(held.max())
    if most > _MOST:
        return torch.bucketize(weights.contiguous(), middles, out_int32=True)
    first = (held.cumsum(0) - held).to(torch.int32)
    padded = torch.cat([middles, middles.new_full((1,), torch.inf)])
    flat = weights.reshape(-1)
    symbols = torch.empty(flat.shape, dtype=torch.int32)
    for part, found in zip(
        torch.split(flat, _AT_ONCE), torch.split(symbols, _AT_ONCE), strict=True
    ):
        part = part.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        torch.index_select(first, 0, _cells(part, low, scale), out=found)
        for _ in range(most):
            found += part > padded.index_select(0, found)
    return symbols.view(weights.shape)


def _cells(numbers: Tensor, low: float, scale: float) -> Tensor:
    """Return the cell of each number, int32."""
    return numbers.sub(low).mul_(scale).clamp_(0, _CELLS - 1).to(torch.int32)
