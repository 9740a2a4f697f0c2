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

The step begins where its squared error is a minimum: from the best of some, the paper's start
2 mean|w| / sqrt(Q) among them, levels and step are chosen in turn, each the best for the other. When
`prune` or `SoftPruning` chooses a mask, step or codebook begin anew for the weights that it keeps:
these are the largest, and values that suited all weights would hold them at the ends of their range.

Price: the original, and one byte a weight for the mask; a rounding (a binary search in the
codebook) and two copies a use.

Source: Esser et al. 2020, "Learned step size quantization" (step, its gradient and scale); Bengio et
al. 2013 (straight through); Han, Mao and Dally 2016, "Deep compression" (gradient of a codebook).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tersenet.parametrization import Target, as_array, attach, targets
from tersenet.plan import Plan, Rule
from tersenet.pruning.masking import Masked
from tersenet.quantization import QUANTIZERS, layer_seed, quantize_arrays
from tersenet.quantization.kept import Quantized
from tersenet.quantization.lookup import Lookup
from tersenet.quantization.nearest import nearest

Values = npt.NDArray[Any]

LSQ = "lsq"
_STARTS, _ALTERNATIONS = 17, 20


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

    def __init__(self, mask: Tensor, original: Tensor, q: int) -> None:
        """Keep the mask, bool in the shape of the weight, and fit the step, a scalar parameter.

        Raises:
            ValueError: if a kept weight is not finite.
        """
        super().__init__(mask)
        dtype = torch.promote_types(original.dtype, torch.float32)
        self.step = nn.Parameter(torch.ones((), dtype=dtype, device=original.device))
        self.q = q
        self.refit(original)

    def masked(self, original: Tensor) -> Tensor:
        """Return the quantized weight."""
        weight: Tensor = _Step.apply(original, self.step, self.mask, self.q, self.is_soft)
        return weight

    def refit(self, original: Tensor) -> None:
        """Set the step to the one with the least squared error on what is kept, or nearly."""
        kept = np.abs(as_array(original)[self.mask.cpu().numpy()], dtype=np.float64)
        _check_finite(kept)
        if not kept.any():
            return  # the step moves whatever comes back
        least = 0 if self.is_soft or self.mask.all() else 1
        step = _best_step(kept, least, self.q)
        with torch.no_grad():
            self.step.fill_(step)

    def extra_repr(self) -> str:
        """Return how many steps there are to either side."""
        return f"q={self.q}"


class LearnedCodebook(LearnedQuantizer):
    """Computes a weight as the nearest of k learned values, which a quantizer gives at first."""

    def __init__(
        self, mask: Tensor, original: Tensor, rule: Rule, *, seed: int, normalize_gradient: bool
    ) -> None:
        """Keep the mask, bool in the shape of the weight, and fit the codebook [k], a parameter.

        Raises:
            ValueError: if a kept weight is not finite, or the quantizer refuses the rule's k or lam.
        """
        super().__init__(mask)
        self.rule, self.seed = rule, seed
        self.normalize_gradient = normalize_gradient
        found = self._fitted(original)
        dtype = torch.promote_types(original.dtype, torch.float32)
        self.codebook = nn.Parameter(torch.from_numpy(found).to(original.device, dtype))

    def masked(self, original: Tensor) -> Tensor:
        """Return the quantized weight."""
        symbols = self.symbols(original)
        counts = None
        if self.normalize_gradient:
            kept = self.mask.reshape(-1).to(torch.float64)
            counts = torch.bincount(symbols.reshape(-1), kept, minlength=self.codebook.numel())
        values = Lookup.apply(self.codebook, symbols, self.mask, counts)
        weight: Tensor = _Through.apply(
            values.to(original.dtype), original, None if self.is_soft else self.mask
        )
        return weight

    def symbols(self, original: Tensor) -> Tensor:
        """Return which value is the nearest to each original, int32 in its shape."""
        with torch.no_grad():
            codebook, order = self.codebook.sort()
            middles = (codebook[1:] + codebook[:-1]) / 2
            found = nearest(original.to(codebook.dtype), middles)
            return order.to(torch.int32).index_select(0, found.reshape(-1)).view(found.shape)

    def refit(self, original: Tensor) -> None:
        """Set the codebook to what the quantizer gives for what is kept."""
        with torch.no_grad():
            self.codebook.copy_(torch.from_numpy(self._fitted(original)))

    def _fitted(self, original: Tensor) -> Values:
        """Return k values; where the quantizer needs fewer, the last stands for those it lacks."""
        rule, mask = self.rule, self.mask.cpu().numpy()
        assert rule.quantizer is not None
        found = quantize_arrays(
            {"weight": as_array(original)},
            rule.quantizer,
            rule.k,
            masks={"weight": mask},
            seed=self.seed,
            lam=rule.lam if rule.quantizer == "ecsq" else None,
        )["weight"].codebook
        k = self.codebook.numel() if hasattr(self, "codebook") else rule.k or max(len(found), 1)
        last = found[-1] if len(found) else np.float32(0)
        values = np.full(k, last, np.float32)
        values[: len(found)] = found[:k]
        return values


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

    Examples:
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
    original = target.original.detach() if isinstance(present, Masked) else target.weight()
    mask = original != 0 if present is None else present.mask
    try:
        if rule.quantizer == LSQ:
            return LearnedStep(mask, original, _steps(rule.k))
        if rule.quantizer not in QUANTIZERS:
            names = ", ".join([LSQ, *QUANTIZERS])
            raise ValueError(f"quantizer is {rule.quantizer!r}, expected one of {names}")
        seed = layer_seed(seed, target.name)
        return LearnedCodebook(
            mask, original, rule, seed=seed, normalize_gradient=normalize_gradient
        )
    except ValueError as error:
        raise ValueError(f"qat: layer {target.name!r}: {error}") from error


def _steps(k: int | None) -> int:
    """Return Q, how many steps there are to either side of zero."""
    if k is None or k < 3:
        raise ValueError(f"lsq: k is {k}, expected at least 3: zero and a step to either side")
    return (k - 1) // 2


def _best_step(kept: Values, least: int, q: int) -> float:
    """Return the step with the least squared error for magnitudes, at levels least to q, or nearly."""

    def levels(step: float) -> Values:
        return np.clip(np.rint(kept / step), least, q)

    def error(step: float) -> float:
        away = kept - step * levels(step)
        return float(away @ away)

    tried = [2 * float(kept.mean()) / math.sqrt(q)]
    tried += [float(kept.max()) / q * 2 ** (-part / 4) for part in range(_STARTS)]
    step = min(tried, key=error)
    for _ in range(_ALTERNATIONS):
        level = levels(step)
        last, step = step, float(level @ kept) / float(level @ level)
        if step == last:
            break
    return step


def _check_finite(kept: Values) -> None:
    bad = np.count_nonzero(~np.isfinite(kept))
    if bad:
        raise ValueError(f"lsq: weights hold {bad} non-finite values, expected finite weights")


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
