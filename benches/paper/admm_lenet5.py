"""Progressive ADMM on LeNet-5 and MNIST, to a file of a few kilobytes.

::

    dense training, then for each level (weights kept of conv1, conv2, ip1, ip2), from the last one:
        prune_admm of all layers, to the level's convolutions
        prune_admm of the two linear layers on the convolutions' outputs, in rounds, to the level
        training of what is left
    beside, to the published split at as many epochs: one-shot magnitude pruning, and one round of ADMM
    the last levels settled: trained on, on images that are warped less
    from there: shared weights and biases, trained; export

The last 5,000 training images decide everything, the test images are only reported. A figure is
that of the network that the validation images choose, and null where the test images do not bear
it out.

    TERSENET_DATA=… TERSENET_CACHE=… PYTHONPATH=benches python benches/paper/admm_lenet5.py [stage…]
    writes benches/record/admm_lenet5.{json,svg,terse}

Finished stages stay in TERSENET_CACHE and are not run again. With names of stages (level-71,
settled-71, baseline-magnitude, baseline-admm, shared-71-4, …) only these are run, and nothing is
written: processes can share the work.

Source: Ye et al. 2018, "Progressive weight pruning of deep neural networks using ADMM"; Zhang et
al. 2018, "A systematic DNN weight pruning framework using alternating direction method of
multipliers".
"""

from __future__ import annotations

import copy
import functools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mnist
import numpy as np
import timing
import torch
from cache import Cache
from lenet5 import SEED, Body, Head, Trainer, fold_biases, train_dense
from networks import LeNet5
from torch import nn

import tersenet
from tersenet.console import progress, show, table
from tersenet.parametrization import unparametrize
from tersenet.plan import Plan, Rule
from tersenet.pruning import Stage, prune, prune_admm
from tersenet.pruning.progressive import Progress
from tersenet.quantization import quantize
from tersenet.training import accuracy, evaluate

SIZES = {"conv1": 500, "conv2": 25_000, "ip1": 400_000, "ip2": 5_000}


@dataclass(frozen=True)
class Level:
    """Weights kept of each layer after each round of ADMM; in a round other layers train on.

    `convolutions` and then `joint` are rounds of all layers, `linear` between them rounds of the
    linear layers on the outputs of the convolutions, for each of `rhos`.
    """

    convolutions: dict[str, int] | None = None
    linear: tuple[dict[str, int], ...] = ()
    rhos: tuple[float, ...] = (3e-3,)
    joint: dict[str, int] | None = None


LEVELS = {
    # by the factor asked for; weights that cannot matter any more go beside
    "17": Level({"conv1": 100, "conv2": 2_000, "ip1": 28_000, "ip2": 1_000}),
    "71": Level(
        linear=tuple({"ip1": ip1, "ip2": 350} for ip1 in (12_000, 6_000, 3_600)), rhos=(3e-3, 1e-2)
    ),
    "167": Level({"conv1": 80, "conv2": 1_050}, joint={"ip1": 1_250, "ip2": 190}),
}
PUBLISHED = {"conv1": 100, "conv2": 2_000, "ip1": 3_600, "ip2": 350}  # 71 times fewer
BASELINES = ("magnitude", "admm")
SETTLED = {"71": 1, "167": 2}  # cycles of the learning rate
SHARED = (("71", 16), ("71", 8), ("167", 4))  # levels, and values a layer
BIAS_STEP = 2.0**-5  # a power of two: short mantissas

# Epochs are of 13,760 images.
WHOLE = {"admm": 14, "retraining": 10}
HEAD = {"admm": 24, "retraining": 16}
LAST = 14
SETTLING = 20
SHARING = 8


@dataclass(frozen=True)
class Row:
    """One network of the table; `seconds` and `cpu_seconds` are of all that led to it."""

    name: str
    kept: dict[str, int]
    factor: float
    validation: float
    test: float
    seconds: float
    cpu_seconds: float
    payload_nbytes: int | None = None
    file_nbytes: int | None = None


def keep(**counts: int) -> Plan:
    """Return the plan that keeps so many weights of each layer."""
    rules = {name: Rule(sparsity=1 - count / SIZES[name]) for name, count in counts.items()}
    return Plan(rules, seed=SEED)


def kept(net: nn.Module) -> dict[str, int]:
    """Return how many weights of each layer are not zero."""
    return {name: int(net.get_submodule(name).weight.count_nonzero()) for name in SIZES}


def prune_to(level: str, net: LeNet5, trainer: Trainer, folder: Path, advance: Progress) -> None:
    """Prune a network to a level by ADMM in rounds, from the dense one or the level before."""
    steps = LEVELS[level]

    def all_layers(counts: dict[str, int], name: str) -> None:
        prune_admm(
            net,
            [keep(**counts)],
            train=trainer.whole(WHOLE, {"admm": 1e-3, "retraining": 1e-3}),
            validate=trainer.validate,
            rho=3e-3,
            rho_growth=1.25,
            seed=SEED,
            checkpoint=folder / f"{level}-{name}",
            progress=advance,
        )

    if steps.convolutions:
        all_layers(steps.convolutions, "convolutions")
    if steps.linear:
        trainer.look_once(Body(net))
        prune_admm(
            Head(net),
            [keep(**counts) for counts in steps.linear],
            train=trainer.head(HEAD, {"admm": 1e-3, "retraining": 2e-3}),
            validate=trainer.validate_head,
            rho=steps.rhos,
            rho_growth=1.12,
            seed=SEED,
            checkpoint=folder / f"{level}-linear",
            progress=advance,
        )
        retrain(net, trainer.whole({"retraining": LAST}, {"retraining": 2e-3}))
    if steps.joint:
        all_layers(steps.joint, "joint")


def prune_at_once(baseline: str, net: LeNet5, trainer: Trainer, advance: Progress) -> None:
    """Prune the dense network to the first level in one step, at as many epochs."""
    plan = keep(**PUBLISHED)
    if baseline == "magnitude":
        prune(net, plan)
        epochs = {"retraining": sum(WHOLE.values())}
        retrain(net, trainer.whole(epochs, {"retraining": 1e-3}))
    else:
        prune_admm(
            net,
            [plan],
            train=trainer.whole(WHOLE, {"admm": 1e-3, "retraining": 1e-3}),
            validate=trainer.validate,
            rho=3e-3,
            rho_growth=1.25,
            seed=SEED,
        )
    advance(f"{baseline}: pruned", 1, 3)
    trainer.look_once(Body(net))
    epochs = {"retraining": sum(HEAD.values()) * len(LEVELS["71"].linear)}
    retrain(Head(net), trainer.head(epochs, {"retraining": 2e-3}))
    advance(f"{baseline}: linear layers", 2, 3)
    retrain(net, trainer.whole({"retraining": LAST}, {"retraining": 2e-3}))
    advance(f"{baseline}: all layers", 3, 3)


def retrain(model: nn.Module, train: Callable[..., None], cycle: int = 0) -> None:
    """Train what is left of a model."""
    train(model, [], Stage(cycle, 0, "retraining", SEED + cycle))


def share(net: LeNet5, k: int, trainer: Trainer) -> None:
    """Share k weights a layer, and biases on a grid; train the values; leave plain weights."""
    prune(net, Plan.of(threshold=0.0))  # what cannot matter was set to zero
    quantize(net, Plan.of(quantizer="cws", k=k, seed=SEED))
    biases = [net.ip1.bias, net.ip2.bias]
    train = trainer.whole({"retraining": SHARING}, {"retraining": 1e-3}, tidies=False)
    retrain(net, train)
    for bias in biases:
        bias.data = (bias.data / BIAS_STEP).round() * BIAS_STEP
        bias.requires_grad_(False)
    retrain(net, train)
    unparametrize(net)


def export(net: LeNet5, path: Path) -> tuple[int, int]:
    """Export a network; return the bytes of its weights, codebooks included, and of the file."""
    plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format).eval()
    file_nbytes = tersenet.export(plain, torch.zeros(2, 1, 28, 28), path, goal="size")
    payload = 0
    with tersenet.open(path) as file:
        for name in SIZES:
            matrix = file.get(f"{name}.weight")
            payload += file.info(f"{name}.weight")["nbytes"] + matrix.codebook.nbytes
    return payload, file_nbytes


def file_accuracy(path: Path, images: mnist.Images) -> float:
    """Return the accuracy of an exported network, without torch."""
    network = tersenet.Network.load(path)
    classes = network.run(images[0].numpy()).argmax(1)
    return float((classes == images[1].numpy()).mean())


class Bench:
    """The networks of all stages, and what is measured of them."""

    def __init__(self, cache: Cache, advance: Progress) -> None:
        """Train the dense network, the teacher of all others."""
        self.data = mnist.load()
        self.cache, self.advance = cache, advance
        torch.manual_seed(SEED)
        self.dense = LeNet5()
        self.dense_seconds = cache.stage(
            "dense", self.dense, lambda: train_dense(self.dense, self.data)
        )
        fold_biases(self.dense)
        self.dense.eval()
        advance("dense", 1, 1)

    @functools.cached_property
    def trainer(self) -> Trainer:
        """What trains on warped images."""
        return Trainer(self.data, copy.deepcopy(self.dense))

    @functools.cached_property
    def mild(self) -> Trainer:
        """What trains on images that are warped less."""
        return Trainer(self.data, copy.deepcopy(self.dense), mildly=True)

    def level(self, level: str) -> tuple[LeNet5, np.ndarray]:
        """Return the network of a level, and the seconds of pruning to it, all levels before too."""
        net, seconds = copy.deepcopy(self.dense), np.zeros(2)
        for name in list(LEVELS)[: list(LEVELS).index(level) + 1]:
            seconds = seconds + self.cache.stage(
                f"pruned-{name}",
                net,
                lambda name=name: prune_to(
                    name, net, self.trainer, self.cache.folder, self.advance
                ),
            )
        return net, seconds

    def settled(self, level: str) -> tuple[LeNet5, np.ndarray]:
        """Return the network of a level trained on, on images that are warped less."""
        net, before = self.level(level)
        seconds = np.zeros(2)
        for cycle in range(SETTLED[level]):
            seconds = seconds + self.cache.stage(
                f"settled-{level}-{cycle}",
                net,
                lambda cycle=cycle: retrain(
                    net, self.mild.whole({"retraining": SETTLING}, {"retraining": 2e-3}), cycle
                ),
            )
        self.advance(f"settled, {level}", 1, 1)
        return net, before + seconds

    def baseline(self, name: str) -> tuple[LeNet5, np.ndarray]:
        """Return the network of a baseline, and the seconds of pruning to it."""
        net = copy.deepcopy(self.dense)
        return net, self.cache.stage(
            f"baseline-{name}", net, lambda: prune_at_once(name, net, self.trainer, self.advance)
        )

    def shared(self, level: str, k: int) -> tuple[LeNet5, np.ndarray]:
        """Return the network of a level with shared weights, and the seconds that led to it."""
        masked, before = self.settled(level)
        net = copy.deepcopy(masked)
        unparametrize(net)
        seconds = self.cache.stage(f"shared-{level}-{k}", net, lambda: share(net, k, self.mild))
        self.advance(f"shared weights, {level}, k = {k}", 1, 1)
        return net, before + seconds

    def row(self, name: str, net: nn.Module, seconds: np.ndarray, path: Path | None = None) -> Row:
        """Measure a network, and where a path is given the file that it becomes."""
        counts = kept(net)
        row = Row(
            name,
            counts,
            sum(SIZES.values()) / sum(counts.values()),
            evaluate(net, [self.data.validation], accuracy),
            evaluate(net, [self.data.test], accuracy),
            *seconds.tolist(),
        )
        if path is None:
            return row
        payload, file_nbytes = export(net, path)
        found = file_accuracy(path, self.data.test)
        if abs(found - row.test) > 1e-4:  # a sum in another order may turn one image
            raise RuntimeError(
                f"{path} classifies {found:.2%} of the test images, not {row.test:.2%}"
            )
        return Row(**{**asdict(row), "payload_nbytes": payload, "file_nbytes": file_nbytes})

    def rows(self, folder: Path) -> list[Row]:
        """Measure everything; files of shared networks go into the folder."""
        rows = [self.row("dense", self.dense, self.dense_seconds)]
        rows += [self.row(f"baseline {name}", *self.baseline(name)) for name in BASELINES]
        rows += [self.row(f"progressive {level}", *self.level(level)) for level in LEVELS]
        rows += [
            self.row(f"progressive {level}, settled", *self.settled(level)) for level in SETTLED
        ]
        for level, k in SHARED:
            name = f"progressive {level}, k = {k}"
            rows.append(self.row(name, *self.shared(level, k), folder / f"{level}-{k}.terse"))
        return rows


STAGES = {
    "level": Bench.level,
    "settled": Bench.settled,
    "baseline": Bench.baseline,
    "shared": lambda bench, level, k: bench.shared(level, int(k)),
}


def figures(rows: list[Row]) -> dict[str, Any]:
    """Return the best that the validation images choose, or None where the test images object."""
    dense = rows[0]
    pruned = [row for row in rows if row.name.startswith("progressive") and not row.file_nbytes]
    shared = [row for row in rows if row.file_nbytes]

    def best(
        candidates: list[Row], key: Callable[[Row], float], accuracies: Callable
    ) -> float | None:
        fit = [row for row in candidates if accuracies(row.validation, dense.validation)]
        if not fit:
            return None
        chosen = min(fit, key=key)
        return abs(key(chosen)) if accuracies(chosen.test, dense.test) else None

    def loses(points: float) -> Callable[[float, float], bool]:
        return lambda found, before: found >= before - points / 100 - 1e-9

    return {
        "pruning_factor_loss_0.1pt": best(pruned, lambda row: -row.factor, loses(0.1)),
        "pruning_factor_acc_99.0": best(
            pruned, lambda row: -row.factor, lambda found, _: found >= 0.99
        ),
        "payload_bytes_loss_0.2pt": best(shared, lambda row: row.payload_nbytes, loses(0.2)),
        "file_bytes_loss_0.2pt": best(shared, lambda row: row.file_nbytes, loses(0.2)),
    }


def plot(rows: list[Row], path: Path) -> None:
    """Draw test accuracy against the factor of pruning."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    dense, *others = rows
    axes.axhline(100 * dense.test, color="gray", linestyle=":", label="dense")
    kinds = {
        "one-shot magnitude": ("x", [row for row in others if row.name == "baseline magnitude"]),
        "ADMM, one round": ("+", [row for row in others if row.name == "baseline admm"]),
        "progressive ADMM": (
            "o",
            [r for r in others if r.name.startswith("pro") and not r.file_nbytes],
        ),
    }
    kinds["with shared weights"] = ("s", [row for row in others if row.file_nbytes])
    for label, (style, points) in kinds.items():
        axes.plot([p.factor for p in points], [100 * p.test for p in points], style, label=label)
    axes.set(
        xlabel="weights in all / weights kept", ylabel="test accuracy, %", title="LeNet-5, MNIST"
    )
    axes.legend()
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    """Run the stages that are named, or all of them and write the record."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    cache = Cache(Path(os.environ.get("TERSENET_CACHE") or ".cache", "admm_lenet5"))
    with progress() as bars:

        def advance(what: str, done: int, total: int) -> None:
            bars(what, done, total)
            if not sys.stderr.isatty():
                print(f"{time.strftime('%X')} {what}: {done} of {total}", file=sys.stderr)

        bench = Bench(cache, advance)
        for stage in sys.argv[1:]:
            work, *which = stage.split("-")
            found = STAGES[work](bench, *which)
            print(bench.row(stage, *found))
        if sys.argv[1:]:
            return
        rows = bench.rows(cache.folder)
    shown = table("network", "kept", "factor", "validation", "test", "payload", "file", "seconds")
    for row in rows:
        sizes = [f"{n:,}" if n else "" for n in (row.payload_nbytes, row.file_nbytes)]
        shown.add_row(
            row.name,
            f"{sum(row.kept.values()):,}",
            f"{row.factor:.1f}",
            f"{row.validation:.2%}",
            f"{row.test:.2%}",
            *sizes,
            f"{row.seconds:.0f}",
        )
    show(shown)
    found = figures(rows)
    print(found)
    record = timing.HERE / "record"
    files = [row for row in rows if row.file_nbytes]
    within = [row for row in files if row.validation >= rows[0].validation - 2e-3 - 1e-9]
    if within:
        chosen = min(within, key=lambda row: row.file_nbytes or 0)
    else:
        chosen = max(files, key=lambda row: row.validation)
    export_of = chosen.name.removeprefix("progressive ").replace(", k = ", "-")
    (record / "admm_lenet5.terse").write_bytes((cache.folder / f"{export_of}.terse").read_bytes())
    plot(rows, record / "admm_lenet5.svg")
    timing.write(
        "admm_lenet5",
        timing.environment()
        | {
            "seed": SEED,
            "seconds": "of the processes that ran the stages beside other work, a third of a core "
            "each; an interrupted stage counts from where it went on",
            "loss": "half cross-entropy of labels, half of the dense network's softened scores",
            "dense_test": rows[0].test,
            "figures": found,
            "exported": chosen.name,
            "table": [asdict(row) for row in rows],
        },
    )


if __name__ == "__main__":
    main()
