"""Layers removed from ResNet-56 on CIFAR-10 by ResConv: accuracy, work and measured latency.

::

    the trained ResNet-56; then for each strength, from it anew:
        convert, normalize, train with LayerL1     # factors go to zero
        remove, train on without it, fuse
        accuracy on the test images; weights, multiply-adds, latency beside the others

Nothing is chosen: every strength is a row. Latency is of one thread, all rows in turn in one process,
in torch and by `Network` from the exported file.

    TERSENET_DATA=… TERSENET_CACHE=… PYTHONPATH=benches python benches/paper/resconv_cifar10.py
    writes benches/record/resconv_cifar10.json

Training is on a GPU where torch has one. Each epoch leaves its state in TERSENET_CACHE, and an
interrupted run goes on after the last one. For a trial, `--depth`, `--images` and `--epochs` make it
small; then nothing is written.

Source: Xu et al. 2020, "Layer pruning via fusible residual convolutional block for deep neural
networks" (arXiv 2011.14356).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cifar10
import timing
import torch
import torch.nn.functional as F
import trained
from torch import Tensor, nn

import tersenet
from tersenet.layer_pruning import LayerL1, convert, fuse, normalize, remove, scales
from tersenet.replacing import Replacing
from tersenet.training import Callback, TensorBatches, accuracy, evaluate, fit

STRENGTHS = (3e-3, 1e-2, 3e-2, 1e-1)
BATCH = 128
SHAPES = {"batch 1": 1, "batch 32": 32}
LR = {"sparse": 0.02, "tuned": 0.01}
MEASURED = 2_000  # images that the norms are measured on
SEED = 0


@dataclass(frozen=True)
class Settings:
    """What a run does; a record is written for these values alone."""

    depth: int = 56
    images: int = 50_000
    epochs: int = 30


@dataclass(frozen=True)
class Row:
    """One network of the record; `accuracy` is on all test images that the run takes."""

    strength: float | None
    convolutions: int
    removed: int
    accuracy: float
    weights: int
    multiply_adds: int
    times: dict[str, dict[str, float]]


class Run:
    """The data, the settings and the folder of one run."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        """Read the images."""
        self.settings, self.folder = settings, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.train = self._images("train", settings.images)
        self.test = self._images("test", min(settings.images, 10_000))

    def _images(self, part: str, count: int) -> tuple[Tensor, Tensor]:
        images, classes = cifar10.load(part, count)
        return images.to(self.device), classes.to(self.device)

    def pruned(self, strength: float) -> nn.Module:
        """Return the network that a strength leaves, on the CPU in evaluation mode."""
        model = trained.resnet(self.settings.depth).to(self.device)
        print(convert(model))
        images, classes = (tensor[:MEASURED] for tensor in self.train)
        normalize(model, TensorBatches(images, classes, batch_size=500, shuffle=False))
        l1 = LayerL1(model, strength)
        self._trained(model, f"{strength:g}-sparse", LR["sparse"], [l1])
        print(remove(model))
        self._trained(model, f"{strength:g}-tuned", LR["tuned"], [])
        if scales(model):
            fuse(model)
        return model.cpu().eval()

    def accuracy(self, model: nn.Module) -> float:
        """Return the accuracy on the test images."""
        model = model.to(self.device)
        batches = TensorBatches(*self.test, batch_size=500, shuffle=False)
        found = evaluate(model, batches, accuracy)
        model.cpu()
        return found

    def _trained(self, model: nn.Module, name: str, lr: float, callbacks: list[Callback]) -> None:
        """Train a model, from the last epoch of this name that left its state."""
        epochs, path = self.settings.epochs, self.folder / f"{name}.pt"
        factors = list(scales(model).values())
        others = [p for p in model.parameters() if all(p is not factor for factor in factors)]
        groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 1e-4}]
        groups += [{"params": factors, "weight_decay": 0.0}] if factors else []
        sgd = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
        steps = -(-len(self.train[0]) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, steps * epochs)
        parts = {"model": model, "optimizer": sgd, "schedule": schedule}
        done = 0
        if path.exists():
            state = torch.load(path, weights_only=True, map_location=self.device)
            done = state.pop("done")
            for key, part in parts.items():
                part.load_state_dict(state[key])
        for epoch in range(done, epochs):
            (loss,) = fit(
                model,
                cifar10.Shifted(*self.train, batch_size=BATCH, seed=SEED + epoch),
                epochs=1,
                optimizer=sgd,
                loss=F.cross_entropy,
                scheduler=schedule,
                scheduler_unit="step",
                callbacks=callbacks,
                seed=SEED + epoch,
            )
            zeros = sum(factor.item() == 0 for factor in factors)
            print(f"{name}: epoch {epoch + 1} of {epochs}, loss {loss:.4f}, {zeros} factors are 0")
            with Replacing(path) as file:
                states = {key: part.state_dict() for key, part in parts.items()}
                torch.save({"done": epoch + 1, **states}, file)


def rows(run: Run) -> list[Row]:
    """Return a row for the whole network and for what each strength leaves of it."""
    whole = trained.resnet(run.settings.depth)
    models: dict[float | None, nn.Module] = {None: whole}
    models |= {strength: run.pruned(strength) for strength in STRENGTHS}
    times = latencies(list(models.values()))
    depth = _convolutions(whole)
    example = torch.zeros(1, 3, 32, 32)
    found = []
    for (strength, model), measured in zip(models.items(), times, strict=True):
        count = _convolutions(model)
        found.append(
            Row(
                strength,
                count,
                depth - count,
                run.accuracy(model),
                sum(p.numel() for p in model.parameters() if p.dim() > 1),
                tersenet.report(model, example).multiply_adds or 0,
                measured,
            )
        )
    return found


def latencies(models: list[nn.Module]) -> list[dict[str, dict[str, float]]]:
    """Return the milliseconds of each model in torch and by `Network`, of one thread, in turn."""
    torch.set_num_threads(1)
    calls: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for number, model in enumerate(models):
            path = Path(folder, f"{number}.terse")
            tersenet.export(model, (torch.zeros(1, 3, 32, 32),), path)
            network = tersenet.Network.load(path)
            for name, batch in SHAPES.items():
                x = trained.normalized(trained.cifar10(batch)[0])
                expected, found = model(x).numpy(), network.run(x.numpy(), threads=1)
                assert abs(expected - found).max() <= 1e-3 * abs(expected).max()
                calls[f"{number} torch, {name}"] = partial(model, x)
                calls[f"{number} Network, {name}"] = partial(network.run, x.numpy(), threads=1)
        times = timing.interleaved(calls)
    split = [{} for _ in models]
    for name, measured in times.items():
        number, _, what = name.partition(" ")
        split[int(number)][what] = measured
    return split


def _convolutions(model: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules())


def main() -> None:
    """Train, measure and print everything; write the record of a full run."""
    usual = Settings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in asdict(usual).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    settings = Settings(**vars(parser.parse_args()))
    cache = Path(os.environ.get("TERSENET_CACHE") or ".cache", "resconv_cifar10")
    run = Run(settings, cache / "-".join(map(str, asdict(settings).values())))
    found = rows(run)
    for row in found:
        shown = "  ".join(f"{name} {t['median_ms']:.2f} ms" for name, t in row.times.items())
        print(
            f"strength {row.strength}: {row.removed} removed, {row.convolutions} left, "
            f"accuracy {row.accuracy:.4f}, {row.weights:,} weights, "
            f"{row.multiply_adds:,} multiply-adds; {shown}"
        )
    if settings == usual:
        record = timing.environment() | {"settings": asdict(settings)}
        timing.write("resconv_cifar10", record | {"rows": [asdict(row) for row in found]})


if __name__ == "__main__":
    main()
