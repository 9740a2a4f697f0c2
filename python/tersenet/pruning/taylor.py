"""Taylor scores: by how much the loss would change, to first order, without a weight.

::

    g     = dL/dw of each batch, as the layers see w             # evaluation mode
    A     = mean over the batches of |g|
    score = |w| * A                      what pruning w does to the loss
            |Q(w) - w| * A               what quantizing it does, given Q
    of a kernel or a filter: the sum over its weights

Why this way: one backward pass a batch scores every weight, and needs no labels where the loss needs
none: the distance to what a teacher gives on a calibration set will do. The absolute value is taken
per batch, because near a minimum the gradients of the batches cancel, and their mean says little.
It is taken per weight in a group too: before a norm the loss does not change with the scale of a
filter, so that the signed sum of w * g over the filter vanishes whatever the filter is worth.

Gradients are those of evaluation mode: no dropout, and the running statistics of norms stay.

Price: a forward and a backward pass a batch, one float32 (or float64) a weight.

Source: Molchanov, Tyree, Karras, Aila and Kautz 2017, "Pruning convolutional neural networks for
resource efficient inference"; Molchanov, Mallya, Tyree, Frosio and Kautz 2019, "Importance
estimation for neural network pruning". After the idea of a Taylor score for pruning and quantizing
jointly, as the abstract of arXiv 2010.01892 states it; the forms here are the standard ones above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tersenet.parametrization import Target, as_array, targets
from tersenet.plan import Plan, Rule
from tersenet.pruning.magnitude import Weights
from tersenet.pruning.masking import Masked
from tersenet.pruning.scores import GROUPS, grouped
from tersenet.quantization.kept import Quantized
from tersenet.training.loop import Batch, Loss, in_mode, outputs_of, parts_of

Quantizing = Callable[[Weights], Quantized] | Mapping[str, "Quantized | Weights"]


def taylor_scores(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    *,
    layers: str | Sequence[str] = "*",
    by: str = "weight",
    quantized: Quantizing | None = None,
) -> dict[str, Weights]:
    """Return the scores of each layer, at least 0, by layer name; tied layers count once.

    `prune(model, plan, scores=...)` takes them. The model is left as it was: its gradients, its
    modes, its running statistics. Of a layer that is pruned already, w is the dense weight under
    the mask, so that with `regrow` what would return is ranked too.

    Args:
        model: pruned or not, on any device.
        batches: (inputs, targets), as for `fit`, or inputs alone where the loss needs no targets.
        loss: outputs and targets to a scalar.
        layers: patterns of layer names, as in a `Plan`.
        by: "weight" gives scores in the shape of the weight, "kernel" [out, in], "filter" [out].
        quantized: for the scores of quantizing in place of pruning. A quantizer of one array
            (`lambda w: cws(w, 16)`), or by layer name its result or a codebook: float [k], of
            which each weight that is not zero takes the nearest value (the lower of two).

    Raises:
        ValueError: if there are no batches, the loss is no scalar that the weights have a part in,
            a gradient is not finite, an option is unknown, what is quantized does not fit, or as
            `targets` of a plan.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[3.0, -1.0]])
        >>> data = [(torch.tensor([[1.0, 2.0]]), None)]
        >>> taylor_scores(model, data, lambda outputs, _: outputs.sum())
        {'': array([[3., 2.]], dtype=float32)}
    """
    if by not in GROUPS:
        raise ValueError(f"taylor: by is {by!r}, expected one of {', '.join(GROUPS)}")
    patterns = [layers] if isinstance(layers, str) else layers
    chosen = targets(model, Plan({pattern: Rule() for pattern in patterns}))
    steps = {target.name: _distance(target, quantized) for target in chosen}
    gradients = mean_gradients(model, batches, loss, chosen)
    return {name: grouped(step * gradients[name], by) for name, step in steps.items()}


def mean_gradients(
    model: nn.Module, batches: Iterable[Batch], loss: Loss, chosen: Sequence[Target]
) -> dict[str, Weights]:
    """Return the mean of |dL/dw| over the batches, for each weight w as its layers see it.

    Raises:
        ValueError: as `taylor_scores`.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    frozen = {t.original for t in chosen if not t.original.requires_grad}
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with in_mode(model, training=False), torch.enable_grad():
            for batch in batches:
                inputs, expected = parts_of(batch)
                # cached: the tensors asked for here are the ones that the layers use
                with parametrize.cached():
                    found = _gradients(model, inputs, expected, loss, chosen)
                for name, gradient in found.items():
                    sums[name] = sums[name] + gradient if count else gradient
                count += 1
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    if count == 0:
        raise ValueError("taylor: no batches, expected at least one")
    means = {name: as_array(total / count) for name, total in sums.items()}
    for name, mean in means.items():
        if not np.isfinite(mean).all():
            bad = np.count_nonzero(~np.isfinite(mean))
            raise ValueError(
                f"taylor: the gradient of layer {name!r} holds {bad} non-finite values, "
                "expected finite ones"
            )
    return means


def _gradients(
    model: nn.Module, inputs: object, expected: object, loss: Loss, chosen: Sequence[Target]
) -> dict[str, Tensor]:
    """Return |dL/dw| of one batch; where a weight stands in several places, of their sum."""
    weights = {t.name: {id(w): w for w in (getattr(*p) for p in t.places)} for t in chosen}
    value = loss(outputs_of(model, inputs), expected)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        found = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"
        raise ValueError(f"taylor: loss is {found}, expected a scalar that depends on the weights")
    flat = [w for held in weights.values() for w in held.values()]
    grads = iter(torch.autograd.grad(value.reshape(()), flat, allow_unused=True))
    result = {}
    for name, held in weights.items():
        total: Tensor | None = None
        for weight in held.values():
            grad = next(grads)
            grad = torch.zeros_like(weight) if grad is None else grad
            grad = grad.to_dense() if grad.is_sparse else grad
            total = grad if total is None else total + grad
        assert total is not None
        result[name] = total.detach().abs().to(torch.promote_types(total.dtype, torch.float32))
    return result


def _distance(target: Target, quantized: Quantizing | None) -> Weights:
    """Return how far each weight would move: |w| to zero, or |Q(w) - w|."""
    if quantized is None:
        is_masked = isinstance(target.parametrization, Masked)
        moved: Weights = np.abs(as_array(target.original if is_masked else target.weight()))
        return moved
    weight, name = as_array(target.weight()), target.name
    if not callable(quantized) and name not in quantized:
        raise ValueError(f"taylor: quantized has no layer {name!r}, expected one for each layer")
    found = quantized(weight) if callable(quantized) else quantized[name]
    values = found.values() if isinstance(found, Quantized) else _nearest(found, weight, name)
    if values.shape != weight.shape:
        raise ValueError(
            f"taylor: quantized layer {name!r} has shape {list(values.shape)}, "
            f"expected {list(weight.shape)}"
        )
    distance: Weights = np.abs(values - weight)
    return distance


def _nearest(codebook: object, weight: Weights, name: str) -> Weights:
    """Return the nearest value of the codebook for each weight other than zero."""
    values = np.asarray(codebook)
    if values.ndim != 1 or values.size == 0 or values.dtype.kind != "f":
        raise ValueError(
            f"taylor: codebook of layer {name!r} is {values.dtype} {list(values.shape)}, "
            "expected floats [k] or a Quantized"
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"taylor: codebook of layer {name!r} is not finite, expected finite values"
        )
    values = np.sort(values)
    middles = (values[1:].astype(np.float64) + values[:-1]) / 2
    rounded = values[np.searchsorted(middles, weight)]
    return np.where(weight != 0, rounded, 0).astype(weight.dtype)
