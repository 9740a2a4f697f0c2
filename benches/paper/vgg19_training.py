"""VGG19 for small images: the data it is trained on here, and training that goes on after a stop.

The network has batch norms and three linear layers, 512-4096-4096-10, the sizes of the authors' files.
MNIST has 28 × 28 pixels and is padded to 32 × 32. An epoch takes two cores from six minutes to the better
part of an hour, so training is counted in images, not epochs, and the checkpoint is written every few
minutes. Products are of bfloat16 where the processor has instructions for them; weights, sums of losses
and the optimizer are float32, and nothing is measured in bfloat16.

Source: Simonyan and Zisserman 2015, "Very deep convolutional networks for large-scale image recognition";
the rate's rise and fall: Smith and Topin 2018, "Super-convergence".
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import cifar10
import mnist
import torch
import torch.nn.functional as F
from heads import SEED
from networks import VGG
from torch import Tensor, nn

from tersenet.replacing import Replacing
from tersenet.training import Batch, accuracy, evaluate, fit

BATCH_SIZE = 64
PART = 200  # steps between checkpoints
IMAGES = {"mnist": 32_000, "cifar10": 300_000}  # that the dense network sees in all
LR = {"mnist": 5e-4, "cifar10": 5e-4}
HIDDEN = (4096, 4096)

_VALIDATION = 5_000

Images = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Data:
    """Images [n, channels, 32, 32] and labels [n]; those for validation are no train's."""

    name: str
    train: Images
    validation: Images
    test: Images

    def batches(self, seed: int) -> Iterable[Batch]:
        """Return batches of training images, a little warped or moved, the same for one seed."""
        if self.name == "mnist":
            return mnist.WarpedBatches(self.train, batch_size=BATCH_SIZE, seed=seed)
        return cifar10.Shifted(*self.train, batch_size=BATCH_SIZE, seed=seed)


def load(name: str) -> Data:
    """Return "mnist", padded, or "cifar10"; the last 5,000 training images are for validation.

    Raises:
        FileNotFoundError: if the folder that TERSENET_DATA names does not hold them.
    """
    if name == "mnist":
        data = mnist.load()
        parts = (data.train, data.validation, data.test)
        return Data(name, *((F.pad(images, (2, 2, 2, 2)), labels) for images, labels in parts))
    (images, labels), test = (cifar10.load(*part) for part in (("train", 50_000), ("test", 10_000)))
    cut = len(images) - _VALIDATION
    return Data(name, (images[:cut], labels[:cut]), (images[cut:], labels[cut:]), test)


def make(name: str) -> VGG:
    """Return the network with its first weights."""
    torch.manual_seed(SEED)
    net = VGG(hidden=HIDDEN, channels=1 if name == "mnist" else 3)
    return net.to(memory_format=torch.channels_last)


def has_bfloat16() -> bool:
    """Return whether the processor has instructions for products of bfloat16."""
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def mixed() -> AbstractContextManager[None]:
    """Return where products are of bfloat16, if that is fast."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16())


def loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of scores [n, classes] of any type, in float32."""
    return F.cross_entropy(scores.float(), labels)


def measured(net: nn.Module, images: Images, count: int | None = None) -> float:
    """Return the accuracy on the first images, or on all."""
    parts = (part[:count].split(250) for part in images)
    return evaluate(net, list(zip(*parts, strict=True)), accuracy)


def train_dense(net: nn.Module, data: Data, path: Path) -> None:
    """Train from the start, or from the checkpoint at `path` on."""
    steps = IMAGES[data.name] // BATCH_SIZE
    optimizer = torch.optim.AdamW(net.parameters(), LR[data.name], weight_decay=5e-4, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR[data.name], total_steps=steps, pct_start=0.2
    )
    parts = {"model": net, "optimizer": optimizer, "scheduler": scheduler}
    done = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        done = state["done"]
        for part, of in parts.items():
            of.load_state_dict(state[part])
    while done < steps:
        start, count = time.perf_counter(), min(PART, steps - done)
        # Other images in each part: the seed orders them anew.
        batches = iter(data.batches(SEED + done))
        chosen = [next(batches) for _ in range(count)]
        with mixed():
            (found,) = fit(
                net,
                chosen,
                epochs=1,
                optimizer=optimizer,
                loss=loss,
                scheduler=scheduler,
                scheduler_unit="step",
                seed=SEED + done,
            )
        done += count
        print(
            f"{data.name}, {done * BATCH_SIZE:,} images: {found:.4f}, of 500 for validation "
            f"{measured(net, data.validation, 500):.1%}, {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        state = {part: of.state_dict() for part, of in parts.items()}
        with Replacing(path) as file:
            torch.save({**state, "done": done}, file)
