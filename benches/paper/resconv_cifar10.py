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

The teacher's terms are the divergence from its classes at temperature 4, and the squared distance
from its output of each stage, over the mean square of that. Training is short, some hundred steps:
what a CPU does in half an hour.

The trained network has seen all 50,000 training images. So the first 1,000 test images decide, and the
other 9,000 report. They decide one thing: the row of `figures` is the one that removes most layers
among those within 0.5 points of the whole network on the deciding images, and if there is none, the
one nearest 40 % of the convertible layers. Counts, steps and rates are fixed beforehand.

    TERSENET_DATA=… TERSENET_CACHE=… PYTHONPATH=benches python benches/paper/resconv_cifar10.py
    writes benches/record/resconv_cifar10.{json,svg}

Finished stages stay in TERSENET_CACHE and are not run again. For a trial, `--depth` and `--part` (of
all training steps) make it small, and `--images` of the test images report; then nothing is written.

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
from functools import partial
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import Any

import cifar10
import timing
import torch
import torch.nn.functional as F
import trained
from cache import Cache
from networks import CifarBlock
from stepwise import Advance, Shown, said, train
from torch import Tensor, nn

import tersenet
from tersenet.console import progress
from tersenet.layer_pruning import LayerL1, ResConv2d, convert, fuse, scales
from tersenet.training import Callback, State, TensorBatches, accuracy, evaluate, fit

Images = tuple[Tensor, Tensor]

FRACTIONS = (0.2, 0.42, 0.6)  # of the convertible layers
STEPS = (40, 600, 150)  # of training on, after each
BATCH, CHOOSING_BATCH = 64, 32
LR = 0.01
FACTORS_LR = 0.03
STRENGTH, GROWTH = 0.3, 1.015  # of the L1 at first, and its growth a step
TEMPERATURE = 4.0
VALIDATION = 1_000
SHAPES = {"batch 1": 1, "batch 32": 32}
WITHIN = 0.5  # points
GOAL = 0.4
SEED = 0


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


class Taught(Callback):
    """Adds a teacher's terms to the loss: its classes, and what its stages give."""

    def __init__(self, model: nn.Module, teacher: nn.Module) -> None:
        """Watch the stages of both."""
        self._teacher = teacher
        self._stages: list[dict[int, Tensor]] = [{}, {}]
        self._hooks = [
            getattr(network, f"layer{stage}").register_forward_hook(partial(self._note, at, stage))
            for at, network in enumerate((model, teacher))
            for stage in (1, 2, 3)
        ]

    def _note(self, at: int, stage: int, _: nn.Module, __: object, output: Tensor) -> None:
        self._stages[at][stage] = output

    def loss_computed(self, state: State) -> None:
        """Add the terms."""
        with torch.no_grad():
            wanted = F.softmax(self._teacher(state.inputs) / TEMPERATURE, 1)
        found = F.log_softmax(state.outputs / TEMPERATURE, 1)
        state.loss = state.loss + TEMPERATURE**2 * F.kl_div(found, wanted, reduction="batchmean")
        mine, its = self._stages
        for stage, output in its.items():
            state.loss = state.loss + F.mse_loss(mine[stage], output) / output.square().mean()

    def close(self) -> None:
        """Watch no longer."""
        for hook in self._hooks:
            hook.remove()


class Run:
    """The data, the settings and the finished stages of one run."""

    def __init__(self, settings: Settings, cache: Cache, advance: Advance) -> None:
        """Read the images."""
        self.settings, self.cache, self.advance = settings, cache, advance
        self.train = cifar10.load("train", 50_000 if settings.part == 1 else 2_000)
        images, classes = cifar10.load("test", VALIDATION + settings.images)
        self.validation = images[:VALIDATION], classes[:VALIDATION]
        self.test = images[VALIDATION:], classes[VALIDATION:]
        self.teacher = plain(trained.resnet(settings.depth))

    def rows(self) -> list[Row]:
        """Return a row for the whole network and for each count of layers."""
        net = trained.resnet(self.settings.depth)
        total = sum(row.reason is None for row in convert(copy.deepcopy(net)))
        gone: list[str] = []
        models = [plain(net)]
        facts = [self._facts("whole", models[0], gone, total, {})]
        counts = [round(fraction * total) for fraction in FRACTIONS]
        chosen = self.cache.rows("chosen", partial(self._choose, net, counts))
        for count, steps in zip(counts, STEPS, strict=True):
            name = f"{count}"
            layers = [row["layer"] for row in chosen if row["count"] == count]
            cut(net, layers)
            gone = gone + layers
            steps = max(round(steps * self.settings.part), 4)
            work = partial(self._train, net, name, steps)
            wall, cpu = self.cache.stage(f"{name}-trained", net, work)
            seconds = {"training_cpu": cpu, "training_wall": wall}
            models.append(plain(net))
            facts.append(self._facts(name, models[-1], gone, total, seconds))
        times = latencies(models)
        return [Row(**fact, times=time) for fact, time in zip(facts, times, strict=True)]

    def _facts(
        self, name: str, model: nn.Module, gone: list[str], total: int, seconds: dict[str, float]
    ) -> dict[str, Any]:
        def measured(images: Images) -> float:
            return evaluate(model, TensorBatches(*images, batch_size=250, shuffle=False), accuracy)

        def both() -> list[dict[str, Any]]:
            return [{"validation": measured(self.validation), "test": measured(self.test)}]

        (found,) = self.cache.rows(f"{name}-measured", both)
        print(f"{name}: validation {found['validation']:.4f}, test {found['test']:.4f}", flush=True)
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        return {
            "removed": len(gone),
            "removed_fraction": len(gone) / total,
            "convolutions": len(convolutions),
            "layers_removed": list(gone),
            "blocks_removed": sum(a[:-1] == b[:-1] for a, b in pairwise(sorted(gone))),
            "validation": found["validation"],
            "test": found["test"],
            "weights": sum(p.numel() for p in model.parameters() if p.dim() > 1),
            "multiply_adds": tersenet.report(model, torch.zeros(1, 3, 32, 32)).multiply_adds,
            "seconds": seconds,
        }

    def _batches(self, size: int, seed: int) -> cifar10.Shifted:
        images, classes = self.train
        return cifar10.Shifted(images, classes, batch_size=size, seed=SEED + seed)

    def _choose(self, net: nn.Module, counts: list[int]) -> list[dict[str, Any]]:
        """Return the layers whose factor became 0, and with which count each of them goes."""
        model = copy.deepcopy(net)
        convert(model)
        model.to(memory_format=torch.channels_last).requires_grad_(False)
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
            fit(model, [batch], epochs=1, optimizer=sgd, loss=loss, callbacks=callbacks)
            count = next(count for count in counts if len(rows) < count)
            for name, factor in factors.items():
                if factor.item() == 0 and name not in rows:
                    factor.requires_grad_(False)
                    rows[name] = {"layer": name, "count": count, "step": step, "strength": strength}
            self.advance(f"chosen by step {step}", len(rows), counts[-1])
            if len(rows) >= counts[-1]:
                break
        taught.close()
        return list(rows.values())

    def _train(self, net: nn.Module, name: str, steps: int) -> None:
        net.to(memory_format=torch.channels_last)
        taught = Taught(net, self.teacher)
        train(
            net,
            self._batches(BATCH, int(name)),
            steps=steps,
            optimizer=torch.optim.SGD(
                net.parameters(), LR, momentum=0.9, nesterov=True, weight_decay=1e-4
            ),
            lr=LR,
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
    accuracies.axhline(100 * rows[0].test - WITHIN, color="gray", linestyle=":")
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
    settings = Settings(**vars(parser.parse_args()))
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    root = Path(os.environ.get("TERSENET_CACHE") or ".cache", "resconv_cifar10")
    cache = Cache(root / "-".join(map(str, asdict(settings).values())))
    with progress() as bars:
        rows = Run(settings, cache, said(bars)).rows()
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
    constants = {
        "steps": STEPS,
        "batch": BATCH,
        "lr": LR,
        "factors_lr": FACTORS_LR,
        "strength": STRENGTH,
        "growth_a_step": GROWTH,
        "temperature": TEMPERATURE,
        "seed": SEED,
    }
    timing.write(
        "resconv_cifar10",
        timing.environment()
        | {
            "settings": asdict(settings) | constants,
            "data": "the trained network has seen all training images; the first 1,000 test images "
            "decide which row the figures are of, the next 9,000 are reported",
            "figures": found,
            "rows": [asdict(row) for row in rows],
        },
    )
    plot(rows, timing.HERE / "record" / "resconv_cifar10.svg")


if __name__ == "__main__":
    main()
