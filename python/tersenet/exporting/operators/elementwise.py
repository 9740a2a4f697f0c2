"""Operators that work element by element, and choices by a constant mask.

Where a constant mask chooses between x and a number v, the result is min(max(x, low), high), with
low = high = v where v is chosen and the infinities elsewhere: exact for every x but NaN.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from tersenet.exporting.graph import BINARIES, Activation, Value
from tersenet.exporting.lowering import Arguments, Constant, Expanded, Step, lowers

_PLAIN = {
    **{name: name for name in ("relu", "relu6", "sigmoid", "tanh", "silu", "mish", "hardswish")},
    **{name: name for name in ("hardsigmoid", "exp", "sqrt", "rsqrt", "neg", "abs", "log")},
    "square": "square",
}


def apply(step: Step, x: Any, name: str, p0: float = 0.0, p1: float = 0.0) -> Value:
    """Append an activation."""
    value = step.value(x)
    return step.emit("unary", [value], value.shape, activation=Activation(name, p0, p1))


@lowers(*(f"aten.{name}.default" for name in _PLAIN))
def plain(step: Step, a: Arguments) -> Value:
    """Lower a function without parameters."""
    return apply(step, a["self"], _PLAIN[str(step.node.target).split(".")[1]])


@lowers("aten.leaky_relu.default")
def leaky_relu(step: Step, a: Arguments) -> Value:
    """Lower a leaky relu."""
    return apply(step, a["self"], "leaky_relu", _number(step, a["negative_slope"]))


@lowers("aten.gelu.default")
def gelu(step: Step, a: Arguments) -> Value:
    """Lower both forms of gelu."""
    return apply(step, a["self"], "gelu_tanh" if a["approximate"] == "tanh" else "gelu")


@lowers("aten.softplus.default")
def softplus(step: Step, a: Arguments) -> Value:
    """Lower a softplus."""
    beta, threshold = _number(step, a["beta"]), _number(step, a["threshold"])
    return apply(step, a["self"], "softplus", beta, threshold)


@lowers("aten.elu.default")
def elu(step: Step, a: Arguments) -> Value:
    """Lower elu, and through its scales selu and celu.

    With u = i x, s elu(x; alpha, i) = (s / i) elu(u; i alpha).
    """
    x, inner = step.value(a["self"]), _number(step, a["input_scale"])
    if inner <= 0:
        step.refuse(f"input_scale is {inner}, expected a positive number")
    x = x if inner == 1 else scalar(step, "mul", x, inner)
    y = apply(step, x, "elu", _number(step, a["alpha"]) * inner)
    outer = _number(step, a["scale"]) / inner
    return y if outer == 1 else scalar(step, "mul", y, outer)


@lowers("aten.celu.default")
def celu(step: Step, a: Arguments) -> Value:
    """Lower celu, an elu with scales."""
    alpha = _number(step, a["alpha"])
    return elu(step, {"self": a["self"], "alpha": alpha, "scale": 1.0, "input_scale": 1 / alpha})


@lowers("aten.log_sigmoid.default", "aten.log_sigmoid_forward.default")
def log_sigmoid(step: Step, a: Arguments) -> Value | list[Any]:
    """Lower a log sigmoid, which is -softplus(-x)."""
    inner = apply(step, apply(step, a["self"], "neg"), "softplus", 1.0, 20.0)
    y = apply(step, inner, "neg")
    return [y] if "forward" in str(step.node.target) else y


@lowers("aten.clamp.default", "aten.hardtanh.default")
def clamp(step: Step, a: Arguments) -> Value:
    """Lower a clamp between numbers; a bound that is None is infinite."""
    low, high = a.get("min", a.get("min_val")), a.get("max", a.get("max_val"))
    low = -math.inf if low is None else _number(step, low)
    high = math.inf if high is None else _number(step, high)
    return apply(step, a["self"], "clamp", low, high)


@lowers("aten.clamp_min.default", "aten.clamp_max.default")
def clamp_one_side(step: Step, a: Arguments) -> Value:
    """Lower a clamp with one bound."""
    low = _number(step, a["min"]) if "min" in a else -math.inf
    high = _number(step, a["max"]) if "max" in a else math.inf
    return apply(step, a["self"], "clamp", low, high)


@lowers("aten.prelu.default")
def prelu(step: Step, a: Arguments) -> Value:
    """Lower a prelu: one slope is a leaky relu's, many are max(x, 0) + slope min(x, 0)."""
    x, slope = step.value(a["self"]), a["weight"]
    if not isinstance(slope, Constant):
        step.refuse("its weight is computed from the input, expected a constant")
    if slope.tensor.numel() == 1:
        return apply(step, x, "leaky_relu", float(slope.tensor))
    by_channel = slope.tensor.reshape(-1, *(1,) * (x.ndim - 2))
    negative = scalar(step, "minimum", x, 0.0)
    scaled = binary(step, "mul", negative, Constant(by_channel, slope.name))
    return binary(step, "add", apply(step, x, "relu"), scaled)


@lowers("aten.add.Tensor", "aten.add.Scalar", "aten.sub.Tensor", "aten.sub.Scalar")
def add(step: Step, a: Arguments) -> Value:
    """Lower a sum or a difference; alpha scales the second."""
    kind = str(step.node.target).split(".")[1]
    other, alpha = a["other"], a["alpha"]
    if alpha != 1:
        other = other * alpha if isinstance(other, (int, float)) else _scaled(step, other, alpha)
    return binary(step, kind, a["self"], other)


@lowers("aten.rsub.Scalar", "aten.rsub.Tensor")
def rsub(step: Step, a: Arguments) -> Value:
    """Lower other - alpha self."""
    x = a["self"] if a["alpha"] == 1 else _scaled(step, a["self"], a["alpha"])
    return binary(step, "sub", a["other"], x)


@lowers(
    *("aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar"),
    *("aten.maximum.default", "aten.minimum.default"),
)
def arithmetic(step: Step, a: Arguments) -> Value:
    """Lower a binary operator by its name."""
    return binary(step, str(step.node.target).split(".")[1], a["self"], a["other"])


@lowers("aten.reciprocal.default")
def reciprocal(step: Step, a: Arguments) -> Value:
    """Lower 1 / x."""
    return binary(step, "div", 1.0, a["self"])


@lowers("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar")
def power(step: Step, a: Arguments) -> Value:
    """Lower a power; squares and roots have functions of their own."""
    x, exponent = a["self"], a["exponent"]
    special = {2: "square", 0.5: "sqrt", -0.5: "rsqrt"}
    if isinstance(exponent, (int, float)):
        if exponent in special:
            return apply(step, x, special[exponent])
        if exponent == 1:
            return step.value(x)
        if exponent == -1:
            return binary(step, "div", 1.0, x)
    return binary(step, "pow", x, exponent)


@lowers("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf")
def where(step: Step, a: Arguments) -> Value:
    """Lower a choice by a constant mask between values and constants."""
    mask, x, other = a["condition"], a["self"], a["other"]
    if isinstance(other, Value) and not isinstance(x, Value):
        return _chosen(step, mask, x, other)
    return _chosen(step, mask, other, x, is_negated=True)


@lowers("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(step: Step, a: Arguments) -> Value:
    """Lower a number put in where a constant mask is true."""
    return _chosen(step, a["mask"], a["value"], a["self"])


def binary(step: Step, kind: str, a: Any, b: Any) -> Value:
    """Append a binary operator between values, constants and numbers."""
    a, b = _simplified(step, a, b), _simplified(step, b, a)
    if isinstance(b, float):
        return scalar(step, kind, step.value(a), b)
    if isinstance(a, float):
        return scalar(step, kind, step.value(b), a, is_reversed=True)
    x, y = step.value(a), step.value(b)
    shape = step.broadcast(x.shape, y.shape)
    return step.emit("binary", [x, y], shape, ints=[BINARIES[kind]])


def scalar(step: Step, kind: str, x: Value, number: float, *, is_reversed: bool = False) -> Value:
    """Append a binary operator with a number."""
    ints = [BINARIES[kind], int(is_reversed)]
    return step.emit("binary_scalar", [x], x.shape, ints=ints, floats=[number])


def _simplified(step: Step, operand: Any, other: Any) -> Any:
    """Return an operand as a float where it is one number."""
    if isinstance(operand, Expanded) and operand.constant.tensor.numel() == 1:
        is_wide = isinstance(other, Value) and other.shape == operand.shape
        operand = operand.constant if is_wide else operand
    if isinstance(operand, Constant) and operand.tensor.numel() == 1:
        ndim = other.ndim if isinstance(other, Value) else -1
        if operand.tensor.dim() <= ndim:
            return float(operand.tensor.to(torch.float32))
        return operand
    if isinstance(operand, (Value, Constant, Expanded)):
        return operand
    return _number(step, operand)


def _number(step: Step, number: Any) -> float:
    if isinstance(number, Constant) and number.tensor.numel() == 1:
        return float(number.tensor)
    if not isinstance(number, (int, float)):
        step.refuse(f"an argument is {number}, expected a number")
    return float(number)


def _scaled(step: Step, x: Any, alpha: Any) -> Any:
    if isinstance(x, Constant):
        return Constant(x.tensor * alpha, f"{x.name}.scaled")
    return scalar(step, "mul", step.value(x), _number(step, alpha))


def _chosen(step: Step, mask: Any, chosen: Any, x: Any, *, is_negated: bool = False) -> Value:
    """Append what gives `chosen` where the mask is true (or false) and x elsewhere."""
    if not isinstance(mask, Constant):
        step.refuse("its mask is computed from the input, expected a constant")
    number = chosen.tensor if isinstance(chosen, Constant) else chosen
    if isinstance(chosen, Expanded):
        number = chosen.constant.tensor
    if not isinstance(number, (int, float, torch.Tensor)):
        step.refuse("it chooses between two results, expected a constant for one of them")
    is_chosen = mask.tensor.logical_not() if is_negated else mask.tensor
    number = torch.as_tensor(number, dtype=torch.float32)
    infinity = torch.tensor(math.inf)
    high = Constant(torch.where(is_chosen, number, infinity), f"{step.path}.high")
    low = Constant(torch.where(is_chosen, number, -infinity), f"{step.path}.low")
    y = step.value(x)
    if not (torch.isinf(low.tensor) & (low.tensor < 0)).all():
        y = binary(step, "maximum", y, low)
    return binary(step, "minimum", y, high)
