"""Quantization-aware training: weights move between shared values, and the values are learned.

::

    "lsq"   v = original / step                               # Q = (k - 1) // 2
            weight = step * clamp(round(v), -Q, Q) where mask, else 0
            d original = d weight where |v| < Q                # straight through the rounding
            d step     = g * sum of d weight * (round(v) - v where |v| < Q, else ±Q)
            g          = 1 / sqrt(kept weights * Q)
    others  codebook[k] = what that quantizer ("cws": k-means) gives at the start
            weight = the codebook value nearest to original where mask, else 0
            d original = d weight
            d codebook[j] = the mean (or sum) of d weight over the weights that have value j

Why this way: `quantize` settles which weights share a value before they are trained together. Here
the original of each weight goes on training under its rounding and changes its value when it has
moved far enough, so the network learns with the errors that its few values make. k = 2**bits gives
the symmetric steps of so many bits, k - 1 of them, zero among them.

In a pruned layer the mask says what is zero, so a kept weight is never rounded to zero: it takes
the step on its side. So the sparsity stays exactly what was asked for, and of the two bits that a
ternary weight needs none is spent on zeros. While the mask is soft, or where nothing is pruned,
zero is a step like any other.

The step begins where its squared error is a minimum: from 2 mean|w| / sqrt(Q), the start of the
paper, levels and step are chosen in turn, each the best for the other (Lloyd's way).

Price: the original, and one byte a weight for the mask; a rounding (a binary search in the
codebook) and two copies a use.

Source: Esser et al. 2020, "Learned step size quantization" (step, its gradient and scale); Bengio et
al. 2013 (straight through); Han, Mao and Dally 2016, "Deep compression" (gradient of a codebook).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tersenet.parametrization import Target, as_array, attach, targets
from tersenet.plan import Plan
from tersenet.pruning.masking import Masked
from tersenet.quantization import QUANTIZERS, layer_seed, quantize_arrays
from tersenet.quantization.kept import Mask, Quantized, Weights
from tersenet.quantization.lookup import Lookup

LSQ = "lsq"
_ALTERNATIONS = 50


class LearnedQuantizer(Masked):
    """Computes a weight from its original and from learned values, which are its own parameters."""

    def quantized(self, original: Tensor) -> Quantized:
        """Return codebook, symbols and mask of what the layer computes with; kept zeros leave it."""
        with torch.no_grad():
            weight = as_array(self.masked(original)).astype(np.float32)
        mask = self.mask.cpu().numpy().copy()
        values, kept = np.unique(weight[mask], return_inverse=True)
        symbols = np.zeros(mask.shape, np.uint16)
        symbols[mask] = kept.reshape(-1)
        return Quantized.of(values, symbols, mask)


class LearnedStep(LearnedQuantizer):
    """Computes a weight as a multiple of a learned step, at most Q of them to either side of zero."""

    def __init__(self, mask: Tensor, step: Tensor, q: int) -> None:
        """Keep the mask, bool in the shape of the weight; the step, a scalar, is a parameter."""
        super().__init__(mask)
        self.step = nn.Parameter(step)
        self.q = q

    def masked(self, original: Tensor) -> Tensor:
        """Return the quantized weight."""
        weight: Tensor = _Step.apply(original, self.step, self.mask, self.q, self.is_soft)
        return weight

    def extra_repr(self) -> str:
        """Return how many steps there are to either side."""
        return f"q={self.q}"


class LearnedCodebook(LearnedQuantizer):
    """Computes a weight as the nearest of k learned values."""

    def __init__(self, mask: Tensor, codebook: Tensor, *, normalize_gradient: bool = True) -> None:
        """Keep the mask, bool in the shape of the weight; the codebook [k] is a parameter."""
        super().__init__(mask)
        self.codebook = nn.Parameter(codebook)
        self.normalize_gradient = normalize_gradient

    def masked(self, original: Tensor) -> Tensor:
        """Return the quantized weight."""
        symbols = self.symbols(original)
        counts = None
        if self.normalize_gradient:
            counts = torch.bincount(symbols[self.mask], minlength=self.codebook.numel())
        values = Lookup.apply(self.codebook, symbols, self.mask, counts)
        weight: Tensor = _Through.apply(
            values.to(original.dtype), original, None if self.is_soft else self.mask
        )
        return weight

    def symbols(self, original: Tensor) -> Tensor:
        """Return which value is the nearest to each original, int64 in its shape."""
        with torch.no_grad():
            codebook, order = self.codebook.sort()
            middles = (codebook[1:] + codebook[:-1]) / 2
            return order[torch.bucketize(original.to(codebook.dtype), middles)]


def prepare_qat(model: nn.Module, plan: Plan, *, normalize_gradient: bool = True) -> None:
    """Let the layers whose rule has a quantizer train with quantized weights, in place.

    With quantizer "lsq" a weight is a multiple of a learned step, k = 2**bits; with any other it is
    one of k learned values, which begin as that quantizer gives them. A mask from `prune` stays;
    without one, weights equal to zero count as pruned. `SoftPruning` can prune meanwhile. Steps and
    codebooks are new parameters (`codebook_parameters`): make the optimizer after this; all others
    stay the same objects but in a layer of `quantize`, which trains on from its present weights.
    `compress`, `export` and `unparametrize` take the weights as the layers compute them. If an error
    is raised, the model is as it was.

    Args:
        model: on the device where it trains.
        plan: a quantizer and k for each layer; k at least 3 for "lsq".
        normalize_gradient: whether a codebook value gets the mean of its weights' gradients, as in
            `quantize`, or the sum.

    Raises:
        ValueError: if the plan quantizes no layer or asks for one codebook of a kind, a pattern
            matches nothing, a quantizer is unknown, k is out of its range, or a weight is not finite
            or no plain parameter.

    Example:
        >>> model = nn.Linear(10, 10)
        >>> prepare_qat(model, Plan.of(quantizer="lsq", k=2**2))
        >>> len(model.weight.unique())
        3
    """
    attach_all(prepared(model, plan, normalize_gradient=normalize_gradient))


Prepared = list[tuple[Target, LearnedQuantizer]]


def prepared(model: nn.Module, plan: Plan, *, normalize_gradient: bool = True) -> Prepared:
    """Return the quantizer of each layer that the plan quantizes, for `attach_all`.

    Raises:
        ValueError: as `prepare_qat`.
    """
    if plan.codebook_scope != "layer":
        found = f"codebook_scope is {plan.codebook_scope!r}"
        raise ValueError(f"qat: {found}, expected 'layer': each layer learns its own values")
    chosen = [target for target in targets(model, plan) if target.rule.quantizer is not None]
    if not chosen:
        raise ValueError("qat: the plan quantizes no layer, expected a quantizer for one")
    return [(target, _quantizer(target, plan.seed, normalize_gradient)) for target in chosen]


def attach_all(ready: Prepared) -> None:
    """Let the quantizers compute the weights, under the masks that these have now."""
    for target, quantizer in ready:
        present = target.parametrization
        original = target.original
        if isinstance(present, Masked):
            quantizer.mask = present.mask
            quantizer.is_soft = present.is_soft
        elif present is not None:
            trains = original.requires_grad
            original = nn.Parameter(target.weight().clone(), requires_grad=trains)
        attach(target, quantizer, original)


def _quantizer(target: Target, seed: int, normalize_gradient: bool) -> LearnedQuantizer:
    rule, present = target.rule, target.parametrization
    name = rule.quantizer
    if name != LSQ and name not in QUANTIZERS:
        names = ", ".join([LSQ, *QUANTIZERS])
        raise ValueError(f"qat: quantizer is {name!r}, expected one of {names}")
    weights = as_array(target.original if isinstance(present, Masked) else target.weight())
    mask = weights != 0 if present is None else present.mask.cpu().numpy()
    device = target.original.device
    dtype = torch.promote_types(target.original.dtype, torch.float32)
    buffer = torch.from_numpy(mask).to(device)
    if name == LSQ:
        q = _steps(target)
        step = _first_step(target.name, weights, mask, q)
        return LearnedStep(buffer, torch.tensor(step, dtype=dtype, device=device), q)
    assert name is not None
    lam = rule.lam if name == "ecsq" else None
    found = quantize_arrays(
        {target.name: weights},
        name,
        rule.k,
        masks={target.name: mask},
        seed=layer_seed(seed, target.name),
        lam=lam,
    )[target.name]
    codebook = found.codebook if found.k else np.zeros(1, np.float32)
    values = torch.from_numpy(codebook).to(device, dtype)
    return LearnedCodebook(buffer, values, normalize_gradient=normalize_gradient)


def _steps(target: Target) -> int:
    """Return Q, how many steps there are to either side of zero."""
    k = target.rule.k
    if k is None or k < 3:
        found = f"layer {target.name!r} gets quantizer 'lsq' with k {k}"
        raise ValueError(f"qat: {found}, expected at least 3: zero and a step to either side")
    return (k - 1) // 2


def _first_step(name: str, weights: Weights, mask: Mask, q: int) -> float:
    """Return the step with the least squared error, or nearly."""
    kept = np.abs(weights[mask], dtype=np.float64)
    if not np.isfinite(kept).all():
        count = np.count_nonzero(~np.isfinite(kept))
        raise ValueError(f"qat: {name} holds {count} non-finite weights, expected finite ones")
    if not kept.any():
        return 1.0  # whatever returns will move it
    least = 0 if mask.all() else 1
    step = 2 * float(kept.mean()) / math.sqrt(q)
    for _ in range(_ALTERNATIONS):
        levels = np.clip(np.rint(kept / step), least, q)
        squares = float(levels @ levels)
        if squares == 0:
            break
        last, step = step, float(levels @ kept) / squares
        if step == last:
            break
    return step


class _Step(torch.autograd.Function):
    """step * level, with the gradients of Esser et al. 2020 in both."""

    @staticmethod
    def forward(
        ctx: Any, original: Tensor, step: Tensor, mask: Tensor, q: int, is_soft: bool
    ) -> Tensor:
        size = _size(step)
        level = _levels(original, size, mask, q, is_soft)
        ctx.save_for_backward(original, step, mask)
        ctx.q, ctx.is_soft = q, is_soft
        return (level * size).to(original.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None, None, None]:
        original, step, mask = ctx.saved_tensors
        (grad,) = grads
        size = _size(step)
        level = _levels(original, size, mask, ctx.q, ctx.is_soft)
        v = original.to(step.dtype) / size
        is_inside = v.abs() < ctx.q
        nothing = torch.zeros_like(grad)
        passes = is_inside if ctx.is_soft else is_inside & mask
        slope = torch.where(mask, torch.where(is_inside, level - v, level), 0)
        total = torch.where(mask, grad * slope, 0).sum(dtype=torch.float64)
        scale = (mask.sum().clamp(min=1) * ctx.q).to(torch.float64).rsqrt()
        moved = (total * scale * torch.where(step < 0, -1, 1)).to(step.dtype)
        return torch.where(passes, grad, nothing), moved, None, None, None


class _Through(torch.autograd.Function):
    """Values, whose gradient reaches the original too, under a mask or everywhere."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, original: Tensor, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(mask)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        (mask,) = ctx.saved_tensors
        (grad,) = grads
        passed = grad if mask is None else torch.where(mask, grad, torch.zeros_like(grad))
        return grad, passed, None


def _size(step: Tensor) -> Tensor:
    """Return the step as it counts: an optimizer may carry it to zero or beyond."""
    return step.abs().clamp(min=torch.finfo(step.dtype).tiny)


def _levels(original: Tensor, size: Tensor, mask: Tensor, q: int, is_soft: bool) -> Tensor:
    """Return the multiple of the step for each weight, +0.0 where pruned; never -0.0."""
    v = original.to(size.dtype) / size
    level = v.round().clamp(-q, q)
    if not is_soft:
        side = torch.where(v < 0, -1, 1).to(level.dtype)
        level = torch.where((level == 0) & ~mask.all(), side, level)
    return torch.where(mask & (level != 0), level, 0)
