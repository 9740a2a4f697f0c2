"""Layer scaling factors become exactly zero by proximal steps while the model trains.

::

    after each step of the optimizer, for the factor s of each ResConv2d:
        s = sign(s) * max(|s| - lr * strength * weight, 0)

Why this way: strength * |s| has no gradient at 0, and subgradient steps jump across it for ever. The
step above is the exact minimizer of the term beside the squared distance from s, and with plain
gradient descent stays at 0 wherever the loss pulls less than `strength`. With momentum m the loss
moves a factor 1 / (1 - m) times as far in all, so the bound is (1 - m) * strength; with an optimizer
that adapts its steps the term is decoupled, as AdamW's weight decay is. What shrinks a factor may
grow the norm or the kernel behind it, so leave weight decay on these.

Price: one subtraction a layer and step.

Source: Xu et al. 2020, arXiv 2011.14356, for the L1 term; Parikh and Boyd 2014, "Proximal
algorithms", section 6.5.2, for the step.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from tersenet.layer_pruning.resconv import ResConv2d, scales
from tersenet.reporting import report
from tersenet.training.callback import Callback, State


class LayerL1(Callback):
    """Pulls the layer scaling factors of a model to zero while it trains.

    In `fit` it is a callback. In a loop of your own call `step(optimizer)` after `optimizer.step()`.

    Attributes:
        strengths: the price of |scale| of each layer, by name, in units of the loss.

    Examples:
        >>> from tersenet.layer_pruning import convert
        >>> model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        >>> rows = convert(model)
        >>> l1 = LayerL1(model, strength=0.5)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> l1.step(sgd)
        >>> round(model[0].scale.item(), 4)
        0.95
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float,
        *,
        weighting: Literal["parameters", "multiply_adds"] | None = None,
        example: Any = None,
    ) -> None:
        """Take the factors of the model as it is.

        Args:
            model: with at least one ResConv2d.
            strength: the price of |scale|, at least 0, in units of the loss.
            weighting: multiply the strength of a layer by its weights or multiply-adds, as a
                multiple of the layers' mean; None gives all layers the same.
            example: for "multiply_adds", as `report` takes it.

        Raises:
            ValueError: if the model has no ResConv2d, the strength or the weighting is out of range,
                or an example is missing, given for nothing, or does not reach a layer.
        """
        self._scales = scales(model)
        if not self._scales:
            raise ValueError(
                "l1: the model has no ResConv2d, expected one at least (convert first)"
            )
        if not 0 <= strength < math.inf:
            raise ValueError(f"l1: strength is {strength}, expected a number of at least 0")
        if (weighting == "multiply_adds") != (example is not None):
            found = "no example" if example is None else "an example"
            raise ValueError(
                f"l1: weighting is {weighting!r} with {found}, expected an example for "
                "'multiply_adds' alone"
            )
        weights = _weights(model, weighting, example)
        mean = sum(weights.values()) / len(weights)
        self.strengths = {name: strength * weights[name] / mean for name in self._scales}
        self._rates: dict[str, float] = {}

    def step(self, optimizer: Optimizer) -> None:
        """Shrink each factor by its strength times the learning rate that the optimizer has for it.

        Raises:
            ValueError: if the optimizer does not train a factor.
        """
        self._shrink(self._rates_of(optimizer))

    def step_start(self, state: State) -> None:
        """Note the learning rates, which a scheduler changes before `step_end`."""
        self._rates = self._rates_of(state.optimizer)

    def step_end(self, state: State) -> None:
        """Shrink the factors after the optimizer's step."""
        self._shrink(self._rates)

    def _shrink(self, rates: dict[str, float]) -> None:
        with torch.no_grad():
            for name, scale in self._scales.items():
                size = (scale.abs() - rates[name] * self.strengths[name]).clamp(min=0)
                scale.copy_(torch.where(size > 0, size.copysign(scale), 0))

    def _rates_of(self, optimizer: Optimizer) -> dict[str, float]:
        rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        for name, scale in self._scales.items():
            if id(scale) not in rates:
                raise ValueError(
                    f"l1: scale of layer {name!r} is not the optimizer's, expected its parameter "
                    "(convert, then make the optimizer, then LayerL1)"
                )
        return {name: float(rates[id(scale)]) for name, scale in self._scales.items()}


def _weights(model: nn.Module, weighting: str | None, example: Any) -> dict[str, float]:
    """Return a positive number for each ResConv2d."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, ResConv2d)}
    if weighting is None:
        return dict.fromkeys(layers, 1.0)
    if weighting == "parameters":
        return {n: float(sum(p.numel() for p in m.conv.parameters())) for n, m in layers.items()}
    if weighting != "multiply_adds":
        raise ValueError(
            f"l1: weighting is {weighting!r}, expected 'parameters', 'multiply_adds' or None"
        )
    counts = {row.name: row.multiply_adds for row in report(model, example)}
    found = {}
    for name in layers:
        count = counts.get(f"{name}.conv" if name else "conv")
        if not count:
            raise ValueError(
                f"l1: the example does not reach layer {name!r}, expected that it does"
            )
        found[name] = float(count)
    return found
