"""Norms, softmax, and reductions over dimensions.

A batch norm in evaluation mode is a scale and a shift of each channel, computed in float64 from
its statistics and rounded once; it goes into the node before it where it can (module `fusing`).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from tersenet.exporting.graph import REDUCTIONS, Value
from tersenet.exporting.lowering import Arguments, Constant, Operand, Step, lowers
from tersenet.exporting.operators.elementwise import apply, binary, scalar


@lowers("aten.batch_norm.default", "aten._native_batch_norm_legit_no_training.default")
def batch_norm(step: Step, a: Arguments) -> Value | list[Operand]:
    """Lower a batch norm that uses its running statistics."""
    mean, variance = a["running_mean"], a["running_var"]
    if a.get("training") or not isinstance(mean, Constant) or not isinstance(variance, Constant):
        step.refuse("it uses the statistics of the batch, expected running ones")
    scale = torch.rsqrt(variance.tensor.double() + a["eps"])
    if a["weight"] is not None:
        scale = scale * _known(step, a["weight"])
    shift = -mean.tensor.double() * scale
    if a["bias"] is not None:
        shift = shift + _known(step, a["bias"])
    prefix = mean.name.removesuffix("running_mean")
    weights = [
        step.weights.of(scale.float(), f"{prefix}scale"),
        step.weights.of(shift.float(), f"{prefix}shift"),
    ]
    x = step.value(a["input"])
    y = step.emit("affine", [x], x.shape, weights=weights)
    return [y] if "native" in str(step.node.target) else y


@lowers("aten.instance_norm.default")
def instance_norm(step: Step, a: Arguments) -> Value | list[Operand]:
    """Lower an instance norm: a group norm with a group for each channel, or a batch norm."""
    if not a["use_input_stats"]:
        return batch_norm(step, {**a, "training": False})
    weights = [step.vector(a["weight"], "weight"), step.vector(a["bias"], "bias")]
    x = step.value(a["input"])
    return step.emit("group_norm", [x], weights=weights, ints=[x.shape[1]], floats=[a["eps"]])


@lowers("aten.layer_norm.default")
def layer_norm(step: Step, a: Arguments) -> Value:
    """Lower a layer norm."""
    weights = [step.vector(a["weight"], "weight"), step.vector(a["bias"], "bias")]
    ints, floats = [len(a["normalized_shape"])], [a["eps"]]
    return step.emit("layer_norm", [a["input"]], weights=weights, ints=ints, floats=floats)


@lowers("aten.group_norm.default")
def group_norm(step: Step, a: Arguments) -> Value:
    """Lower a group norm."""
    weights = [step.vector(a["weight"], "weight"), step.vector(a["bias"], "bias")]
    ints, floats = [a["num_groups"]], [a["eps"]]
    return step.emit("group_norm", [a["input"]], weights=weights, ints=ints, floats=floats)


@lowers("aten.softmax.int", "aten._softmax.default")
def softmax(step: Step, a: Arguments) -> Value:
    """Lower a softmax."""
    return step.emit("softmax", [a["self"]], ints=[a["dim"] % len(step.shape)])


@lowers("aten.log_softmax.int", "aten._log_softmax.default")
def log_softmax(step: Step, a: Arguments) -> Value:
    """Lower a log softmax."""
    return step.emit("log_softmax", [a["self"]], ints=[a["dim"] % len(step.shape)])


@lowers(
    *("aten.mean.default", "aten.mean.dim", "aten.sum.default", "aten.sum.dim_IntList"),
    *("aten.amax.default", "aten.amin.default"),
)
def reduce(step: Step, a: Arguments) -> Value:
    """Lower a reduction over some or all dimensions."""
    kind = str(step.node.target).split(".")[1]
    return reduced(step, kind, step.value(a["self"]), a.get("dim"), bool(a.get("keepdim")))


@lowers("aten.max.dim", "aten.min.dim", "aten.max.default", "aten.min.default")
def extreme(step: Step, a: Arguments) -> Value | list[Operand]:
    """Lower a maximum or minimum; the places where it stands are not there."""
    kind = "amax" if ".max." in str(step.node.target) else "amin"
    x = step.value(a["self"])
    if "dim" not in a:
        return reduced(step, kind, x, None, False)
    return [reduced(step, kind, x, [a["dim"]], bool(a["keepdim"]))]


@lowers("aten.var.correction")
def var(step: Step, a: Arguments) -> Value:
    """Lower a variance: the mean of squared distances from the mean, corrected."""
    x = step.value(a["self"])
    return _variance(step, x, a["dim"], a["correction"], bool(a["keepdim"]))


@lowers("aten.var_mean.correction")
def var_mean(step: Step, a: Arguments) -> list[Operand]:
    """Lower a variance together with the mean."""
    x, is_kept = step.value(a["self"]), bool(a["keepdim"])
    mean = reduced(step, "mean", x, a["dim"], is_kept)
    return [_variance(step, x, a["dim"], a["correction"], is_kept), mean]


@lowers("aten.linalg_vector_norm.default")
def vector_norm(step: Step, a: Arguments) -> Value:
    """Lower the norms 1, 2 and infinity."""
    x, order, dims, is_kept = step.value(a["self"]), a["ord"], a["dim"], bool(a["keepdim"])
    if order == 2:
        total = reduced(step, "sum", apply(step, x, "square"), dims, is_kept)
        return apply(step, total, "sqrt")
    if order not in (1, math.inf):
        step.refuse(f"its order is {order}, expected 1, 2 or infinity")
    return reduced(step, "sum" if order == 1 else "amax", apply(step, x, "abs"), dims, is_kept)


def reduced(step: Step, kind: str, x: Value, dims: Any, is_kept: bool) -> Value:
    """Append a reduction; no dims are all dims."""
    every = list(range(x.ndim))
    dims = [dims] if isinstance(dims, int) else dims
    chosen = sorted(dim % x.ndim for dim in dims) if dims else every
    if not chosen:
        return x
    sizes = [1 if dim in chosen else size for dim, size in enumerate(x.shape)]
    shape = tuple(size for dim, size in enumerate(sizes) if is_kept or dim not in chosen)
    return step.emit("reduce", [x], shape, ints=[REDUCTIONS[kind], int(is_kept), *chosen])


def _variance(step: Step, x: Value, dims: Any, correction: Any, is_kept: bool) -> Value:
    chosen = [dim % x.ndim for dim in dims] if dims else list(range(x.ndim))
    count = math.prod(x.shape[dim] for dim in chosen)
    correction = 1 if correction is None else correction
    if any(x.shape[dim] < 0 for dim in chosen) or count <= correction:
        step.refuse(f"it is over {count} numbers, expected a fixed number above {correction}")
    centred = binary(step, "sub", x, reduced(step, "mean", x, chosen, True))
    total = reduced(step, "sum", apply(step, centred, "square"), chosen, is_kept)
    return scalar(step, "div", total, float(count - correction))


def _known(step: Step, operand: Any) -> torch.Tensor:
    if not isinstance(operand, Constant):
        step.refuse("its weight is computed from the input, expected a constant")
    return operand.tensor.double()
