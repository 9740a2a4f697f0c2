"""A LeNet-5 made narrower, and given its full width back with zeros, for `admm_lenet5`.

While most of a network is pruned away, training only the maps and hidden units that will keep
anything costs a fraction; at full width the rest are zeros. Which unit comes first means nothing to
a network, so those with the most weights do: rows that are alike in density take fewer bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from networks import LeNet5
from torch import Tensor

_PIXELS = 16  # of a map of conv2 where ip1 reads it


def narrowed(net: LeNet5, scores: Mapping[str, np.ndarray], widths: tuple[int, int, int]) -> LeNet5:
    """Return the maps and the hidden units that score most, as a network of their own.

    `scores` are `taylor_scores` of conv1, conv2 and ip1; the convolutions have no biases.
    """
    first, second, units = (
        _largest(scores[name].reshape(len(scores[name]), -1).sum(1), count)
        for name, count in zip(("conv1", "conv2", "ip1"), widths, strict=True)
    )
    return _chosen(net, first, second, units)


def widened(net: LeNet5) -> LeNet5:
    """Return a plain network at full width that computes the same, densest units first."""
    order = [
        (weight != 0).flatten(1).sum(1).argsort(descending=True, stable=True)
        for weight in (net.conv1.weight, net.conv2.weight, net.ip1.weight)
    ]
    narrow, wide = _chosen(net, *order), LeNet5()
    wide.conv1.bias = wide.conv2.bias = None
    for name, parameter in wide.named_parameters():
        small = narrow.get_parameter(name).detach()
        parameter.data.zero_()[tuple(slice(size) for size in small.shape)] = small
    return wide


def _chosen(net: LeNet5, first: Tensor, second: Tensor, units: Tensor) -> LeNet5:
    """Return a network of these maps of conv1 and conv2 and these units of ip1, in this order."""
    chosen = LeNet5((len(first), len(second), len(units)))
    chosen.conv1.bias = chosen.conv2.bias = None
    inputs = (second[:, None] * _PIXELS + torch.arange(_PIXELS)).flatten()
    parts = {
        "conv1.weight": net.conv1.weight[first],
        "conv2.weight": net.conv2.weight[second][:, first],
        "ip1.weight": net.ip1.weight[units][:, inputs],
        "ip1.bias": net.ip1.bias[units],
        "ip2.weight": net.ip2.weight[:, units],
        "ip2.bias": net.ip2.bias,
    }
    chosen.load_state_dict({name: part.detach() for name, part in parts.items()})
    return chosen


def _largest(scores: np.ndarray, count: int) -> Tensor:
    return torch.from_numpy(np.sort(np.argsort(-scores, kind="stable")[:count]))
