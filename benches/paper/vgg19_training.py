"""VGG19 for small images: the data it is trained on here, and training that goes on after a stop.

The network has batch norms and three linear layers, 512-4096-4096-10, the sizes of the authors' files.
MNIST has 28 × 28 pixels and is padded to 32 × 32. An epoch takes an accelerator seconds and two cores
from six minutes to the better part of an hour, so training is counted in images and leaves a checkpoint
now and then.

Source: Simonyan and Zisserman 2015, "Very deep convolutional networks for large-scale image recognition";
the rate's rise and fall: Smith and Topin 2018, "Super-convergence".
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path

import cifar10
import mnist
import torch
import torch.nn.functional as F
from devices import CPU, mixed
from heads import SEED
from networks import VGG
from torch import Tensor, nn
from vgg19_scale import Scale

from tersenet.replacing import Replacing
from tersenet.training import Batch, accuracy, evaluate, fit

PARTS = 24  # with a checkpoint after each
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

    def batches(self, batch_size: int, seed: int) -> Iterable[Batch]:
        """Return batches of training images, a little warped or moved, the same for one seed."""
        if self.name == "mnist":
            return mnist.WarpedBatches(self.train, batch_size=batch_size, seed=seed)
        return cifar10.Shifted(*self.train, batch_size=batch_size, seed=seed)


def load(name: str, device: torch.device = CPU) -> Data:
    """Return "mnist", padded, or "cifar10"; the last 5,000 training images are for validation.

    Raises:
        FileNotFoundError: if the folder that TERSENET_DATA names does not hold them.
    """
    if name == "mnist":
        data = mnist.load(device)
        parts = [data.train, data.validation, data.test]
        parts = [(F.pad(images, (2, 2, 2, 2)), labels) for images, labels in parts]
    else:
        images, labels = cifar10.load("train", 50_000)
        cut = len(images) - _VALIDATION
        parts = [(images[:cut], labels[:cut]), (images[cut:], labels[cut:])]
        parts.append(cifar10.load("test", 10_000))
    return Data(name, *((images.to(device), labels.to(device)) for images, labels in parts))


def make(name: str, device: torch.device = CPU) -> VGG:
    """Return the network with its first weights."""
    torch.manual_seed(SEED)
    net = VGG(hidden=HIDDEN, channels=1 if name == "mnist" else 3)
    return net.to(device, memory_format=torch.channels_last)


def loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of scores [n, classes] of any type, in float32."""
    return F.cross_entropy(scores.float(), labels)


def measured(net: nn.Module, images: Images, count: int | None = None) -> float:
    """Return the accuracy on the first images, or on all."""
    parts = (part[:count].split(250) for part in images)
    return evaluate(net, list(zip(*parts, strict=True)), accuracy)


def train_dense(net: nn.Module, data: Data, scale: Scale, path: Path, device: torch.device) -> None:
    """Train from the start, or from the checkpoint at `path` on."""
    steps = scale.dense_images // scale.batch_size
    optimizer = scale.dense_optimizer(net.parameters())
    lr = optimizer.param_groups[0]["lr"]
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)
    parts = {"model": net, "optimizer": optimizer, "scheduler": scheduler}
    done = 0
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=CPU)
        done = state["done"]
        for part, of in parts.items():
            of.load_state_dict(state[part])
    while done < steps:
        start, count = time.perf_counter(), min(-(-steps // PARTS), steps - done)
        # Other images in each part: the seed orders them anew.
        batches = chain.from_iterable(repeat(data.batches(scale.batch_size, SEED + done)))
        with mixed(device):
            (found,) = fit(
                net,
                islice(batches, count),
                epochs=1,
                optimizer=optimizer,
                loss=loss,
                scheduler=scheduler,
                scheduler_unit="step",
                seed=SEED + done,
            )
        done += count
        print(
            f"{data.name}, {done * scale.batch_size:,} images: {found:.4f}, of 500 for validation "
            f"{measured(net, data.validation, 500):.1%}, {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        state = {part: of.state_dict() for part, of in parts.items()}
        with Replacing(path) as file:
            torch.save({**state, "done": done}, file)
    if scale.rounds:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(parameter.bfloat16())
