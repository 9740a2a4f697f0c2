"""The stages of `selfsup_pruning` and `selfsup_transfer`: networks trained, pruned and probed once.

A convolution here is cheap: the first one has stride 4, so that 10,000 images of an epoch take a few
seconds of one core.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cifar10
import numpy as np
import torch
import torch.nn.functional as F
import trained
from torch import Tensor, nn

from tersenet.plan import Plan, Rule
from tersenet.pruning import (
    Stage,
    copy_masks,
    masks,
    prune_iteratively,
    random_masks,
    reinitialize,
    rewind,
)
from tersenet.pruning.stages import Progress
from tersenet.replacing import Replacing
from tersenet.self_supervision import (
    InstanceMemory,
    RotatedBatches,
    features,
    linear_probe,
    with_head,
)
from tersenet.training import State, TensorBatches, accuracy, evaluate, fit

OUTPUTS = {"labels": 10, "rotations": 4, "instances": 128}
OBJECTIVES = ("labels", "rotations")  # of `selfsup_pruning`
ROUNDS = {0.2: 7, 0.1: 3, 0.05: 3, 0.02: 4}  # density: rounds to it from the one before
PROBED = 0.1
MASKS = ("labels", "rotations", "random")
STARTS = ("rewound", "fresh")
TRANSFERS = ("untrained", "all weights", "few weights")
BATCH = 100
LR = {"labels": 0.1, "rotations": 0.1, "instances": 0.03}
DECAY = 5e-4
PRICES = (1e-3, 1e-2)  # of a probe
VALIDATION = 2_000
TEMPERATURE = 0.2  # of the instances
CONTRAST, SHADE = 0.4, 0.4  # the most by which colours change, of their range and in deviations

Images = tuple[Tensor, Tensor]
Result = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What a run does, in images and epochs; a record is written for these values alone.

    Epochs are of a dense network with labels and by rotations, of a round of pruning to the first
    density and of a later one, of a network with labels under a mask, and before the early state.
    """

    images: int = 10_000
    test: int = 10_000
    labels: int = 6
    rotations: int = 10
    first: int = 1
    round: int = 2
    ticket: int = 3
    early: int = 1


class Net(nn.Module):
    """Four convolutions with batch norm, 1.4 million multiply-adds, and a linear head."""

    def __init__(self, classes: int) -> None:
        """Draw the weights."""
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for filters, stride, kernel in ((24, 4, 5), (48, 2, 3), (96, 1, 3), (128, 2, 3)):
            layers += [
                nn.Conv2d(before, filters, kernel, stride, kernel // 2, bias=False),
                nn.BatchNorm2d(filters),
                nn.ReLU(inplace=True),
            ]
            before = filters
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of images [batch, 3, 32, 32]."""
        return self.head(self.body(x).mean((2, 3)))


class Augmented:
    """Shuffled batches, each moved by up to 4 pixels as a whole, and half of the images mirrored."""

    def __init__(
        self,
        images: Tensor,
        classes: Tensor,
        seed: int,
        *,
        is_mirrored: bool = True,
        border: str = "constant",
    ) -> None:
        """Pad the images once: with 0, or where the border is "replicate" with their outermost."""
        self._is_mirrored = is_mirrored
        padded = F.pad(images, (4, 4, 4, 4), border)
        padded = padded.contiguous(memory_format=torch.channels_last)
        self._batches = TensorBatches(padded, classes, batch_size=BATCH, seed=seed)
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over (images, classes) of each batch."""
        for padded, classes in self._batches:
            down, right = torch.randint(0, 9, (2,), generator=self._generator).tolist()
            images = padded[:, :, down : down + 32, right : right + 32]
            if self._is_mirrored:
                flips = torch.rand(len(images), generator=self._generator) < 0.5
                images = torch.where(flips[:, None, None, None], images.flip(3), images)
            yield images.contiguous(memory_format=torch.channels_last), classes


class Varied:
    """Shuffled batches of images and their numbers, each image moved, mirrored and in other colours."""

    def __init__(self, images: Tensor, seed: int) -> None:
        """Keep the images."""
        numbers = torch.arange(len(images))
        self._batches = cifar10.Shifted(images, numbers, batch_size=BATCH, seed=seed)
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over (images, numbers) of each batch."""
        for images, numbers in self._batches:
            contrast = torch.empty(len(images), 1, 1, 1)
            contrast.uniform_(1 - CONTRAST, 1 + CONTRAST, generator=self._generator)
            shade = torch.empty(len(images), 3, 1, 1)
            shade.uniform_(-SHADE, SHADE, generator=self._generator)
            images = images * contrast + shade
            yield images.contiguous(memory_format=torch.channels_last), numbers


class Bench:
    """The data, the settings, and the folder of what is finished."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        advance: Progress,
        rounds: Mapping[float, int] = ROUNDS,
    ) -> None:
        """Read the images."""
        self.settings, self.folder, self.advance = settings, folder, advance
        self.rounds = rounds
        folder.mkdir(parents=True, exist_ok=True)
        images, classes = _images("train", settings.images + VALIDATION)
        self.train = images[: settings.images], classes[: settings.images]
        self.validation = images[settings.images :], classes[settings.images :]
        self.test = _images("test", settings.test)
        # Of all that this run has asked for, when it ran; of the process, without what it waited for.
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}

    def finished(self, name: str, work: Callable[[], Result]) -> Result:
        """Return what the work gives, or gave once; tensors and numbers only."""
        path = self.folder / f"{name}.pt"
        if path.exists():
            found: Result = torch.load(path, weights_only=True)
        else:
            start, cpu_start = time.perf_counter(), time.process_time()
            found = work()
            found["seconds"] = time.perf_counter() - start
            found["cpu_seconds"] = time.process_time() - cpu_start
            with Replacing(path) as file:
                torch.save(found, file)
            self.advance(f"{name}, {found['seconds']:.0f} s", 1, 1)
        self.seconds[name] = found["seconds"]
        self.cpu_seconds[name] = found["cpu_seconds"]
        return found

    def fit(
        self,
        net: nn.Module,
        objective: str,
        epochs: int,
        seed: int,
        watch: Callable[[State], None] | None = None,
        criterion: nn.Module | None = None,
    ) -> list[float]:
        """Train a network on an objective; return the mean loss of each epoch."""
        batches: Any = Augmented(*self.train, seed)
        if objective == "rotations":
            batches = RotatedBatches(batches, turns="random", seed=seed)
        if objective == "instances":
            batches = Varied(self.train[0], seed)
        criterion = criterion or self.criterion(objective, seed)
        return fit_cycle(net, batches, epochs, seed, criterion, LR[objective], watch)

    def criterion(self, objective: str, seed: int, state: Result | None = None) -> nn.Module:
        """Return the loss of an objective; that of instances has a memory, fresh or of a state."""
        if objective != "instances":
            return nn.CrossEntropyLoss()
        count, outputs = len(self.train[0]), OUTPUTS[objective]
        found = InstanceMemory(count, outputs, temperature=TEMPERATURE, seed=seed)
        if state:
            found.load_state_dict(state)
        return found

    def accuracy(self, net: nn.Module) -> float:
        """Return the accuracy on the test images."""
        return evaluate(net, TensorBatches(*self.test, batch_size=500, shuffle=False), accuracy)

    def dense(self, objective: str, seed: int) -> Result:
        """Return a dense network's states, early and at the end, its loss, and its test accuracy."""

        def work() -> Result:
            net, criterion = network(objective, seed), self.criterion(objective, seed)
            early: Result = {}

            def watch(state: State) -> None:
                if state.epoch + 1 == self.settings.early:
                    early["early"] = copy.deepcopy(net.state_dict())
                    early["criterion"] = copy.deepcopy(criterion.state_dict())

            epochs = getattr(self.settings, objective)
            losses = self.fit(net, objective, epochs, seed, watch, criterion)
            found = early | {"state": net.state_dict(), "loss": losses[-1]}
            return found | ({"accuracy": self.accuracy(net)} if objective == "labels" else {})

        return self.finished(f"{seed}-dense-{objective}", work)

    def masks(self, objective: str, seed: int) -> dict[float, dict[str, Tensor]]:
        """Return the masks of an objective for each density."""
        dense = self.dense(objective, seed)

        def train(net: nn.Module, stage: Stage, epochs: int) -> None:
            criterion = self.criterion(objective, seed, dense["criterion"])
            self.fit(net, objective, epochs, stage.seed, criterion=criterion)

        def work() -> Result:
            net = network(objective, seed)
            net.load_state_dict(dense["state"])
            found, before = {}, 1.0
            for density, rounds in self.rounds.items():
                name = f"{seed}-masks-{objective}-{density:g}"
                epochs = self.settings.first if before == 1 else self.settings.round
                prune_iteratively(
                    net,
                    Plan({"conv:*": Rule(sparsity=1 - density)}, pruning_scope="global"),
                    train=functools.partial(train, epochs=epochs),
                    fraction=1 - (density / before) ** (1 / rounds),
                    rewind=dense["early"],
                    seed=seed,
                    checkpoint=self.folder / name,
                    progress=lambda _, done, total, name=name: self.advance(name, done, total),
                )
                found[f"{density:g}"] = {name: mask.clone() for name, mask in masks(net).items()}
                before = density
            return found

        found = self.finished(f"{seed}-masks-{objective}", work)
        return {density: found[f"{density:g}"] for density in self.rounds}

    def transfer(self, name: str, seed: int) -> Result:
        """Return what rotations have taught: accuracies of a probe, and of fine-tuning it.

        The name is "untrained", "all weights", or "few weights": PROBED of them, from the early
        ones on for as many epochs.
        """
        dense = self.dense("rotations", seed)
        found = self.masks("rotations", seed)[PROBED] if name == "few weights" else {}

        def work() -> Result:
            net = network("rotations", seed)
            if name == "all weights":
                net.load_state_dict(dense["state"])
            if name == "few weights":
                rewind(net, dense["early"])
                copy_masks(found, net)
                self.fit(
                    net, "rotations", self.settings.rotations - self.settings.early, seed + 100
                )
            chosen, probed = probe(net, self.train, self.validation, self.test)
            if name == "untrained":
                return probed
            tuned = with_head(net, "head", chosen)
            self.fit(tuned, "labels", self.settings.ticket, seed)
            return probed | {"tuned": self.accuracy(tuned)}

        return self.finished(f"{seed}-transfer-{name.replace(' ', '-')}", work)

    def ticket(self, mask: str, start: str, density: float, seed: int) -> float:
        """Return the test accuracy of a network trained with labels under a mask."""
        objective = "labels" if mask == "labels" else "rotations"
        dense, found = self.dense(objective, seed), self.masks(objective, seed)[density]

        def work() -> Result:
            net = network("labels", seed + 1000)
            if start == "rewound":
                rewind(net.body, _of_body(dense["early"]))
            else:
                reinitialize(net, seed=seed + 2000)
            copy_masks(random_masks(found, seed=seed) if mask == "random" else found, net)
            self.fit(net, "labels", self.settings.ticket, seed)
            return {"accuracy": self.accuracy(net)}

        return self.finished(f"{seed}-ticket-{mask}-{start}-{density:g}", work)["accuracy"]


def fit_cycle(
    net: nn.Module,
    batches: Any,
    epochs: int,
    seed: int,
    criterion: nn.Module,
    lr: float,
    watch: Callable[[State], None] | None = None,
) -> list[float]:
    """Train a network at a rate that rises and falls; return the mean loss of each epoch."""
    sgd = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=DECAY)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        sgd, lr, total_steps=epochs * len(batches), pct_start=0.2
    )
    return fit(
        net,
        batches,
        epochs=epochs,
        optimizer=sgd,
        loss=criterion,
        scheduler=cycle,
        scheduler_unit="step",
        callbacks=[watch] if watch else [],
        seed=seed,
    )


def probe(
    net: nn.Module, train: Images, validation: Images, test: Images
) -> tuple[nn.Linear, Result]:
    """Return the probe that the validation images choose, and its accuracies."""
    parts = [
        features(net, TensorBatches(*part, batch_size=500, shuffle=False), "head")
        for part in (train, validation, test)
    ]
    probes = [linear_probe(*parts[0], count=10, l2=price) for price in PRICES]
    values = [accuracy(each(parts[1][0]), parts[1][1]) for each in probes]
    best = int(np.argmax(values))
    found = accuracy(probes[best](parts[2][0]), parts[2][1])
    return probes[best], {"l2": PRICES[best], "validation": values[best], "probe": found}


def network(objective: str, seed: int) -> Net:
    """Return a fresh network for an objective."""
    torch.manual_seed(seed)
    net = Net(OUTPUTS[objective])
    return net.to(memory_format=torch.channels_last)


def _of_body(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("body."): v for k, v in state.items() if k.startswith("body.")}


def _images(part: str, count: int) -> Images:
    images, classes = trained.cifar10(count, part)
    images = trained.normalized(images).contiguous(memory_format=torch.channels_last)
    return images, torch.from_numpy(classes).long()
