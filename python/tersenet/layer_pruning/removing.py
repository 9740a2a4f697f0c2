"""Layers whose factor is zero go; the others become plain convolutions again.

A removed layer gives its input on, which is what it gave: 0 * bn(conv(x)) + x equals x wherever
bn(conv(x)) is finite. The activation after it stays; where x comes from a ReLU, a second one changes
nothing.

Price: `remove` none, `fuse` a float64 copy of one kernel at a time.

Source: Xu et al. 2020, arXiv 2011.14356.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tersenet.layer_pruning.resconv import ResConv2d
from tersenet.nn import replace_layers
from tersenet.reporting import Table


@dataclass(frozen=True)
class ScaledLayer:
    """A ResConv2d, its factor, the size of its parameters, and whether it was removed."""

    name: str
    scale: float
    parameters: int
    is_removed: bool


def remove(model: nn.Module) -> Table[ScaledLayer]:
    """Put nn.Identity in the place of each ResConv2d whose factor is 0, in place.

    Returns:
        A row for each ResConv2d, in the model's order, that prints as a table.

    Raises:
        TypeError: if the model is itself a ResConv2d.
        ValueError: if it has none.
    """
    layers = _layers(model, "remove")
    if not layers:
        raise ValueError(
            "remove: the model has no ResConv2d, expected one at least (convert first)"
        )
    rows = []
    for name, layer in layers.items():
        scale = layer.scale.item()
        size = sum(parameter.numel() for parameter in layer.parameters())
        rows.append(ScaledLayer(name, scale, size, scale == 0))
    removed = [row for row in rows if row.is_removed]
    replace_layers(model, {layers[row.name]: nn.Identity() for row in removed})
    gone, total = (sum(row.parameters for row in which) for which in (removed, rows))
    return Table(
        rows,
        f"{len(removed)} of {len(rows)} layers removed, {gone:,} of their {total:,} parameters",
    )


def fuse(model: nn.Module) -> list[str]:
    """Turn each ResConv2d into a plain Conv2d that computes the same in evaluation mode, in place.

    Fuse before pruning and quantizing: the kernel that is stored is the fused one. Parameters are
    new: make the optimizer anew. If an error is raised, the model is as it was.

    Returns:
        The names of these layers, in the model's order: none where `remove` took all of them.

    Raises:
        TypeError: if the model is itself a ResConv2d.
        ValueError: if the weight of one is pruned, quantized or compressed.
    """
    layers = _layers(model, "fuse")
    made: dict[nn.Module, nn.Module] = {}
    for name, layer in layers.items():
        try:
            made[layer] = layer.fuse()
        except ValueError as error:
            raise ValueError(f"{error} (layer {name!r})") from None
    replace_layers(model, made)
    return list(layers)


def _layers(model: nn.Module, function: str) -> dict[str, ResConv2d]:
    if isinstance(model, ResConv2d):
        raise TypeError(
            f"{function}: the model itself is a ResConv2d, expected one that holds it "
            "(or its own fuse())"
        )
    return {name: m for name, m in model.named_modules() if isinstance(m, ResConv2d)}
