"""codebook[symbols] under a mask, whose gradient is summed or averaged over each value's members.

Sums are accumulated in float64, also for float16 and bfloat16, where adding up a large cluster
would stall.

Price: the backward pass needs 12 bytes a weight for a moment.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Lookup(torch.autograd.Function):
    """The weight of `symbols` (in its shape) from a codebook [k], zero where the mask is False.

    `counts` [k] divides the gradient of each value; None leaves the sum.
    """

    @staticmethod
    def forward(codebook: Tensor, symbols: Tensor, mask: Tensor, counts: Tensor | None) -> Tensor:
        """Return the weight, in the codebook's type."""
        dense = codebook.index_select(0, symbols.reshape(-1).to(torch.int32))
        return dense.view(symbols.shape).masked_fill_(~mask, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the gradient needs."""
        codebook, symbols, mask, counts = inputs
        ctx.save_for_backward(symbols, mask, counts)
        ctx.k = codebook.numel()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the codebook."""
        symbols, mask, counts = ctx.saved_tensors
        (grad,) = grads
        kept = torch.where(mask, grad, torch.zeros_like(grad)).reshape(-1).to(torch.float64)
        flat = symbols.reshape(-1).to(torch.int32)
        if kept.is_cuda and not torch.are_deterministic_algorithms_enabled():
            # 7 times faster than index_add, all of whose threads wait for the same few sums.
            sums = torch.bincount(flat, kept, minlength=ctx.k)
        else:
            sums = torch.zeros(ctx.k, dtype=torch.float64, device=grad.device)
            sums = sums.index_add(0, flat, kept)
        if counts is not None:
            sums = sums / counts.clamp(min=1)
        return sums.to(grad.dtype), None, None, None
