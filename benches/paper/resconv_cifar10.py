"""Layers removed from ResNet-56 on CIFAR-10 by ResConv: accuracy against work and measured latency.

::

    net = the trained ResNet-56
    a copy: convert, one factor for both layers of a block, train the factors alone with LayerL1, of
        rising strength; a factor that is 0 stays 0             # which layers go, and in which order
    for each count of layers:
        net: those go whose factors were 0 first, each with its norm
        train net on, with the trained ResNet-56 as its teacher
        a row: a copy of net with its norms folded into plain convolutions (convert, fuse)
    latency of all rows, in turn in one process, of one thread, in torch and by `Network` from the file

The factors choose, and the layers that stay go on from the weights they had, each with its own norm.
Blocks go whole because their layers were trained for each other: in a trial of 60 steps the loss of
one layer from each of 21 blocks was far harder to repair than that of both from 11. A block without
layers gives 2 x. All behind it can be rescaled to compute the same from x, as norms follow each
convolution and ReLU is homogeneous, so nn.Identity takes its place; while factors are trained, a
block's output is divided by 1 + (1 - s)^2, which is 1 at first and 2 at the end.

Training is short on a processor, some thousand steps of 64 images, which is what one core does in half an
hour; an accelerator does ten thousand of 512 in five minutes. A factor pulls by what a small change of it loses, not by what the block's absence loses. So most
of them stay near 1 until the strength is such that they fall together within some steps, and beyond the
first two blocks the order is near to a draw: of those that fall in one step the first of the network go.
Those of the record fell on a processor, before an accelerator trained what stayed.

The trained network has seen all 50,000 training images. So the first 1,000 test images decide, and the
other 9,000 report. They decide one thing: the row of `figures` is the one that removes most layers
among those within 0.5 points of the whole network on the deciding images, and if there is none, the
one nearest 40 % of the convertible layers. Steps and rates were set by the looks of parts of earlier
runs, one of which had printed the test accuracy of its first row; more steps for the others came after.

    TERSENET_DATA=… TERSENET_CACHE=… PYTHONPATH=benches python benches/paper/resconv_cifar10.py
    writes benches/record/resconv_cifar10.{json,svg}

Finished stages stay in TERSENET_CACHE and are not run again. For a trial, `--depth` and `--part` (of
all training steps) make it small, and `--images` of the test images report; then nothing is written.
`--device` names what trains, `--scale` the type of device for which the training is meant: with a cache
that an accelerator filled, `--scale cuda` measures and records on a processor.

Source: Xu et al. 2020, "Layer pruning via fusible residual convolutional block for deep neural
networks" (arXiv 2011.14356).
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import Any

import cifar10
import timing
import torch
import torch.nn.functional as F
import trained
from cache import Cache
from devices import CPU, mixed
from networks import CifarBlock
from stepwise import Advance, Shown, said, train
from teaching import Taught
from torch import Tensor, nn

import tersenet
from tersenet.console import progress
from tersenet.layer_pruning import LayerL1, ResConv2d, convert, fuse, scales
from tersenet.training import TensorBatches, accuracy, evaluate, fit

Images = tuple[Tensor, Tensor]

FRACTIONS = (0.2, 0.42, 0.6)  # of the convertible layers
CHOOSING_BATCH = 64
FACTORS_LR = 0.006
STRENGTH, GROWTH = 1.2, 1.003  # of the L1 at first, and its growth a step
VALIDATION = 1_000
SHAPES = {"batch 1": 1, "batch 32": 32}
WITHIN = 0.5  # points
GOAL = 0.4
SEED = 0


@dataclass(frozen=True)
class Scale:
    """How long a network is trained on, after each fraction of its layers."""

    steps: tuple[int, ...]
    batch: int
    lr: float
    weight_decay: float


SCALES = {  # by the type of device: an accelerator sees eighty times the images in the same time
    "cpu": Scale((1_000, 2_000, 200), 64, 0.02, 1e-4),
    "cuda": Scale((1_000, 8_000, 2_000), 512, 0.1, 5e-4),
}


@dataclass(frozen=True)
class Settings:
    """What a run does; a record is written for these values alone."""

    depth: int = 56
    part: float = 1.0
    images: int = 9_000


@dataclass(frozen=True)
class Row:
    """One network of the record; accuracies are fractions, times are milliseconds."""

    removed: int
    removed_fraction: float
    convolutions: int
    layers_removed: list[str]
    blocks_removed: int
    validation: float
    test: float
    weights: int
    multiply_adds: int
    seconds: dict[str, float]
    times: dict[str, dict[str, float]]


class Run:
    """The data, the settings and the finished stages of one run."""

    def __init__(self, settings: Settings, scale: Scale, cache: Cache, advance: Advance) -> None:
        """Make the teacher; images are read once they are needed."""
        self.settings, self.scale, self.cache, self.advance = settings, scale, cache, advance
        self.device = cache.device
        self.teacher = plain(trained.resnet(settings.depth)).to(self.device)

    @cached_property
    def train(self) -> Images:
        """The images to train on."""
        return self._loaded("train", 50_000 if self.settings.part == 1 else 2_000)

    @cached_property
    def test(self) -> Images:
        """The images that decide, and then those that report."""
        return self._loaded("test", VALIDATION + self.settings.images)

    def _loaded(self, part: str, count: int) -> Images:
        images, classes = cifar10.load(part, count)
        return images.to(self.device), classes.to(self.device)

    def chosen(self) -> list[dict[str, Any]]:
        """Return the layers that go, each with the least count at which it does."""
        net = trained.resnet(self.settings.depth)
        return self.cache.rows("chosen", partial(self._choose, net, self.counts()))

    def counts(self) -> list[int]:
        """Return how many layers go, for each row: those of whole blocks."""
        return [2 * round(fraction * self.total() / 2) for fraction in FRACTIONS]

    def total(self) -> int:
        """Return the number of convertible layers."""
        return sum(row.reason is None for row in convert(trained.resnet(self.settings.depth)))

    def rows(self) -> list[Row]:
        """Return a row for the whole network and for each count of layers."""
        net = trained.resnet(self.settings.depth).to(self.device)
        gone: list[str] = []
        models = [plain(net)]
        facts = [self._facts("whole", models[0], gone, {})]
        chosen = self.chosen()
        for count, steps in zip(self.counts(), self.scale.steps, strict=True):
            name = f"{count}"
            layers = [row["layer"] for row in chosen if row["count"] == count]
            if not layers:
                continue  # so many have gone with the count before
            cut(net, layers)
            gone = gone + layers
            steps = max(round(steps * self.settings.part), 4)
            work = partial(self._train, net, name, steps)
            wall, cpu = self.cache.stage(f"{name}-trained", net, work)
            seconds = {"training_cpu": cpu, "training_wall": wall}
            models.append(plain(net))
            facts.append(self._facts(name, models[-1], gone, seconds))
        times = latencies([model.to(CPU) for model in models])
        return [Row(**fact, times=time) for fact, time in zip(facts, times, strict=True)]

    def _facts(
        self, name: str, model: nn.Module, gone: list[str], seconds: dict[str, float]
    ) -> dict[str, Any]:
        def both() -> list[dict[str, Any]]:
            found = {}
            for part, cut in (("validation", slice(VALIDATION)), ("test", slice(VALIDATION, None))):
                batches = TensorBatches(*(t[cut] for t in self.test), batch_size=250, shuffle=False)
                found[part] = evaluate(model, batches, accuracy)
            return [found]

        (found,) = self.cache.rows(f"{name}-measured", both)
        print(f"{name}: validation {found['validation']:.4f}, test {found['test']:.4f}", flush=True)
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        return {
            "removed": len(gone),
            "removed_fraction": len(gone) / self.total(),
            "convolutions": len(convolutions),
            "layers_removed": list(gone),
            "blocks_removed": sum(a[:-1] == b[:-1] for a, b in pairwise(sorted(gone))),
            **{part: found[part] for part in ("validation", "test")},
            "weights": sum(p.numel() for p in model.parameters() if p.dim() > 1),
            "multiply_adds": tersenet.report(
                copy.deepcopy(model).to(CPU), torch.zeros(1, 3, 32, 32)
            ).multiply_adds,
            "seconds": seconds,
        }

    def _batches(self, size: int, seed: int) -> cifar10.Shifted:
        images, classes = self.train
        return cifar10.Shifted(images, classes, batch_size=size, seed=SEED + seed)

    def _choose(self, net: nn.Module, counts: list[int]) -> list[dict[str, Any]]:
        """Return the layers whose factor became 0, and with which count each of them goes."""
        model = copy.deepcopy(net)
        convert(model)
        model.to(self.device, memory_format=torch.channels_last).requires_grad_(False)
        for block in model.modules():
            if isinstance(block, CifarBlock):
                if isinstance(block.conv1, ResConv2d):
                    block.conv2.scale = block.conv1.scale
                block.register_forward_hook(_halved)
        factors = scales(model)
        own = list(dict.fromkeys(factors.values()))
        for factor in own:
            factor.requires_grad_(True)
        sgd = torch.optim.SGD(own, FACTORS_LR)
        taught = Taught(model, self.teacher)
        rows: dict[str, dict[str, Any]] = {}
        batches = chain.from_iterable(repeat(self._batches(CHOOSING_BATCH, 0)))
        for step, batch in enumerate(batches):
            strength = STRENGTH * GROWTH**step
            callbacks = [LayerL1(model, strength), taught]
            loss = F.cross_entropy
            with mixed(self.device):
                fit(model, [batch], epochs=1, optimizer=sgd, loss=loss, callbacks=callbacks)
            for name, factor in factors.items():
                if factor.item() == 0 and name not in rows and len(rows) < counts[-1]:
                    factor.requires_grad_(False)
                    count = next(count for count in counts if len(rows) < count)
                    rows[name] = {"layer": name, "count": count, "step": step, "strength": strength}
            self.advance(f"chosen by step {step}", len(rows), counts[-1])
            if len(rows) >= counts[-1]:
                break
        taught.close()
        return list(rows.values())

    def _train(self, net: nn.Module, name: str, steps: int) -> None:
        net.to(memory_format=torch.channels_last)
        taught = Taught(net, self.teacher)
        with mixed(self.device):
            train(
                net,
                self._batches(self.scale.batch, int(name)),
                steps=steps,
                optimizer=torch.optim.SGD(
                    net.parameters(),
                    self.scale.lr,
                    momentum=0.9,
                    nesterov=True,
                    weight_decay=self.scale.weight_decay,
                    fused=True,
                ),
                lr=self.scale.lr,
                loss=F.cross_entropy,
                seed=SEED,
                callbacks=[taught, Shown(self.advance, f"{name} layers gone", steps)],
            )
        taught.close()


def cut(net: nn.Module, layers: list[str]) -> None:
    """Take convolutions out with their norms, and blocks that have none left, in place."""
    for name in layers:
        owner, _, conv = name.rpartition(".")
        block = net.get_submodule(owner)
        for part in (conv, conv.replace("conv", "bn")):
            setattr(block, part, nn.Identity())
        if isinstance(block.conv1, nn.Identity) and isinstance(block.conv2, nn.Identity):
            stage, _, place = owner.rpartition(".")
            setattr(net.get_submodule(stage), place, nn.Identity())


def plain(net: nn.Module) -> nn.Module:
    """Return a copy for inference, with the norms of the convertible layers folded."""
    model = copy.deepcopy(net).eval()
    convert(model)
    fuse(model)
    return model.to(memory_format=torch.channels_last)


def _halved(block: nn.Module, _: object, output: Tensor) -> Tensor:
    """Divide what a block gives by what it does to x where both of its factors are 0."""
    lost: Tensor | float = 1.0
    for layer in (block.conv1, block.conv2):
        if isinstance(layer, nn.Conv2d):
            return output
        lost = lost * (1 - layer.scale if isinstance(layer, ResConv2d) else 1.0)
    return output / (1 + lost)


def latencies(models: list[nn.Module]) -> list[dict[str, dict[str, float]]]:
    """Return the milliseconds of each model in torch and by `Network`, of one thread, in turn."""
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
    split: list[dict[str, dict[str, float]]] = [{} for _ in models]
    for name, measured in times.items():
        number, _, what = name.partition(" ")
        split[int(number)][what] = measured
    return split


def ratio(row: Row, whole: Row, what: str) -> float:
    """Return a row's median latency over that of the whole network."""
    return row.times[what]["median_ms"] / whole.times[what]["median_ms"]


def figures(rows: list[Row]) -> dict[str, float]:
    """Return the figures of the row that the deciding images choose; accuracies of the others."""
    whole, *pruned = rows
    fitting = [r for r in pruned if 100 * (whole.validation - r.validation) <= WITHIN]
    claimed = (
        max(fitting, key=lambda r: r.removed)
        if fitting
        else min(pruned, key=lambda r: abs(r.removed_fraction - GOAL))
    )
    return {
        "layers_removed_fraction": claimed.removed_fraction,
        "accuracy_drop_points": 100 * (whole.test - claimed.test),
        "latency_fraction": ratio(claimed, whole, "Network, batch 1"),
        "latency_fraction_batch_32": ratio(claimed, whole, "Network, batch 32"),
        "multiply_adds_fraction": claimed.multiply_adds / whole.multiply_adds,
    }


def plot(rows: list[Row], path: Path) -> None:
    """Draw test accuracy and latency by the convertible layers that are removed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": path.stem, "svg.fonttype": "none", "font.size": 8}
    from matplotlib import pyplot

    figure, (accuracies, times) = pyplot.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    removed = [100 * row.removed_fraction for row in rows]
    accuracies.plot(removed, [100 * row.test for row in rows], "o-")
    wanted = 100 * rows[0].test - WITHIN
    accuracies.axhline(wanted, color="gray", linestyle=":", label=f"{WITHIN:g} points under")
    accuracies.legend()
    accuracies.set(xlabel="convertible layers removed, %", ylabel="test accuracy, %")
    for what, marker in zip(rows[0].times, "x+os", strict=True):
        shares = [100 * ratio(row, rows[0], what) for row in rows]
        times.plot(removed, shares, f"{marker}-", fillstyle="none", label=what)
    work = [100 * row.multiply_adds / rows[0].multiply_adds for row in rows]
    times.plot(removed, work, color="gray", linestyle=":", label="multiply-adds")
    times.set(xlabel="convertible layers removed, %", ylabel="of the whole network's latency, %")
    times.legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Train, measure and print everything; write the record of a full run."""
    usual = Settings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in asdict(usual).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--device", type=torch.device, default=CPU, help="that trains (cpu)")
    parser.add_argument("--scale", choices=SCALES, help="of which device (that which trains)")
    arguments = vars(parser.parse_args())
    device, scale = arguments.pop("device"), arguments.pop("scale")
    scale = scale or device.type
    settings = Settings(**arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    root = Path(os.environ.get("TERSENET_CACHE") or ".cache", "resconv_cifar10")
    cache = Cache(root / "-".join(map(str, asdict(settings).values())), device)
    with progress() as bars:
        run = Run(settings, SCALES[scale], cache, said(bars))
        rows = run.rows()
    found = figures(rows)
    for row in rows:
        shown = "  ".join(f"{name} {t['median_ms']:.2f} ms" for name, t in row.times.items())
        print(
            f"{row.removed} removed, {row.blocks_removed} blocks, validation {row.validation:.4f}, "
            f"test {row.test:.4f}, {row.multiply_adds:,} multiply-adds; {shown}"
        )
    print(found)
    if settings != usual:
        return
    fixed = ("CHOOSING_BATCH", "FACTORS_LR", "STRENGTH", "GROWTH", "SEED")
    constants = {name.lower(): globals()[name] for name in fixed} | asdict(run.scale)
    timing.write(
        "resconv_cifar10",
        timing.environment()
        | {
            "settings": asdict(settings) | constants | {"scale": scale},
            "data": "the trained network has seen all training images; the first 1,000 test images "
            "decide which row the figures are of, the next 9,000 are reported",
            "figures": found,
            "rows": [asdict(row) for row in rows],
            "chosen": run.chosen(),
        },
    )
    plot(rows, timing.HERE / "record" / "resconv_cifar10.svg")


if __name__ == "__main__":
    main()
