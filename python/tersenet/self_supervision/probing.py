"""What features are worth on another task: a linear layer on them as they are, or training on.

::

    features       what goes into a layer (the head) for each example, flat, in evaluation mode
    standardized   s = (x - mean) / deviation
    logistic       minimize mean cross-entropy(W s + b) + l2 / 2 |W|²          L-BFGS, float64
    squared        minimize mean |W s + b - onehot|² / 2 + l2 / 2 |W|²         closed form
    probe          the same function of x: weight = W / deviation, bias = b - weight mean

Why this way: features that are computed once make a probe a small convex problem, solved to its
minimum without a learning rate or a seed, so that two probes differ by their features alone.
Standardizing makes one `l2` mean the same for features of any scale. The probe is a plain layer, so
that the model with it for a head is a classifier: what `evaluate` gives is transfer by a linear
probe, what it gives after more of `fit` is transfer by fine-tuning.

Price: the features in memory, in float64 for the probe.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersenet.training.loop import Batch, in_mode, outputs_of, parts_of

LOSSES = ("logistic", "squared")
_ITERATIONS = 500


def features(model: nn.Module, batches: Iterable[Batch], layer: str) -> tuple[Tensor, Any]:
    """Return what goes into a layer, [examples, features], and the targets, [examples].

    Args:
        model: is run in evaluation mode without gradients, and left as it was.
        batches: (inputs, targets tensor), as for `fit`.
        layer: the name of a module that is called once a batch, with one tensor [batch, ...].

    Raises:
        ValueError: if there is no such module, it was not called once, or there are no batches.

    Examples:
        >>> model = nn.Sequential(nn.ReLU(), nn.Linear(2, 3))
        >>> features(model, [(torch.tensor([[-1.0, 2.0]]), torch.tensor([1]))], "1")
        (tensor([[0., 2.]]), tensor([1]))
    """
    seen: list[Tensor] = []
    found: list[Tensor] = []
    targets: list[Tensor] = []
    module = _module(model, layer)
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        with in_mode(model, training=False), torch.no_grad():
            for batch in batches:
                inputs, wanted = parts_of(batch)
                seen.clear()
                outputs_of(model, inputs)
                if len(seen) != 1:
                    times = f"was called {len(seen)} times in a batch"
                    raise ValueError(f"features: layer {layer!r} {times}, expected once")
                found.append(seen[0].flatten(1).clone())
                targets.append(wanted)
    finally:
        hook.remove()
    if not found:
        raise ValueError("features: no batches, expected at least one")
    return torch.cat(found), torch.cat(targets)


def linear_probe(
    inputs: Tensor,
    classes: Tensor,
    *,
    count: int | None = None,
    l2: float = 1e-3,
    loss: str = "logistic",
) -> nn.Linear:
    """Return the linear layer that classifies features best, in their type and on their device.

    Args:
        inputs: features, float [examples, features].
        classes: integers in [0, count) [examples].
        count: how many classes there are; None takes the largest and 1.
        l2: the price of large weights on standardized features, above 0; the bias is free.
        loss: "logistic" or "squared".

    Raises:
        ValueError: if the shapes do not fit, there are no examples, a feature is not finite, a
            class or an option is out of its range.

    Examples:
        >>> probe = linear_probe(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1, 1]))
        >>> probe(torch.tensor([[0.5], [2.5]])).argmax(1).tolist()
        [0, 1]
    """
    if loss not in LOSSES:
        raise ValueError(f"probe: loss is {loss!r}, expected {' or '.join(map(repr, LOSSES))}")
    if not 0 < l2 < math.inf:
        raise ValueError(f"probe: l2 is {l2}, expected a number above 0")
    if inputs.dim() != 2 or classes.shape != inputs.shape[:1] or not len(inputs):
        found = f"{list(inputs.shape)} and classes {list(classes.shape)}"
        raise ValueError(f"probe: features are {found}, expected [n, features] and [n], n above 0")
    if classes.is_floating_point():
        raise ValueError(f"probe: classes are {classes.dtype}, expected integers")
    if count is None:
        count = int(classes.max()) + 1
    if not 0 <= int(classes.min()) <= int(classes.max()) < count:
        found = f"from {int(classes.min())} to {int(classes.max())}"
        raise ValueError(f"probe: classes are {found}, expected 0 to {count - 1}")
    if not inputs.isfinite().all():
        raise ValueError("probe: features hold NaN or infinities, expected finite ones")
    x = inputs.detach().double()
    mean, deviation = x.mean(0), x.std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    s = (x - mean) / deviation
    solve = _logistic if loss == "logistic" else _squared
    weight, bias = solve(s, classes.long(), count, l2)
    weight = weight / deviation
    probe = nn.Linear(inputs.shape[1], count, device=inputs.device, dtype=inputs.dtype)
    with torch.no_grad():
        probe.weight.copy_(weight)
        probe.bias.copy_(bias - weight @ mean)
    return probe


def with_head(model: nn.Module, layer: str, head: nn.Module) -> nn.Module:
    """Return a copy of a model, masks included, with a copy of `head` in the place of a layer.

    Raises:
        ValueError: if there is no such module.
    """
    _module(model, layer)
    parent, _, name = layer.rpartition(".")
    made: nn.Module = copy.deepcopy(model)
    setattr(made.get_submodule(parent), name, copy.deepcopy(head))
    return made


def _module(model: nn.Module, layer: str) -> nn.Module:
    found: dict[str, nn.Module] = dict(model.named_modules())
    if layer not in found or not layer:
        raise ValueError(f"probe: the model has no layer {layer!r}, expected the name of one")
    return found[layer]


def _logistic(s: Tensor, classes: Tensor, count: int, l2: float) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(count, s.shape[1], dtype=s.dtype, device=s.device, requires_grad=True)
    bias = torch.zeros(count, dtype=s.dtype, device=s.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_ITERATIONS,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(s @ weight.T + bias, classes) + l2 / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def _squared(s: Tensor, classes: Tensor, count: int, l2: float) -> tuple[Tensor, Tensor]:
    wanted = F.one_hot(classes, count).to(s.dtype)
    bias = wanted.mean(0)  # s has mean 0
    gram = s.T @ s / len(s) + l2 * torch.eye(s.shape[1], dtype=s.dtype, device=s.device)
    weight = torch.linalg.solve(gram, s.T @ (wanted - bias) / len(s)).T
    return weight, bias
