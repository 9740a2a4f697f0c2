"""PQK beside pruning with quantization-aware training of equal length, on MNIST and CIFAR-10.

::

    start: a ResNet-20, of MNIST trained here, of CIFAR-10 the trained one
    for each setting (sparsity of all layers together, bits), seed and method, from the start anew:
        half of the steps: soft masks by magnitude, what is pruned fades, learned steps   # both the same
        the other half: hard masks; "pqk" with the teacher that has all weights, "qat" alone
        export; accuracy of the file by Network, on validation and test images
    beside: keyword spotting, pruned and shared without training, batch norms calibrated

Both methods see the same batches and make the same number of optimizer steps. Nothing is chosen for
a method. The setting of the figures is the hardest at which the validation images find PQK the
better one, the test images only report.

    TERSENET_DATA=… TERSENET_CACHE=… PYTHONPATH=benches python benches/paper/pqk.py [stage…]
    writes benches/record/pqk.{json,svg,terse}; the network is that of the figures' setting and the
    first seed, and takes images as `cifar10.load` gives them, [batch, 3, 32, 32]

Finished trainings stay in TERSENET_CACHE and are not run again. With names of stages (mnist, mnist_1000,
mnist_long, mnist_longer, mnist_seeds, cifar10, keywords; or mnist-0.9-2-1-pqk, one training by sparsity, bits, seed and
method) only these are run, and nothing is written: processes can share the work. For a trial, `--images`,
`--epochs` and `--seeds` make it small; then nothing is written either.

Source: Kim, Chang and Kwak 2021, "PQK: Model compression via pruning, quantization, and knowledge
distillation" (arXiv 2106.14681).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cifar10
import mnist
import numpy as np
import timing
import torch
import torch.nn.functional as F
import trained
from devices import CPU, name_of
from networks import CifarResNet
from torch import Tensor, nn

import tersenet
from tersenet.console import progress, show, table
from tersenet.parametrization import unparametrize
from tersenet.plan import Plan, Rule
from tersenet.pqk import PQK
from tersenet.pruning import SoftPruning
from tersenet.quantization import prepare_qat
from tersenet.replacing import Replacing
from tersenet.training import Batch, Callback, TensorBatches, accuracy, evaluate, fit, recalibrate

Images = tuple[Tensor, Tensor]
Advance = Callable[[str, int, int], None]

METHODS = ("qat", "pqk")
DENSE_EPOCHS = 2  # of all images of MNIST, for the network that trainings begin with
DENSE_BATCH = 128
DENSE_LR = 2e-3
CHOICES = 10  # of the masks, in the first half
FADE = 0.05  # of weights that are pruned in the first half, a step
STEP_RATE = 0.05  # of the learning rate of weights: the steps of the quantizers
SEED = 0
KEYWORDS = ((0.0, 32), (0.2, 32), (0.3, 32), (0.4, 32))  # sparsity and values a layer
PANELS = 3  # of the plot, side by side
CALIBRATION = 200  # keyword features without their labels; the others are tested


@dataclass(frozen=True)
class Task:
    """What is trained on one data set, and the settings from the easiest to the hardest."""

    settings: tuple[tuple[float, int], ...]
    images: int
    epochs: int
    batch_size: int
    lr: float
    validation: int
    test: int
    seeds: tuple[int, ...] = (0, 1, 2)


_SETTINGS = ((0.9, 4), (0.95, 4), (0.9, 2), (0.95, 2))
_CIFAR10 = Task(_SETTINGS, 5_000, 8, 64, 1e-3, 5_000, 10_000)
_MNIST = {
    "mnist": _CIFAR10,
    # As many steps with fewer images.
    "mnist_1000": replace(_CIFAR10, settings=((0.95, 4), (0.9, 2)), images=1_000, epochs=40),
    # Three times as many, and six.
    "mnist_long": replace(_CIFAR10, settings=((0.9, 2), (0.95, 2)), epochs=24),
    "mnist_longer": replace(_CIFAR10, settings=((0.95, 2),), epochs=48),
    # Other seeds, where those of the first three are wide apart.
    "mnist_seeds": replace(_CIFAR10, settings=((0.9, 4), (0.95, 4)), seeds=(3, 4, 5, 6)),
}
# From the easiest to the hardest, by the type of device: an accelerator has time for all images.
TASKS = {
    "cpu": _MNIST | {"cifar10": _CIFAR10},
    "cuda": _MNIST | {"cifar10": Task(_SETTINGS, 45_000, 10, 256, 1e-3, 5_000, 10_000)},
}


@dataclass(frozen=True)
class Row:
    """One training; accuracies are fractions."""

    task: str
    sparsity: float
    bits: int
    seed: int
    method: str
    validation: float
    test: float
    file_nbytes: int
    cpu_seconds: float
    device: str


class Data:
    """Images of one task, of three colours: for training, for choices, for reports."""

    def __init__(self, task: str, settings: Task, device: torch.device) -> None:
        """Read the images; those for validation are training images that none trains on."""
        self.task, self.settings = task, settings
        if task.startswith("mnist"):
            data = mnist.load()
            train, validation, test = map(_coloured, (data.train, data.validation, data.test))
        else:
            train = cifar10.load("train", settings.images + settings.validation)
            validation, test = _from(train, settings.images), cifar10.load("test", settings.test)
        self.train = _first(train, settings.images, device)
        self.validation = _first(validation, settings.validation, device)
        self.test = _first(test, settings.test, device)

    def batches(self, seed: int) -> Iterable[Batch]:
        """Return the batches of training, those of CIFAR-10 shifted and mirrored."""
        size = self.settings.batch_size
        if self.task.startswith("mnist"):
            return TensorBatches(*self.train, batch_size=size, seed=seed)
        return cifar10.Shifted(*self.train, batch_size=size, seed=seed)


class Bench:
    """The trainings of a run, those that are done in a folder."""

    def __init__(
        self, tasks: dict[str, Task], folder: Path, device: torch.device, advance: Advance
    ) -> None:
        """Make the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tasks, self.folder, self.device, self.advance = tasks, folder, device, advance
        self._data: dict[str, Data] = {}

    def row(self, task: str, sparsity: float, bits: int, seed: int, method: str) -> Row:
        """Return a training's row, from the folder where it is done."""
        path = self.folder / f"{task}-{sparsity:g}-{bits}-{seed}-{method}.json"
        if not path.exists():
            found = self._trained(task, sparsity, bits, seed, method, path.with_suffix(".terse"))
            with Replacing(path) as file:
                file.write(json.dumps(asdict(found)).encode())
        return Row(**json.loads(path.read_text()))

    def rows(self, task: str, seeds: Iterable[int]) -> list[Row]:
        """Return the rows of all settings of a task."""
        wanted = [
            (*setting, seed, method)
            for setting in self.tasks[task].settings
            for seed in seeds
            for method in METHODS
        ]
        found = []
        for number, which in enumerate(wanted):
            found.append(self.row(task, *which))
            self.advance(task, number + 1, len(wanted))
        return found

    def start(self, task: str) -> nn.Module:
        """Return the network that every training of a task begins with."""
        if task == "cifar10":
            return trained.resnet(20).to(self.device)
        torch.manual_seed(SEED)
        model = CifarResNet(20).to(self.device)
        path = self.folder / "mnist.pt"
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True, map_location=CPU))
        else:
            images, labels = (part.to(self.device) for part in _coloured(mnist.load().train))
            batches = TensorBatches(images, labels, batch_size=DENSE_BATCH, seed=SEED)
            adam = torch.optim.Adam(model.parameters(), DENSE_LR)
            _fit(model, batches, adam, DENSE_EPOCHS, [], SEED)
            with Replacing(path) as file:
                torch.save(model.state_dict(), file)
        return model.eval()

    def data(self, task: str) -> Data:
        """Return the images of a task."""
        if task not in self._data:
            self._data[task] = Data(task, self.tasks[task], self.device)
        return self._data[task]

    def _trained(
        self, task: str, sparsity: float, bits: int, seed: int, method: str, path: Path
    ) -> Row:
        settings, data, model = self.tasks[task], self.data(task), self.start(task)
        cpu = time.process_time()
        batches = data.batches(seed)
        steps = settings.epochs * -(-settings.images // settings.batch_size) // 2
        plan = Plan.of(
            sparsity=sparsity, quantizer="lsq", k=2**bits, pruning_scope="global", seed=seed
        )
        every = max(steps // CHOICES, 1)
        if method == "pqk":
            callback: PQK | SoftPruning = PQK(model, plan, steps=steps, every=every, fade=FADE)
        else:
            prepare_qat(model, plan)
            callback = SoftPruning(
                model, plan, steps=steps, every=every, criterion="magnitude", fade=FADE
            )
        adam = torch.optim.Adam(_groups(model, settings.lr))
        _fit(model, batches, adam, settings.epochs, [callback], seed)
        seconds = time.process_time() - cpu
        check(model, sparsity, bits)
        file_nbytes = export(model.to(CPU), data.test[0][:2].to(CPU), path)
        network = tersenet.Network.load(path)
        validation, test = (file_accuracy(network, part) for part in (data.validation, data.test))
        device = name_of(self.device)
        return Row(
            task, sparsity, bits, seed, method, validation, test, file_nbytes, seconds, device
        )


def check(model: nn.Module, sparsity: float, bits: int) -> None:
    """Raise RuntimeError unless sparsity and the number of values are exactly what was asked for."""
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    size = sum(weight.numel() for weight in weights)
    kept = sum(int(weight.count_nonzero()) for weight in weights)
    most = max(len(weight.unique()) for weight in weights)
    if kept != size - round(sparsity * size) or most > 2**bits:
        raise RuntimeError(
            f"{kept} of {size} weights and {most} values in a layer: no such student"
        )


def export(model: nn.Module, example: Tensor, path: Path) -> int:
    """Export what is left for inference; return the bytes of the file."""
    plain = copy.deepcopy(model).eval()
    unparametrize(plain)
    return tersenet.export(plain, example, path, goal="size")


def file_accuracy(network: tersenet.Network, images: Images) -> float:
    """Return the accuracy of an exported network, run from its compressed weights."""
    parts = _parts((images[0].to(CPU), images[1].to(CPU)))
    found = [network.run(x.numpy()).argmax(1) == y.numpy() for x, y in parts]
    return float(np.concatenate(found).mean())


def keywords(folder: Path) -> list[dict[str, Any]]:
    """Return accuracies of DS-CNN, pruned and shared without training, from compressed weights."""
    with np.load(trained.data() / "mlperf_tiny" / "kws01_features.npz") as stored:
        labels = torch.from_numpy(stored["labels"].astype(np.int64))
    features = trained.keywords(len(labels))
    held_out = _from((features, labels), CALIBRATION)
    path = folder / "keywords.terse"

    def measured(model: nn.Module) -> dict[str, Any]:
        nbytes = tersenet.export(model, features[:2], path, goal="size")
        found = file_accuracy(tersenet.Network.load(path), held_out)
        return {"file_nbytes": nbytes, "accuracy": found}

    dense = trained.ds_cnn()
    rows: list[dict[str, Any]] = [{"network": "ds_cnn", "is_calibrated": False} | measured(dense)]
    for sparsity, k in KEYWORDS:
        shared = Rule(sparsity=sparsity, quantizer="cws", k=k)
        spared = Rule(
            sparsity=0.0
        )  # depthwise and first: a fifth of the weights, the most sensitive
        plan = Plan({"*": shared, "*.conv": spared}, pruning_scope="global")
        small = tersenet.compress(dense, plan)
        calibrated = tersenet.compress(dense, plan)
        recalibrate(calibrated, [(features[:CALIBRATION], None)], reference=dense)
        for model in (small, calibrated):
            which = {"network": "ds_cnn", "sparsity": sparsity, "k": k}
            rows.append(which | {"is_calibrated": model is calibrated} | measured(model))
    return rows


def differences(rows: list[Row], task: str, setting: tuple[float, int], part: str) -> list[float]:
    """Return by how many points PQK is better than QAT, for each seed."""
    found = {(r.seed, r.method): getattr(r, part) for r in _of(rows, task, setting)}
    seeds = sorted({seed for seed, _ in found})
    return [100 * (found[seed, "pqk"] - found[seed, "qat"]) for seed in seeds]


def figures(rows: list[Row], tasks: dict[str, Task]) -> dict[str, Any]:
    """Return the figures of each setting, and on top those of the last one that gains.

    The spread is the larger one of both methods' largest less least test accuracy over the seeds, and
    the deviation that of their sample standard deviations. Both methods see the same batches of a seed,
    so the differences of the seeds have a deviation of their own.
    """
    every: list[dict[str, Any]] = []
    top: dict[str, Any] = {}
    for task, settings in tasks.items():
        for setting in settings.settings:
            found = _gain(rows, task, setting)
            every.append({"task": task, "sparsity": setting[0], "bits": setting[1]} | found)
            if statistics.mean(differences(rows, task, setting, "validation")) > 0:
                top = every[-1]
    return top | {"settings": every}


def _gain(rows: list[Row], task: str, setting: tuple[float, int]) -> dict[str, float]:
    tests = [
        [100 * r.test for r in _of(rows, task, setting) if r.method == method] for method in METHODS
    ]
    gains = differences(rows, task, setting, "test")
    return {
        "student_minus_qat_points": statistics.mean(gains),
        "seed_spread_points": max(max(t) - min(t) for t in tests),
        "seed_deviation_points": max(map(statistics.stdev, tests)),
        "difference_deviation_points": statistics.stdev(gains),
    }


def plot(rows: list[Row], tasks: dict[str, Task], path: Path) -> None:
    """Draw the test accuracy of each setting, with every seed, for both methods."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    lines = -(-len(tasks) // PANELS)
    figure, panels = pyplot.subplots(
        lines, PANELS, figsize=(4.5 * PANELS, 4 * lines), squeeze=False, layout="constrained"
    )
    for axes in panels.flat[len(tasks) :]:
        axes.set_axis_off()
    for axes, (task, settings) in zip(panels.flat, tasks.items(), strict=False):
        for method, style, shift in (("qat", "x", -0.08), ("pqk", "o", 0.08)):
            points = [
                (number + shift, 100 * row.test)
                for number, setting in enumerate(settings.settings)
                for row in _of(rows, task, setting)
                if row.method == method
            ]
            label = "pruning + QAT" if method == "qat" else "PQK"
            axes.plot(*zip(*points, strict=True), style, label=label)
        names = [f"{sparsity:.0%}\n{bits} bits" for sparsity, bits in settings.settings]
        axes.set_xticks(range(len(names)), names)
        what = f"{task.partition('_')[0]}, {settings.images:,} images, {settings.epochs} epochs"
        seeds = f"seeds {settings.seeds[0]} to {settings.seeds[-1]}"
        axes.set(ylabel="test accuracy, %", title=f"{what}\n{seeds}")
    panels.flat[0].legend()
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def _of(rows: list[Row], task: str, setting: tuple[float, int]) -> list[Row]:
    return [row for row in rows if (row.task, row.sparsity, row.bits) == (task, *setting)]


def _fit(
    model: nn.Module,
    batches: Iterable[Batch],
    adam: torch.optim.Optimizer,
    epochs: int,
    callbacks: list[Callback],
    seed: int,
) -> None:
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs * len(batches))  # type: ignore[arg-type]
    fit(
        model,
        batches,
        epochs=epochs,
        optimizer=adam,
        loss=F.cross_entropy,
        scheduler=schedule,
        scheduler_unit="step",
        callbacks=callbacks,
        seed=seed,
    )


def _groups(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Return all parameters with their rates: steps are small, and as many weights hang on each."""
    named = dict(model.named_parameters())
    steps = {name: named.pop(name) for name in list(named) if name.endswith(".step")}
    return [
        {"params": list(named.values()), "lr": lr},
        {"params": list(steps.values()), "lr": lr * STEP_RATE},
    ]


def _coloured(images: Images) -> Images:
    return images[0].expand(-1, 3, -1, -1), images[1]


def _first(images: Images, count: int, device: torch.device) -> Images:
    return images[0][:count].to(device), images[1][:count].to(device)


def _from(images: Images, start: int) -> Images:
    return images[0][start:], images[1][start:]


def _parts(images: Images) -> TensorBatches:
    return TensorBatches(*images, batch_size=500, shuffle=False)


def main() -> None:
    """Run the stages that are named, or all of them and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*")
    parser.add_argument("--images", type=int, help="to train on, in a trial")
    parser.add_argument("--epochs", type=int, help="of each training, in a trial")
    parser.add_argument("--seeds", type=int, help="of each setting, in a trial")
    parser.add_argument("--device", type=torch.device, default=CPU, help="that trains (cpu)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    trial = {n: getattr(options, n) for n in ("images", "epochs") if getattr(options, n)}
    tasks = {
        name: Task(**asdict(task) | trial) for name, task in TASKS[options.device.type].items()
    }
    part = "-".join(f"{name}-{value}" for name, value in trial.items()) or "whole"
    folder = Path(os.environ.get("TERSENET_CACHE") or ".cache", "pqk", part)
    with progress() as bars:

        def advance(what: str, done: int, total: int) -> None:
            bars(what, done, total)
            if not sys.stderr.isatty():
                print(f"{time.strftime('%X')} {what}: {done} of {total}", file=sys.stderr)

        bench = Bench(tasks, folder, options.device, advance)
        rows: list[Row] = []
        spotted: list[dict[str, Any]] = []
        for stage in options.stages or [*tasks, "keywords"]:
            task, *which = stage.split("-")
            if task == "keywords":
                spotted = keywords(folder)
                advance(task, 1, 1)
            elif which:
                sparsity, bits, seed, method = which
                rows.append(bench.row(task, float(sparsity), int(bits), int(seed), method))
            else:
                seeds = range(options.seeds) if options.seeds else tasks[task].seeds
                rows += bench.rows(task, seeds)
    shown = table("task", "sparsity", "bits", "seed", "method", "validation", "test", "s")
    for r in rows:
        shares = [f"{share:.2%}" for share in (r.validation, r.test)]
        which = (r.task, f"{r.sparsity:.0%}", str(r.bits), str(r.seed), r.method)
        shown.add_row(*which, *shares, f"{r.cpu_seconds:.0f}")
    show(shown)
    for row in spotted:
        print(row)
    if options.stages or trial or options.seeds:
        return
    found = figures(rows, tasks)
    print(found)
    shown_of = (found["task"], found["sparsity"], found["bits"], SEED, "pqk")
    name = "-".join(f"{part:g}" if isinstance(part, float) else str(part) for part in shown_of)
    shutil.copyfile(folder / f"{name}.terse", timing.HERE / "record" / "pqk.terse")
    starts = {task: bench.start(task) for task in tasks}
    timing.write(
        "pqk",
        timing.environment()
        | {
            "settings": {task: asdict(settings) for task, settings in tasks.items()},
            "fade": FADE,
            "step_rate": STEP_RATE,
            "figures": found,
            "exported": asdict(bench.row(*shown_of)),
            "spread": "the larger of both methods' largest less least test accuracy over seeds",
            "deviation": "the larger of both methods' sample standard deviations of it",
            "start_test": {
                task: evaluate(model, _parts(bench.data(task).test), accuracy)
                for task, model in starts.items()
            },
            "keywords": spotted,
            "keywords_left_out": "res8: it takes features [101, 40], kws01 has [49, 10]",
            "table": [asdict(row) for row in rows],
        },
    )
    plot(rows, tasks, timing.HERE / "record" / "pqk.svg")


if __name__ == "__main__":
    main()
