"""ResConv on CIFAR-10: deep plain networks with and without its shortcuts; layers gone, untrained.

::

    for each seed: a plain network, and a copy of it with a shortcut around each convolution that fits
        train both by the same batches, for as many steps
        fold norms and shortcuts into the convolutions        # now both have the same layers
        accuracy on the test images

    for each count of layers: those of the trained ResNet-56 go whose factors were 0 first
        accuracy on the test images; the same with batch norms recalibrated by unlabelled images, with
            the whole network as the reference

A plain network is a chain of convolutions of 3 x 3, each with a norm and a ReLU, and no shortcuts;
widths and strides are those of the ResNets of CIFAR-10, and so are the first weights. A shortcut does
not fit around the first convolution, nor around the two that halve the maps.

The learning rate is that of 0.01, 0.02, 0.05 and 0.1 with which the plain network's training loss was the
least with another seed. The order of the layers that go is that of `resconv_cifar10`, from its record: factors
trained alone, the two of a block tied, all weights frozen. Weights are not trained here either. A
block without layers would give 2 x; nn.Identity takes its place, as there.

    TERSENET_DATA=… TERSENET_CACHE=… PYTHONPATH=benches python benches/paper/resconv_plain.py
    writes benches/record/resconv_plain.{json,svg}

Finished trainings stay in TERSENET_CACHE and are not run again. For a trial, `--convolutions`,
`--images`, `--epochs`, `--lr`, `--first` (of the seeds) and `--seeds` make other trainings; then
nothing else is done, and nothing written.

Source: Xu et al. 2020, "Layer pruning via fusible residual convolutional block for deep neural
networks" (arXiv 2011.14356); plain networks: He et al. 2016, "Deep residual learning for image
recognition".
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cifar10
import recalibration
import timing
import torch
import torch.nn.functional as F
import trained
from cache import Cache
from devices import CPU, mixed
from resconv_cifar10 import cut, plain
from stepwise import Advance, Shown, said, train
from torch import nn

from tersenet.console import progress, show, table
from tersenet.layer_pruning import convert
from tersenet.training import Callback, State, TensorBatches, accuracy, evaluate

METHODS = ("plain", "resconv")
BATCH = 64
WEIGHT_DECAY = 1e-4
TEST = 10_000
REMOVED = (0, 2, 4, 6, 8, 10)
REMOVED_TEST = 5_000
UNLABELLED = 10_000  # of which each draw takes some hundred
DRAWS = 3


@dataclass(frozen=True)
class Settings:
    """What is trained; a record is written for these values alone."""

    convolutions: int = 31
    images: int = 5_000
    epochs: int = 12
    lr: float = 0.05
    first: int = 0
    seeds: int = 3


@dataclass(frozen=True)
class Trained:
    """One training: the mean loss of each epoch; the test accuracy, a fraction, once fused."""

    method: str
    seed: int
    losses: list[float]
    test: float
    cpu_seconds: float
    device: str


@dataclass(frozen=True)
class Removed:
    """The trained ResNet-56 without some layers; accuracies on the test images are fractions."""

    removed: int
    layers: list[str]
    test: float
    recalibrated: list[float]


class Losses(Callback):
    """Notes the mean loss of each so many steps."""

    def __init__(self, steps: int) -> None:
        """Begin with none."""
        self._steps, self._sum = steps, 0.0
        self.means: list[float] = []

    def step_end(self, state: State) -> None:
        """Add the loss of a step."""
        self._sum += state.loss.item()
        if (state.step + 1) % self._steps == 0:
            self.means.append(self._sum / self._steps)
            self._sum = 0.0


def chain(convolutions: int) -> nn.Sequential:
    """Return a plain network with random weights, a convolution more than three equal stages."""
    widths = [16] + [width for width in (16, 32, 64) for _ in range((convolutions - 1) // 3)]
    layers: list[nn.Module] = []
    before = 3
    for width in widths:
        stride = 1 if before == 3 or before == width else 2
        conv = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        nn.init.kaiming_normal_(conv.weight)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


class Comparison:
    """Trains plain networks with and without shortcuts."""

    def __init__(self, settings: Settings, cache: Cache, advance: Advance) -> None:
        """Read the images."""
        self.settings, self.cache, self.advance = settings, cache, advance
        self.train = cifar10.load("train", settings.images)
        self.test = TensorBatches(*cifar10.load("test", TEST), batch_size=500, shuffle=False)

    def rows(self) -> list[Trained]:
        """Return a row for each method and seed."""
        first, count = self.settings.first, self.settings.seeds
        return [
            Trained(
                **{name: value for name, value in row.items() if name != "stage_cpu_seconds"},
                cpu_seconds=row["stage_cpu_seconds"],
            )
            for seed in range(first, first + count)
            for method in METHODS
            for row in self.cache.rows(f"{method}-{seed}", partial(self._row, method, seed))
        ]

    def _row(self, method: str, seed: int) -> list[dict[str, Any]]:
        torch.manual_seed(seed)
        model = chain(self.settings.convolutions)
        if method == "resconv":
            convert(model, keep="weights")
        model.to(memory_format=torch.channels_last)
        images, classes = self.train
        batches = cifar10.Shifted(images, classes, batch_size=BATCH, seed=seed)
        steps = self.settings.epochs * len(batches)
        losses = Losses(len(batches))
        lr = self.settings.lr
        sgd = torch.optim.SGD(
            model.parameters(),
            lr,
            momentum=0.9,
            nesterov=True,
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )
        with mixed(CPU):
            train(
                model,
                batches,
                steps=steps,
                optimizer=sgd,
                lr=lr,
                loss=F.cross_entropy,
                seed=seed,
                callbacks=[losses, Shown(self.advance, f"{method}, seed {seed}", steps)],
            )
        test = evaluate(fused(model.eval(), images[:100]), self.test, accuracy)
        return [{"method": method, "seed": seed, "losses": losses.means, "test": test}]


def fused(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Return a copy without shortcuts; it is checked by images, and to have a plain one's layers."""
    found = plain(model)
    with torch.no_grad():
        expected = model(images)
        assert (found(images) - expected).abs().max() <= 1e-3 * expected.abs().max()
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert shapes(found) == shapes(plain(chain(convolutions)))
    return found


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shape of each tensor, by name."""
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def without_training(advance: Advance) -> list[Removed]:
    """Return a row for each count of layers that go."""
    path = timing.HERE / "record" / "resconv_cifar10.json"
    order = [row["layer"] for row in json.loads(path.read_text())["chosen"]]
    unlabelled, _ = cifar10.load("train", UNLABELLED)
    test = TensorBatches(*cifar10.load("test", REMOVED_TEST), batch_size=250, shuffle=False)
    rows, whole = [], trained.resnet(56)
    for number, count in enumerate(REMOVED):
        model = trained.resnet(56)
        cut(model, order[:count])
        draws = range(DRAWS)
        after = [recalibration.recalibrated(model, unlabelled, draw, whole) for draw in draws]
        found = [evaluate(plain(each), test, accuracy) for each in (model, *after)]
        rows.append(Removed(count, order[:count], found[0], found[1:]))
        advance("layers gone", number + 1, len(REMOVED))
    return rows


def figures(rows: list[Trained]) -> dict[str, Any]:
    """Return means and deviations over the seeds of what both methods reach, and the gains."""
    found: dict[str, Any] = {}
    tests: dict[str, list[float]] = {}
    for method in METHODS:
        own = [row for row in rows if row.method == method]
        tests[method] = [100 * row.test for row in own]
        losses = [row.losses[-1] for row in own]
        for name, values in (("test_percent", tests[method]), ("last_epoch_loss", losses)):
            found[f"{method}_{name}"] = statistics.mean(values)
            found[f"{method}_{name}_deviation"] = statistics.stdev(values)
    gains = [b - a for a, b in zip(*(tests[method] for method in METHODS), strict=True)]
    found["gains_points"] = gains
    found["gain_points"], found["gain_deviation"] = statistics.mean(gains), statistics.stdev(gains)
    return found


def plot(rows: list[Trained], removed: list[Removed], path: Path) -> None:
    """Draw the losses of all trainings, and test accuracy by the layers that are removed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": path.stem, "svg.fonttype": "none", "font.size": 8}
    from matplotlib import pyplot

    figure, (losses, accuracies) = pyplot.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    for number, method in enumerate(METHODS):
        own = [row for row in rows if row.method == method]
        for row in own:
            label = {"plain": "plain", "resconv": "ResConv"}[method] if row is own[0] else None
            epochs = range(1, len(row.losses) + 1)
            losses.plot(epochs, row.losses, ("x-", "o-")[number], color=f"C{number}", label=label)
    losses.set(xlabel="epoch", ylabel="mean training loss")
    losses.set_title(f"{Settings.convolutions} convolutions in a chain, CIFAR-10")
    losses.set_ylim(bottom=0)
    counts = [row.removed for row in removed]
    accuracies.plot(counts, [100 * row.test for row in removed], "x-", label="layers removed")
    after = [100 * statistics.mean(row.recalibrated) for row in removed]
    label = f"recalibrated by {recalibration.IMAGES} images, to the whole network"
    accuracies.plot(counts, after, "o-", label=label)
    accuracies.set(xlabel="layers removed of 52", ylabel="test accuracy, %")
    accuracies.set_title("ResNet-56, CIFAR-10, without training")
    for axes in (losses, accuracies):
        axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Train, measure and print everything; write the record of a full run."""
    usual = Settings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in asdict(usual).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    settings = Settings(**vars(parser.parse_args()))
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    root = Path(os.environ.get("TERSENET_CACHE") or ".cache", "resconv_plain")
    what = (settings.convolutions, settings.images, settings.epochs, settings.lr)
    cache = Cache(root / "-".join(map(str, what)))
    with progress() as bars:
        rows = Comparison(settings, cache, said(bars)).rows()
        removed = without_training(said(bars)) if settings == usual else []
    shown = table("method", "seed", "first loss", "last loss", "test")
    for row in rows:
        losses = (f"{loss:.3f}" for loss in (row.losses[0], row.losses[-1]))
        shown.add_row(row.method, str(row.seed), *losses, f"{row.test:.2%}")
    show(shown)
    if settings != usual:
        return
    shown = table("layers removed", "test", "recalibrated")
    for gone in removed:
        after = ", ".join(f"{share:.2%}" for share in gone.recalibrated)
        shown.add_row(str(gone.removed), f"{gone.test:.2%}", after)
    show(shown)
    fixed = ("BATCH", "WEIGHT_DECAY", "TEST", "REMOVED_TEST", "UNLABELLED")
    timing.write(
        "resconv_plain",
        timing.environment()
        | {
            "settings": asdict(settings) | {name.lower(): globals()[name] for name in fixed},
            "figures": figures(rows),
            "table": [asdict(row) for row in rows],
            "recalibration_images": recalibration.IMAGES,
            "removed": [asdict(row) for row in removed],
        },
    )
    plot(rows, removed, timing.HERE / "record" / "resconv_plain.svg")


if __name__ == "__main__":
    main()
