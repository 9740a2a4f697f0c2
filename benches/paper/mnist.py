"""MNIST in memory, split for choices and for reports, and batches of slightly warped images."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import trained
from devices import CPU
from torch import Tensor

from tersenet.training import TensorBatches

Images = tuple[Tensor, Tensor]

_VALIDATION = 5_000


@dataclass(frozen=True)
class Mnist:
    """Images [n, 1, 28, 28] = pixels / 255 and labels [n]; the validation images are no train's."""

    train: Images
    validation: Images
    test: Images


def load(device: torch.device = CPU) -> Mnist:
    """Read the four files; the last 5,000 training images are for validation.

    Raises:
        FileNotFoundError: if the folder that TERSENET_DATA names does not hold them.
    """
    images, labels = _part("train", device)
    cut = len(images) - _VALIDATION
    return Mnist((images[:cut], labels[:cut]), (images[cut:], labels[cut:]), _part("t10k", device))


class WarpedBatches:
    """Shuffled batches, each image turned, scaled and shifted a little, the same for one seed."""

    def __init__(
        self,
        images: Images,
        *,
        batch_size: int,
        seed: int,
        degrees: float = 8.0,
        scale: float = 0.08,
        pixels: float = 1.5,
    ) -> None:
        """Keep the images, and the most by which one is turned, scaled and shifted."""
        self._batches = TensorBatches(*images, batch_size=batch_size, seed=seed)
        device = images[0].device
        self._generator = torch.Generator(device).manual_seed(seed)
        most = [degrees * torch.pi / 180, scale, *[pixels / 14] * 2]
        self._most = torch.tensor(most, device=device)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Images]:
        """Iterate over (images, labels) of each batch."""
        for images, labels in self._batches:
            drawn = torch.empty(len(images), 4, device=images.device)
            drawn.uniform_(-1, 1, generator=self._generator)
            turn, scale, right, down = (drawn * self._most).unbind(1)
            cosine, sine = (1 + scale) * turn.cos(), (1 + scale) * turn.sin()
            rows = torch.stack([cosine, -sine, right, sine, cosine, down], 1).view(-1, 2, 3)
            grid = F.affine_grid(rows, list(images.shape), align_corners=False)
            yield F.grid_sample(images, grid, align_corners=False), labels


def _part(name: str, device: torch.device) -> Images:
    images = _idx(f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
    labels = _idx(f"{name}-labels-idx1-ubyte.gz", 8)
    return (torch.from_numpy(images).float() / 255).to(device), torch.from_numpy(labels).to(
        device, torch.int64
    )


def _idx(name: str, head: int) -> np.ndarray:
    packed = (trained.data() / "mnist" / name).read_bytes()
    return np.frombuffer(gzip.decompress(packed), np.uint8)[head:].copy()
