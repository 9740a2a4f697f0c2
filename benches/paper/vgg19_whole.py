"""Whole VGG19s, compressed as `wholes` says, trained on a part of the images after each step."""

from __future__ import annotations

import stepwise
import torch
from devices import CPU, mixed
from heads import Row
from networks import VGG
from torch import Tensor, nn
from vgg19_head import ImageHeads
from vgg19_scale import Scale
from vgg19_training import Data, loss, measured
from wholes import Wholes


class ImageWholes(Wholes):
    """The rows of one data set's whole networks."""

    fc = "classifier"

    def __init__(self, net: VGG, heads: ImageHeads, data: Data, scale: Scale) -> None:
        """Begin with the trained network and its pruned heads."""
        super().__init__(net, heads, scale.sparsities, scale.rows)
        self.data, self.scale, self.cycles = data, scale, scale.cycles

    def train(self, model: nn.Module, what: str, seed: int) -> None:
        """Train all of a network on some images."""
        size = self.scale.batch_size
        with mixed(self.cache.device):
            stepwise.train(
                model,
                self.data.batches(size, seed),
                steps=self.scale.images[what] // size,
                optimizer=torch.optim.Adam(model.parameters(), fused=True),
                lr=self.scale.lr[what],
                loss=loss,
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
