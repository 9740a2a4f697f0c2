"""Features of two tasks without labels, pruned, on other labels and data; masks of one for the other.

::

    for each seed and task, rotations and instances (NPID), a network of 165,512 weights, 10,000 images:
        dense   trained; leaves its weights, and the memory of the instances, of an early epoch
        mask    prune_iteratively, a fifth a round, rewinding, to a tenth of the weights
        masked  from the early epoch on by its task, under
                    its own mask
                    the other task's
                    random ones with the layer densities of either
    for each of these, and for fresh weights:
        probe   a linear layer on its features, for the labels of CIFAR-10, and of 1,000 digits of MNIST
        tuned   trained on with these labels, from the probe, under the mask

Digits are three equal channels of 32 × 32. Where a network has not seen such images, its norms get their
statistics first. The rate at which digits tune is that of 0.1, 0.03, 0.01 and 0.003 that was best for
validation digits with one network. Images of CIFAR-10 that are no others' and digits that are
neither trained nor tested with choose the price `l2` of each probe; the test images are only reported.

    TERSENET_DATA=… TERSENET_CACHE=… PYTHONPATH=benches python benches/paper/selfsup_transfer.py
    writes benches/record/selfsup_transfer.{json,svg,terse}

What is finished stays in TERSENET_CACHE and is not run again. With `--seeds` only these are run, and
nothing is written: processes can share the work. For a trial, `--images` and the options for epochs
make it small; then nothing is written either.

Source: Caron, Morcos, Bojanowski, Mairal and Joulin 2020, "Pruning convolutional neural networks with
self-supervision" (arXiv 2001.03554); of each task, see its module.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mnist
import numpy as np
import timing
import torch
import torch.nn.functional as F
import trained
from selfsup_pruning import SEEDS, T_95, summary
from selfsup_stages import (
    BATCH,
    VALIDATION,
    Augmented,
    Bench,
    Images,
    Net,
    Result,
    Settings,
    fit_cycle,
    network,
    probe,
)
from torch import Tensor, nn

import tersenet
from tersenet.console import progress, show, table
from tersenet.parametrization import unparametrize
from tersenet.pruning import copy_masks, random_masks, rewind
from tersenet.pruning.stages import Progress
from tersenet.self_supervision import with_head
from tersenet.training import TensorBatches, accuracy, evaluate, recalibrate

TASKS = ("rotations", "instances")
OTHER = {"rotations": "instances", "instances": "rotations"}
MASKS = ("none", "own", "other", "random as own", "random as other")
DATA = ("CIFAR-10", "MNIST")
PARTS = ("probe", "tuned")
UNTRAINED = "untrained"
LR = {"CIFAR-10": 0.1, "MNIST": 0.01}  # of tuning
DENSITY, ROUNDS = 0.1, 10  # 20.6 % a round
EXPORTED = ("rotations", "own", "CIFAR-10", 0)
NAME = "selfsup_transfer"


@dataclass(frozen=True)
class TransferSettings(Settings):
    """What a run does, in images and epochs; a record is written for these values alone.

    `first` are the epochs of each round; `ticket` those of CIFAR-10 that features are tuned for,
    `digits` those of MNIST. Those of no use here are left as they are.
    """

    instances: int = 10
    digit_images: int = 1_000
    digits: int = 20


def used(settings: TransferSettings) -> dict[str, int]:
    """Return the settings by name, without those of `selfsup_pruning` alone."""
    return {k: v for k, v in asdict(settings).items() if k not in ("labels", "round")}


class Transfers(Bench):
    """The networks of both tasks under each mask, and what their features are worth."""

    def __init__(self, settings: TransferSettings, folder: Path, advance: Progress) -> None:
        """Read the images."""
        super().__init__(settings, folder, advance, {DENSITY: ROUNDS})
        found = mnist.load()
        counts = (settings.digit_images, VALIDATION, settings.test)
        parts = (found.train, found.validation, found.test)
        self.labelled: dict[str, tuple[Images, Images, Images]] = {
            "CIFAR-10": (self.train, self.validation, self.test),
            "MNIST": tuple(_as_cifar(*part, n) for part, n in zip(parts, counts, strict=True)),
        }

    def masks_of(self, task: str, mask: str, seed: int) -> dict[str, Tensor]:
        """Return the masks of a row by layer; there are none for all weights."""
        if mask == "none":
            return {}
        which = OTHER[task] if mask.endswith("other") else task
        found = self.masks(which, seed)[DENSITY]
        return random_masks(found, seed=seed) if mask.startswith("random") else found

    def masked(self, task: str, mask: str, seed: int) -> Result:
        """Return the state of a network trained by a task under a mask, and its last loss."""
        dense, found = self.dense(task, seed), self.masks_of(task, mask, seed)
        if not found:
            return dense

        def work() -> Result:
            net = network(task, seed)
            rewind(net, dense["early"])
            copy_masks(found, net)
            epochs = getattr(self.settings, task) - self.settings.early
            criterion = self.criterion(task, seed, dense["criterion"])
            losses = self.fit(net, task, epochs, seed + 100, criterion=criterion)
            return {"state": net.state_dict(), "loss": losses[-1]}

        return self.finished(f"{seed}-{task}-{_file(mask)}", work)

    def net(self, task: str, mask: str, seed: int) -> Net:
        """Return a network as its task left it, masks included."""
        if task == UNTRAINED:
            return network("rotations", seed)
        net, found = network(task, seed), self.masks_of(task, mask, seed)
        if found:
            copy_masks(found, net)
        net.load_state_dict(self.masked(task, mask, seed)["state"])
        return net

    def worth(self, task: str, mask: str, data: str, seed: int) -> Result:
        """Return what features are worth: a probe and its accuracies, and those of tuning it."""
        net = self.net(task, mask, seed)
        train, validation, test = self.labelled[data]
        is_cifar = data == "CIFAR-10"

        def work() -> Result:
            if not is_cifar or task == UNTRAINED:
                recalibrate(net, train[0].split(BATCH))
            head, found = probe(net, train, validation, test)
            tuned = with_head(net, "head", head)
            border = "constant" if is_cifar else "replicate"  # digits stand on black
            batches = Augmented(*train, seed, is_mirrored=is_cifar, border=border)
            epochs = self.settings.ticket if is_cifar else self.settings.digits
            fit_cycle(tuned, batches, epochs, seed, nn.CrossEntropyLoss(), LR[data])
            shown = TensorBatches(*test, batch_size=500, shuffle=False)
            return found | {"tuned": evaluate(tuned, shown, accuracy), "head": head.state_dict()}

        return self.finished(f"{seed}-{task}-{_file(mask)}-{data}", work)

    def exported(self, path: Path) -> dict[str, Any]:
        """Write a pruned network with its probe; return its bytes, and its accuracy from there."""
        task, mask, data, seed = EXPORTED
        found, (_, _, test) = self.worth(*EXPORTED), self.labelled[data]
        net = self.net(task, mask, seed)
        head = nn.Linear(net.head.in_features, 10)
        head.load_state_dict(found["head"])
        net = with_head(net, "head", head).eval().to(memory_format=torch.contiguous_format)
        unparametrize(net)
        images = test[0].contiguous()
        nbytes = tersenet.export(net, images[:2], path, goal="size")
        loaded = tersenet.Network.load(path)
        outputs = np.concatenate([loaded.run(part.numpy()) for part in images.split(500)])
        with torch.no_grad():
            apart = np.abs(outputs - net(images).numpy()).max()
        weights = [p for p in net.parameters() if p.dim() > 1]
        return {
            "of": f"{task}, {mask}, {data}, probe, seed {seed}",
            "weights": sum(w.numel() for w in weights),
            "kept": sum(int(w.count_nonzero()) for w in weights),
            "file_nbytes": nbytes,
            "accuracy_of_network": float((outputs.argmax(1) == test[1].numpy()).mean()),
            "accuracy_of_torch": found["probe"],
            "largest_difference_of_outputs": float(apart),
        }


def points(bench: Transfers) -> dict[str, Any]:
    """Return the table, and the differences between rows, in points of test accuracy."""

    def accuracies(task: str, mask: str) -> dict[str, dict[str, dict[str, Any]]]:
        return {
            data: {
                part: summary([100 * bench.worth(task, mask, data, s)[part] for s in SEEDS])
                for part in PARTS
            }
            for data in DATA
        }

    rows = {(task, mask): accuracies(task, mask) for task in TASKS for mask in MASKS}

    def difference(task: str, first: str, second: str, data: str, part: str) -> dict[str, Any]:
        values = [rows[task, mask][data][part]["seeds"] for mask in (first, second)]
        found = summary(np.subtract(*values).tolist())
        return found | {"is_clear": abs(found["mean"]) > T_95 * found["standard_error"]}

    return {
        UNTRAINED: accuracies(UNTRAINED, "none"),
        "table": [
            {
                "task": task,
                "mask": mask,
                "loss": summary([bench.masked(task, mask, seed)["loss"] for seed in SEEDS]),
                "transfer": transfer,
            }
            for (task, mask), transfer in rows.items()
        ],
        "differences": {
            f"{task}, {first} minus {second}, {data}, {part}": difference(
                task, first, second, data, part
            )
            for task in TASKS
            for first, second in (
                ("own", "none"),
                ("own", "random as own"),
                ("other", "own"),
                ("other", "random as other"),
            )
            for data in DATA
            for part in PARTS
        },
    }


def densities(bench: Transfers) -> dict[str, dict[str, list[float]]]:
    """Return which part of each layer each task's masks keep, for each seed."""
    found = {task: [bench.masks(task, seed)[DENSITY] for seed in SEEDS] for task in TASKS}
    return {
        task: {name: [float(m[name].float().mean()) for m in masks] for name in masks[0]}
        for task, masks in found.items()
    }


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw test accuracies of both data, of probes and tuned, for each mask, with standard errors."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 2, figsize=(9, 6.5), sharex=True, layout="constrained")
    for line, part in zip(grid, PARTS, strict=True):
        for axes, data in zip(line, DATA, strict=True):
            base = found[UNTRAINED][data][part]["mean"]
            axes.axhline(base, color="gray", linestyle=":", label="fresh weights")
            for task, style, shift in zip(TASKS, ("o", "s"), (-0.08, 0.08), strict=True):
                rows = [
                    row["transfer"][data][part] for row in found["table"] if row["task"] == task
                ]
                axes.errorbar(
                    np.arange(len(MASKS)) + shift,
                    [row["mean"] for row in rows],
                    [row["standard_error"] for row in rows],
                    fmt=style,
                    capsize=3,
                    label=task,
                )
            names = [mask.replace("random as", "random,\nas") for mask in MASKS]
            axes.set_xticks(range(len(MASKS)), ["all\nweights", *names[1:]])
            how = "linear probe" if part == "probe" else "fine-tuned"
            axes.set(title=f"{data}, {how}", ylabel="test accuracy, %")
    for axes in grid[1]:
        axes.set_xlabel("mask that keeps 10 %")
    grid[0, 0].legend()
    figure.savefig(path, metadata={"Date": None})


def printed(found: dict[str, Any]) -> None:
    """Print the table, and the differences that three seeds tell."""

    def text(values: dict[str, Any]) -> str:
        return f"{values['mean']:.2f} ± {values['standard_error']:.2f}"

    shown = table("task, mask", "loss", *(f"{data}, {part}" for data in DATA for part in PARTS))

    def add(name: str, loss: str, transfer: dict[str, Any]) -> None:
        shown.add_row(name, loss, *(text(transfer[d][p]) for d in DATA for p in PARTS))

    add(UNTRAINED, "", found[UNTRAINED])
    for row in found["table"]:
        add(f"{row['task']}, {row['mask']}", f"{row['loss']['mean']:.3f}", row["transfer"])
    show(shown)
    for name, values in found["differences"].items():
        print(f"{name}: {text(values)}{' (clear)' if values['is_clear'] else ''}")


def main() -> None:
    """Run the seeds that are named, or all of them and write the record."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    usual = TransferSettings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    for name, value in used(usual).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    options = vars(parser.parse_args())
    seeds = options.pop("seeds")
    settings = TransferSettings(**options)
    cache = Path(os.environ.get("TERSENET_CACHE") or ".cache", NAME)
    with progress() as bars:

        def advance(what: str, done: int, total: int) -> None:
            bars(what, done, total)
            if not sys.stderr.isatty():
                print(f"{time.strftime('%X')} {what}: {done} of {total}", file=sys.stderr)

        bench = Transfers(settings, cache / "-".join(map(str, used(settings).values())), advance)
        for seed in seeds:
            for data in DATA:
                bench.worth(UNTRAINED, "none", data, seed)
                for task in TASKS:
                    for mask in MASKS:
                        bench.worth(task, mask, data, seed)
        print(f"{sum(bench.cpu_seconds.values()):.0f} s of the processor")
        if seeds != list(SEEDS):
            return
        found = points(bench)
    printed(found)
    is_usual = settings == usual
    folder = timing.HERE / "record" if is_usual else bench.folder
    exported = bench.exported(folder / f"{NAME}.terse")
    print(exported)
    if not is_usual:
        return
    record = timing.environment() | {
        "settings": used(settings),
        "seeds": SEEDS,
        "density": DENSITY,
        "rounds": ROUNDS,
        "cpu_seconds": sum(bench.cpu_seconds.values()),
        "exported": exported,
        "densities": densities(bench),
    }
    timing.write(NAME, record | found)
    plot(found, timing.HERE / "record" / f"{NAME}.svg")


def _as_cifar(images: Tensor, classes: Tensor, count: int) -> Images:
    """Return the first digits as images of CIFAR-10 are: three channels, 32 × 32, normalized."""
    wide = F.pad(255 * images[:count], (2, 2, 2, 2)).expand(-1, 3, -1, -1)
    found = trained.normalized(wide).contiguous(memory_format=torch.channels_last)
    return found, classes[:count]


def _file(mask: str) -> str:
    return mask.replace(" ", "-")


if __name__ == "__main__":
    main()
