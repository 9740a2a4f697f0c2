"""Convolutions of a model become ResConv2d, each with the batch norm that follows it.

::

    trace the model, or take `pairs`
    for each Conv2d that a pattern means:
        misfit, tied, or not called exactly once?      it stays, and the report says why
        else a ResConv2d takes its place, and nn.Identity that of the norm, if only it sees the output

A norm before the convolution stays where it is: the shortcut goes around the convolution alone, and
x is what the norm gives.

`keep="function"` is for a trained model, `keep="weights"` for one that is to be trained: a new plain
network, however it computes, is as hard to train with the function of its first weights kept.

Price: one symbolic trace with torch.fx, which computes nothing, and a copy of each converted kernel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx, nn

from tersenet.layer_pruning.resconv import ResConv2d, misfit
from tersenet.nn import CompressedLayer, replace_layers
from tersenet.plan import Plan, Rule
from tersenet.reporting import Table
from tersenet.training import Batch, evaluate

Pairs = Mapping[str, str | None]


@dataclass(frozen=True)
class ConvertedLayer:
    """A convolution, the norm that went into it, and why it was left alone, or None."""

    name: str
    shape: tuple[int, ...]
    bn: str | None = None
    reason: str | None = None


def convert(
    model: nn.Module,
    layers: str | Sequence[str] = "*",
    *,
    keep: Literal["function", "weights"] = "function",
    pairs: Pairs | None = None,
) -> Table[ConvertedLayer]:
    """Turn each convolution around which a shortcut fits into a ResConv2d, in place.

    Parameters are new: make the optimizer afterwards. Nothing is random. If an error is raised, the
    model is as it was.

    Args:
        model: whatever torch.fx can trace, or anything with `pairs`.
        layers: a pattern of layer names, as in a Plan, or several; layers that none means are not
            in the report.
        keep: "function" computes what the model did in evaluation mode, up to rounding, and folds
            the norms (`normalize` puts new ones in); "weights" keeps weights and norms, and adds
            the input to what they give.
        pairs: the convolutions to convert, by name, each with the name of the batch norm that
            directly follows it and sees nothing else, or None; instead of tracing.

    Returns:
        A row for each convolution, in the model's order, that prints as a table.

    Raises:
        TypeError: if the model is itself the convolution.
        ValueError: if `keep` does not exist, a pattern matches no Conv2d, the model cannot be
            traced, or `pairs` names what is not there or no such layer.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1, bias=False))
        >>> for row in convert(model):
        ...     print(row.name, row.reason)
        0 channels are 3 -> 8, expected as many out as in
        2 None
    """
    if keep not in ("function", "weights"):
        raise ValueError(f"convert: keep is {keep!r}, expected 'function' or 'weights'")
    chosen = _chosen(model, [layers] if isinstance(layers, str) else layers)
    found = _traced(model) if pairs is None else _given(model, pairs)
    tied = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    make: Callable[..., ResConv2d] = ResConv2d.from_conv if keep == "function" else ResConv2d
    made: dict[nn.Module, nn.Module] = {}
    rows = []
    for name, conv in chosen.items():
        bn_name, reason = found.get(name, (None, "is not in pairs"))
        bn = None if bn_name is None else model.get_submodule(bn_name)
        reason = misfit(conv, bn) or reason
        if reason is None:
            own = [p for m in (conv, bn) if m is not None for p in m.parameters()]
            if any(tied[id(parameter)] > 1 for parameter in own):
                reason = "shares a parameter with another layer, expected its own"
        if reason is None:
            made[conv] = make(conv, bn)
            if bn is not None:
                made[bn] = nn.Identity()
        rows.append(ConvertedLayer(name, tuple(conv.weight.shape), bn_name, reason))
    replace_layers(model, made)
    count = sum(row.reason is None for row in rows)
    return Table(rows, f"{count} of {len(rows)} convolutions converted")


def normalize(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Give each ResConv2d without a batch norm one that leaves its function as it is, in place.

    Mean and variance of each channel are measured over all batches in evaluation mode, and the
    norm's own scale and shift undo them; in training mode the batch's own take their place, as in
    any batch norm. Its parameters are new: make the optimizer afterwards.

    A kernel made by `convert` subtracts x again, which cancels as long as the statistics are those
    measured or change slowly, as while factors shrink. Do not zero factors by hand after this: the
    layers behind then no longer cancel, and the loss may grow a thousandfold.

    Args:
        model: every module is afterwards in the mode it was in.
        batches: (inputs, targets), as for `fit`; targets are not used.

    Raises:
        ValueError: if there are no examples, or a layer sees none.
    """
    sums = {m: _Sums() for m in model.modules() if isinstance(m, ResConv2d) and m.bn is None}
    handles = [layer.conv.register_forward_hook(sums[layer].add) for layer in sums]
    try:
        evaluate(model, batches, lambda *_: 0.0)
    finally:
        for handle in handles:
            handle.remove()
    for name, layer in model.named_modules():
        if isinstance(layer, ResConv2d) and layer in sums and not sums[layer].count:
            raise ValueError(f"normalize: layer {name!r} sees no example, expected at least one")
    for layer, measured in sums.items():
        layer.bn = measured.norm(layer.conv)


class _Sums:
    """Sums of what a convolution gives, by channel, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, conv: nn.Module, _: object, output: Tensor) -> None:
        """Add up one output [batch, channels, height, width]."""
        wide = output.detach().double()
        self.count += wide.numel() // wide.shape[-3]
        dims = [dim for dim in range(wide.dim()) if dim != wide.dim() - 3]
        self._sum = self._sum + wide.sum(dims)
        self._squares = self._squares + wide.square().sum(dims)

    def norm(self, conv: nn.Conv2d) -> nn.BatchNorm2d:
        """Return a norm that, with these statistics, gives what it is given."""
        assert isinstance(self._sum, Tensor)
        assert isinstance(self._squares, Tensor)
        mean = self._sum / self.count
        variance = (self._squares / self.count - mean.square()).clamp(min=0)
        weight = conv.weight
        bn = nn.BatchNorm2d(conv.out_channels, device=weight.device, dtype=weight.dtype)
        assert bn.running_mean is not None
        assert bn.running_var is not None
        with torch.no_grad():
            bn.running_mean.copy_(mean)
            bn.running_var.copy_(variance)
            bn.weight.copy_((bn.running_var.double() + bn.eps).sqrt())
            bn.bias.copy_(mean)
        return bn.train(conv.training)


def _chosen(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Conv2d]:
    """Return the convolutions that a pattern means, by name, but for those converted already."""
    if isinstance(model, nn.Conv2d):
        raise TypeError(
            "convert: the model itself is a Conv2d, expected one that holds it "
            "(or ResConv2d.from_conv)"
        )
    inner = {m.conv for m in model.modules() if isinstance(m, ResConv2d)}
    convs = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module not in inner
    }
    if not convs:
        raise ValueError("convert: the model has no Conv2d left, expected at least one")
    plan = Plan({pattern: Rule() for pattern in patterns})
    return {name: convs[name] for name in plan.resolve([(name, "conv") for name in convs])}


def _given(model: nn.Module, pairs: Pairs) -> dict[str, tuple[str | None, str | None]]:
    modules = dict(model.named_modules())
    for name, bn_name in pairs.items():
        for given, kind in ((name, nn.Conv2d), (bn_name, nn.BatchNorm2d)):
            if given is not None and not isinstance(modules.get(given), kind):
                what = type(modules[given]).__name__ if given in modules else "not there"
                raise ValueError(f"convert: pairs: {given!r} is {what}, expected a {kind.__name__}")
    norms = Counter(bn_name for bn_name in pairs.values() if bn_name is not None)
    for bn_name, count in norms.items():
        if count > 1:
            raise ValueError(f"convert: pairs: {bn_name!r} is named {count} times, expected once")
    return {name: (bn_name, None) for name, bn_name in pairs.items()}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Take our own layers as they are, like torch's."""
        is_ours = isinstance(m, ResConv2d | CompressedLayer)
        return is_ours or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module) -> dict[str, tuple[str | None, str | None]]:
    """Return for each convolution its norm, or None; and why it cannot be converted, or None."""
    try:
        graph = _Tracer().trace(model)
    except Exception as error:
        raise ValueError(
            f"convert: the model cannot be traced ({error}), expected `pairs`: the names of the "
            "convolutions, each with that of its batch norm or None"
        ) from error
    modules = dict(model.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    counts = Counter(node.target for node in calls)
    found: dict[str, tuple[str | None, str | None]] = {
        name: (None, "is not called in the model's forward, expected one call")
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d)
    }
    for node in calls:
        if node.target not in found:
            continue
        if counts[node.target] != 1:
            found[node.target] = (None, f"is called {counts[node.target]} times, expected one call")
            continue
        after = list(node.users)
        is_pair = (
            len(after) == 1
            and after[0].op == "call_module"
            and isinstance(modules[after[0].target], nn.BatchNorm2d)
            and counts[after[0].target] == 1
        )
        found[node.target] = (after[0].target if is_pair else None, None)
    return found
