"""Operators over windows of an image or a length: pooling, padding, upsampling."""

from __future__ import annotations

from typing import Any

from tersenet.exporting.graph import Value
from tersenet.exporting.lowering import Arguments, Operand, Step, lowers

_PAD_MODES = {"constant": 0, "reflect": 1, "replicate": 2, "circular": 3}


@lowers(
    *("aten.max_pool1d.default", "aten.max_pool2d.default"),
    *("aten.max_pool2d_with_indices.default",),
)
def max_pool(step: Step, a: Arguments) -> Value | list[Operand]:
    """Lower a max pooling; of the form with indices, the maxima alone."""
    x, ndim = _windowed(step, a["self"])
    settings = [
        *_setting(a["kernel_size"], ndim, 1),
        *_setting(a["stride"] or a["kernel_size"], ndim, 1),
        *_setting(a["padding"], ndim, 0),
        *_setting(a["dilation"], ndim, 1),
    ]
    y = step.emit("max_pool", [x], ints=[*settings, int(a["ceil_mode"])])
    return [y] if "indices" in str(step.node.target) else y


@lowers("aten.avg_pool1d.default", "aten.avg_pool2d.default")
def avg_pool(step: Step, a: Arguments) -> Value:
    """Lower an average pooling."""
    x, ndim = _windowed(step, a["self"])
    ints = [
        *_setting(a["kernel_size"], ndim, 1),
        *_setting(a["stride"] or a["kernel_size"], ndim, 1),
        *_setting(a["padding"], ndim, 0),
        int(a["ceil_mode"]),
        int(a["count_include_pad"]),
        a.get("divisor_override") or 0,
    ]
    return step.emit("avg_pool", [x], ints=ints)


@lowers(
    *("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default"),
    *("aten._adaptive_avg_pool2d.default",),
    *("aten.adaptive_max_pool1d.default", "aten.adaptive_max_pool2d.default"),
)
def adaptive_pool(step: Step, a: Arguments) -> Value | list[Operand]:
    """Lower a pooling to a size; of the maxima without their indices."""
    x, ndim = _windowed(step, a["self"])
    is_max = "adaptive_max" in str(step.node.target)
    op = "adaptive_max_pool" if is_max else "adaptive_avg_pool"
    y = step.emit(op, [x], ints=_setting(step.shape[2:], ndim, 1))
    return [y] if is_max else y


@lowers("aten.pad.default")
def pad(step: Step, a: Arguments) -> Value:
    """Lower a padding of the last dimensions; a negative one takes numbers away."""
    x, pads = step.value(a["self"]), list(a["pad"])
    before_after = [(0, 0)] * x.ndim
    for number in range(len(pads) // 2):
        before_after[x.ndim - 1 - number] = (pads[2 * number], pads[2 * number + 1])
    for dim, (before, after) in enumerate(before_after):
        if before < 0 or after < 0:
            x = step.slice(x, dim, max(0, -before), x.shape[dim] - max(0, -after))
    added = [max(0, p) for pair in before_after for p in pair]
    if not any(added):
        return x
    if x.shape[0] < 0 and any(added[:2]):
        step.refuse("it pads the batch, expected other dimensions")
    ints = [_PAD_MODES[a["mode"]], *added]
    return step.emit("pad", [x], ints=ints, floats=[float(a["value"] or 0)])


@lowers("aten.constant_pad_nd.default")
def constant_pad(step: Step, a: Arguments) -> Value:
    """Lower a padding with a number."""
    return pad(step, {**a, "mode": "constant"})


@lowers(
    *("aten.reflection_pad1d.default", "aten.reflection_pad2d.default"),
    *("aten.replication_pad1d.default", "aten.replication_pad2d.default"),
)
def mirrored_pad(step: Step, a: Arguments) -> Value:
    """Lower a padding with what is there."""
    mode = "reflect" if "reflection" in str(step.node.target) else "replicate"
    return pad(step, {"self": a["self"], "pad": a["padding"], "mode": mode, "value": 0})


@lowers(
    *("aten.upsample_nearest1d.vec", "aten.upsample_nearest2d.vec"),
    *("aten.upsample_linear1d.vec", "aten.upsample_bilinear2d.vec"),
)
def upsample(step: Step, a: Arguments) -> Value:
    """Lower an upsampling.

    Where scale factors are given, torch steps by their reciprocals, taken in double precision and
    then rounded; else the sizes decide.
    """
    x, ndim = _windowed(step, a["input"])
    is_nearest = "nearest" in str(step.node.target)
    ints = [
        0 if is_nearest else 1,
        int(a.get("align_corners") or False),
        *_setting(step.shape[2:], ndim, 1),
    ]
    steps = [1 / factor for factor in a["scale_factors"] or ()] or [0.0] * ndim
    return step.emit("upsample", [x], ints=ints, floats=[0.0] * (2 - ndim) + steps)


def _windowed(step: Step, x: Any) -> tuple[Value, int]:
    """Return the input and the number of its dimensions with windows."""
    value = step.value(x)
    if value.ndim not in (3, 4) or value.shape[0] >= 0:
        expected = "expected a batch of channels in three or four dimensions"
        step.refuse(f"its input has shape {list(value.shape)}, {expected}")
    return value, value.ndim - 2


def _setting(values: Any, ndim: int, height: int) -> list[int]:
    """Return (height's, width's) of a setting, of which torch may give one for both."""
    values = [values] if isinstance(values, int) else list(values)
    values = values * ndim if len(values) == 1 else values
    return values if ndim == 2 else [height, *values]
