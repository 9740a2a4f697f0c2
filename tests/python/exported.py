"""A model beside its exported network: both against the model in float64."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import tersenet
from tersenet import _core

LIMITS = vars(tersenet.Limits())


class Call(nn.Module):
    """A function as a model."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor):
        return self.function(*inputs)


def lively(model: nn.Module) -> nn.Module:
    """Give norms statistics and weights that are not those of a new one."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.2, 2)
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)):
            for parameter in module.parameters():
                nn.init.normal_(parameter, 0.5, 0.3)
    return model.eval()


def tuple_of(result) -> tuple:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def exact(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    """What the model gives in float64."""
    wide = copy.deepcopy(model).double()
    given = [x.double() if x.is_floating_point() else x for x in inputs]
    with torch.no_grad():
        return [y.numpy() for y in tuple_of(wide(*given))]


def check(
    network: tersenet.Network, model: nn.Module, inputs: tuple[Tensor, ...], reference=None
) -> None:
    """Compare: at most 4 times the error of torch, or 8 roundings of the largest number."""
    ours = tuple_of(network.run(*[x.numpy() for x in inputs]))
    with torch.no_grad():
        theirs = [y.numpy() for y in tuple_of(model(*inputs))]
    expected = exact(reference or model, inputs)
    assert len(ours) == len(theirs) == len(expected)
    for mine, other, right in zip(ours, theirs, expected, strict=True):
        assert mine.shape == right.shape
        assert mine.dtype == np.float32
        finite = np.isfinite(right)
        assert np.array_equal(mine[~finite], right[~finite].astype(np.float32), equal_nan=True)
        if not finite.any():
            continue
        floor = 8 * 2.0**-24 * np.abs(right[finite]).max()
        bound = max(4 * np.abs(other - right)[finite].max(), floor)
        assert np.abs(mine - right)[finite].max() <= bound


def graph_of(path: Path) -> tuple:
    """The graph in a file: inputs, nodes, outputs, is_tuple."""
    return _core.Reader(str(path), **LIMITS).graph()


def ops(path: Path) -> list[str]:
    """The operators in a file, in order."""
    return [node[0] for node in graph_of(path)[1]]
