"""Whole VGG19s, compressed as `wholes` says, trained on a part of the images after each step.

The dense network teaches: the loss is half the cross-entropy of the labels, half that of its softened
scores of the same images. The first half of the convolutions, a tenth of their weights, keeps more.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import stepwise
import torch
from devices import CPU, mixed
from heads import Row
from lenet5 import distillation
from networks import VGG
from torch import Tensor, nn
from vgg19_head import ImageHeads
from vgg19_scale import Scale
from vgg19_training import Data, measured
from wholes import Wholes

from tersenet.plan import Plan, Rule
from tersenet.training import Batch

_MORE = 0.2  # kept of the first half of the convolutions


class _Answered:
    """Batches of images, with the teacher's scores and the labels, [batch, 11]."""

    def __init__(self, batches: Iterable[Batch], teacher: nn.Module) -> None:
        self._batches, self._teacher = batches, teacher

    def __iter__(self) -> Iterator[Batch]:
        for images, labels in self._batches:
            with torch.no_grad():
                scores = self._teacher(images).float()
            yield images, torch.cat([scores, labels[:, None].float()], 1)


class ImageWholes(Wholes):
    """The rows of one data set's whole networks."""

    fc = "classifier"

    def __init__(self, net: VGG, heads: ImageHeads, data: Data, scale: Scale) -> None:
        """Begin with the trained network, which is the teacher too, and its pruned heads."""
        super().__init__(net, heads, scale.sparsities, scale.rows)
        self.data, self.scale, self.cycles = data, scale, scale.cycles
        self.teacher = copy.deepcopy(net).eval()

    def plan(self, sparsity: float) -> Plan:
        """Return what prunes the convolutions; the sparsity is that of the second half."""
        convs = [name for name, at in self.net.named_modules() if isinstance(at, nn.Conv2d)]
        first = Rule(sparsity=round(sparsity - _MORE, 3))
        rules = {"conv:*": Rule(sparsity=sparsity)}
        return Plan(rules | dict.fromkeys(convs[: len(convs) // 2], first))

    def train(self, model: nn.Module, what: str, seed: int) -> None:
        """Train all of a network on some images."""
        size = self.scale.whole_batch_size
        with mixed(self.cache.device):
            stepwise.train(
                model,
                _Answered(self.data.batches(size, seed), self.teacher),
                steps=self.scale.images[what] // size,
                optimizer=torch.optim.Adam(model.parameters(), fused=True),
                lr=self.scale.lr[what],
                loss=distillation,
                seed=seed,
            )

    def examples(self, count: int) -> tuple[Tensor, ...]:
        """Return the first test images."""
        return (self.data.test[0][:count].to(CPU),)

    def measure(self, net: nn.Module) -> Row:
        """Return the accuracies of a network."""
        return {
            "validation": measured(net, self.data.validation),
            "accuracy": measured(net, self.data.test),
        }
