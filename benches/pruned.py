"""Pruned layers and networks with shared weights, made from the folder that TERSENET_DATA names.

The layers of the authors of HAC and sHAC and SqueezeNet are as their authors pruned and shared
them. The other networks are trained, then pruned by magnitude and quantized by k-means here, and
not trained on: their sizes are meant, not their accuracy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import trained
from torch import nn

import tersenet
from tersenet import Plan, Rule

# How many are kept of LeNet-5's weights, layer by layer: 2,600 of 430,500, in about the proportions
# in which networks of this kind are pruned (Guo, Yao, Chen 2016).
LENET5_KEPT = {"conv1": 100, "conv2": 1000, "ip1": 1300, "ip2": 200}
# Bytes of the file that its authors made, of what has one.
PUBLISHED_NBYTES = {"squeezenet_deepcompressed": 675_763}


def sham_layers(names: list[str]) -> dict[str, np.ndarray]:
    """Return the authors' layers as [out, in]: those whose name holds one of `names`, or all."""
    found = {}
    for path in sorted((trained.data() / "sham_layers").glob("*.npz")):
        if not names or any(name in path.stem for name in names):
            with np.load(path) as stored:
                found[path.stem] = np.ascontiguousarray(stored["codebook"][stored["indices"]].T)
    return found


def resnet(depth: int, sparsity: float, k: int) -> nn.Module:
    """Return a ResNet of CIFAR-10: all layers pruned together, k values in each."""
    plan = Plan({"*": Rule(sparsity=sparsity, quantizer="cws", k=k)}, pruning_scope="global")
    return tersenet.compress(trained.resnet(depth), plan, inplace=True)


def lenet5(k: int) -> nn.Module:
    """Return LeNet-5 with `LENET5_KEPT` weights and k values in each layer."""
    model = trained.lenet()
    rules = {
        name: Rule(
            sparsity=1 - kept / model.get_submodule(name).weight.numel(), quantizer="cws", k=k
        )
        for name, kept in LENET5_KEPT.items()
    }
    return tersenet.compress(model, Plan(rules), inplace=True)


def networks(names: list[str]) -> dict[str, Callable[[], nn.Module]]:
    """Return what makes each compressed network: those whose name holds one of `names`, or all."""
    makers: dict[str, Callable[[], nn.Module]] = {
        f"resnet{depth}_prune{sparsity:.0%}_k{k}".replace("%", ""): partial(
            resnet, depth, sparsity, k
        )
        for depth in (20, 56)
        for sparsity in (0.8, 0.9)
        for k in (16, 32)
    }
    makers["squeezenet_deepcompressed"] = lambda: tersenet.compress(trained.squeezenet())
    makers["lenet5_kept2600_k8"] = partial(lenet5, 8)
    return {n: m for n, m in makers.items() if not names or any(name in n for name in names)}


def weights(compressed: nn.Module) -> dict[str, np.ndarray]:
    """Return the weights of all linear and convolutional layers by the layers' names."""
    return {
        name: layer.weight.detach().numpy()
        for name, layer in tersenet.decompress(compressed).named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
