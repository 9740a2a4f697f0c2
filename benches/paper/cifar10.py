"""CIFAR-10 in memory as the ResNets take it, and batches of shifted and mirrored images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import trained
from torch import Tensor

from tersenet.training import TensorBatches


def load(part: str, count: int) -> tuple[Tensor, Tensor]:
    """Return the first images [count, 3, 32, 32], normalized, of "train" or "test", and classes.

    Raises:
        FileNotFoundError: if the folder that TERSENET_DATA names does not hold them.
    """
    images, classes = trained.cifar10(count, part)
    return trained.normalized(images), torch.from_numpy(classes).long()


class Shifted:
    """Shuffled batches, each image moved by up to 4 pixels and half of them mirrored."""

    def __init__(self, images: Tensor, classes: Tensor, *, batch_size: int, seed: int) -> None:
        """Keep the images, on the device where they are wanted."""
        self._batches = TensorBatches(images, classes, batch_size=batch_size, seed=seed)
        self._generator = torch.Generator(images.device).manual_seed(seed)
        self._device = images.device

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over (images, classes) of each batch."""
        for images, classes in self._batches:
            count = len(images)
            drawn = {"generator": self._generator, "device": self._device}
            down, right = torch.randint(0, 9, (2, count, 1), **drawn)
            is_mirrored = torch.rand(count, 1, **drawn) < 0.5
            pixels = torch.arange(32, device=self._device)
            rows = down + pixels
            columns = right + torch.where(is_mirrored, 31 - pixels, pixels)
            padded = F.pad(images, (4, 4, 4, 4))
            number = torch.arange(count, device=self._device)[:, None, None, None]
            channel = torch.arange(3, device=self._device)[None, :, None, None]
            yield padded[number, channel, rows[:, None, :, None], columns[:, None, None]], classes
