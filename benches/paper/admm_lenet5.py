"""Progressive ADMM, and pruning by rate, on LeNet-5 and MNIST, to a file of a few kilobytes.

::

    dense training; the maps and hidden units that score most, trained as a narrower network
    for each level, from the one that it follows:
        prune_admm of all layers, in rounds                          # progressive
    beside, to the first level in as many epochs: one-shot magnitude pruning, and one round of ADMM
    for each number of bytes, from the narrower network: RatePruning of all layers together
    both settled: trained on
    with shared weights and biases, trained by moving between the values; export

Factors count the weights of the full network, 430,500, whose units left out are zeros in the file.
The last 5,000 training images decide everything, the test images are only reported. A factor is
that of a network named beforehand, a size that of the smallest file that the validation images
allow; each is null where the test images do not bear it out.

    TERSENET_DATA=… TERSENET_CACHE=… PYTHONPATH=benches python benches/paper/admm_lenet5.py [stage…]
    writes benches/record/admm_lenet5.{json,svg,terse}

Finished stages stay in TERSENET_CACHE and are not run again. With names of stages (level-71,
settled-71, baseline-magnitude, baseline-admm, shared-71-8, rate-2250, sharedrate-2250, …) only these
are run, and nothing is written: processes can share the work.

Source: Ye et al. 2018, "Progressive weight pruning of deep neural networks using ADMM"; Zhang et
al. 2018, "A systematic DNN weight pruning framework using alternating direction method of
multipliers".
"""

from __future__ import annotations

import argparse
import copy
import functools
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mnist
import numpy as np
import timing
import torch
from cache import Cache
from lenet5 import Trainer, fold_biases, train_dense
from lenet5_width import narrowed, widened
from networks import LeNet5
from torch import nn

import tersenet
from tersenet.console import progress, show, table
from tersenet.parametrization import unparametrize
from tersenet.plan import Plan, Rule
from tersenet.pruning import RatePruning, Stage, prune, prune_admm
from tersenet.pruning.stages import Progress
from tersenet.quantization import prepare_qat
from tersenet.training import accuracy, evaluate

SIZES = {"conv1": 500, "conv2": 25_000, "ip1": 400_000, "ip2": 5_000}

SEED = 0
WIDTHS = (12, 30, 100)  # maps of conv1 and conv2, hidden units

# Weights kept of conv1, conv2, ip1 and ip2 after each round, by the factor that the last one gives.
LEVELS = {
    "71": ((130, 3_000, 8_000, 500), (115, 2_500, 5_400, 420), (100, 2_000, 3_600, 340)),
    "120": ((90, 1_450, 1_800, 240),),
    "167": ((80, 1_000, 1_300, 190),),
}
FOLLOWS = {"120": "71", "167": "120"}
BASELINES = ("magnitude", "admm")
SETTLED = {"71": 40, "167": 80}  # epochs, of 13,760 images as all are
SHARED = (("71", 8), ("120", 8), ("167", 8), ("167", 4))  # levels, and values a layer
RATES = (2_250,)  # estimated bytes
RATE_OPTIONS = {"symbol_bits": 2.0, "fade": 2e-4}
RATE_SETTLING = 100  # epochs
RATE_VALUES = {"conv1": 8, "conv2": 5, "ip1": 6, "ip2": 6}  # most for the fewest weights
CLAIMED = {"loss_0.1pt": "progressive 71, settled", "acc_99.0": "progressive 167, settled"}
BIAS_STEP = 2.0**-5  # a power of two: short mantissas

NARROWING = 24  # epochs
SETTLING_LR = 2e-3
RHO, RHO_GROWTH = 3e-3, 1.25


@dataclass(frozen=True)
class Scale:
    """How networks are trained, in epochs."""

    pruning: Mapping[str, int]  # by phase
    sharing: tuple[int, int]  # before biases are on their grid, and after
    lr: Mapping[str, float]
    copies: int  # of the training images, warped


LEVEL = Scale(
    {"admm": 14, "retraining": 10},
    (30, 8),
    {"admm": 1e-3, "retraining": SETTLING_LR, "sharing": 2e-3},
    copies=2,
)
RATE = Scale({"rate": 180}, (90, 30), {"rate": 2e-3, "sharing": 1e-3}, copies=4)


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


def keep(net: nn.Module, counts: tuple[int, ...], seed: int) -> Plan:
    """Return the plan that keeps so many weights of each layer."""
    sizes = {name: net.get_submodule(name).weight.numel() for name in SIZES}
    pairs = zip(sizes.items(), counts, strict=True)
    return Plan({name: Rule(sparsity=1 - n / size) for (name, size), n in pairs}, seed=seed)


def kept(net: nn.Module) -> dict[str, int]:
    """Return how many weights of each layer are not zero."""
    return {name: int(net.get_submodule(name).weight.count_nonzero()) for name in SIZES}


def prune_to(level: str, net: LeNet5, trainer: Trainer, folder: Path, advance: Progress) -> None:
    """Prune a network to a level by ADMM in rounds."""
    prune_admm(
        net,
        [keep(net, counts, trainer.seed) for counts in LEVELS[level]],
        train=trainer.train(LEVEL.pruning, LEVEL.lr),
        validate=trainer.validate,
        rho=RHO,
        rho_growth=RHO_GROWTH,
        seed=trainer.seed,
        checkpoint=folder / f"level-{level}",
        progress=advance,
    )


def rounds(level: str) -> int:
    """Return how many rounds lead to a level, those of the levels before it too."""
    return len(LEVELS[level]) + (rounds(FOLLOWS[level]) if level in FOLLOWS else 0)


def prune_at_once(baseline: str, level: str, net: LeNet5, trainer: Trainer) -> None:
    """Prune a network to a level in one step, in as many epochs as all rounds to it have."""
    count = rounds(level)
    epochs = {phase: each * count for phase, each in LEVEL.pruning.items()}
    plan = keep(net, LEVELS[level][-1], trainer.seed)
    if baseline == "magnitude":
        prune(net, plan)
        retrain(net, trainer, sum(epochs.values()), SETTLING_LR)
    else:
        prune_admm(
            net,
            [plan],
            train=trainer.train(epochs, LEVEL.lr),
            validate=trainer.validate,
            rho=RHO,
            rho_growth=RHO_GROWTH ** (1 / count),
            seed=trainer.seed,
        )


def prune_by_rate(nbytes: int, net: LeNet5, trainer: Trainer) -> None:
    """Prune a network to a number of bytes, and train what is left."""
    steps = sum(RATE.pruning.values()) * trainer.steps
    rate = RatePruning(net, nbytes=nbytes, steps=steps, **RATE_OPTIONS)
    trainer.train(RATE.pruning, RATE.lr, tidies=False)(
        net, [rate], Stage(0, 0, "rate", trainer.seed)
    )
    retrain(net, trainer, RATE_SETTLING, SETTLING_LR)


def retrain(net: LeNet5, trainer: Trainer, epochs: int, lr: float, *, tidies: bool = True) -> None:
    """Train what is left of a network."""
    train = trainer.train({"retraining": epochs}, {"retraining": lr}, tidies=tidies)
    train(net, [], Stage(0, 0, "retraining", trainer.seed))


def share(net: LeNet5, values: Mapping[str, int], trainer: Trainer, scale: Scale) -> None:
    """Share so many values in each layer, and biases on a grid; leave plain weights."""
    prune(net, Plan.of(threshold=0.0))  # what cannot matter was set to zero
    rules = {name: Rule(quantizer="cws", k=k) for name, k in values.items()}
    prepare_qat(net, Plan(rules, seed=trainer.seed))
    before, after = scale.sharing
    rate = scale.lr["sharing"]
    retrain(net, trainer, before, rate, tidies=False)
    for bias in (net.ip1.bias, net.ip2.bias):
        bias.data = (bias.data / BIAS_STEP).round() * BIAS_STEP
        bias.requires_grad_(False)
    retrain(net, trainer, after, rate, tidies=False)
    unparametrize(net)


def export(net: LeNet5, path: Path) -> tuple[int, int]:
    """Export a network; return the bytes of its weights, codebooks included, and of the file."""
    wide = widened(net).eval()
    file_nbytes = tersenet.export(wide, torch.zeros(2, 1, 28, 28), path, goal="size")
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

    def __init__(self, cache: Cache, advance: Progress, seed: int = SEED) -> None:
        """Train the dense network, the teacher of all others."""
        self.data = mnist.load()
        self.cache, self.advance, self.seed = cache, advance, seed
        torch.manual_seed(seed)
        self.dense = LeNet5()
        self.dense_seconds = cache.stage(
            "dense", self.dense, lambda: train_dense(self.dense, self.data, seed)
        )
        fold_biases(self.dense)
        self.dense.eval()
        advance("dense", 1, 1)

    @functools.cached_property
    def trainer(self) -> Trainer:
        """What all networks but the dense one and those pruned by rate are trained by."""
        return self._trainer(LEVEL)

    @functools.cached_property
    def rate_trainer(self) -> Trainer:
        """What networks that are pruned by rate are trained by: on more copies."""
        return self._trainer(RATE)

    def narrow(self) -> tuple[LeNet5, np.ndarray]:
        """Return the trained narrower network that all pruning begins with."""
        scores = self.trainer.scores(self.dense)
        net = narrowed(self.dense, scores, WIDTHS)
        seconds = self.cache.stage(
            "narrow", net, lambda: retrain(net, self.trainer, NARROWING, SETTLING_LR, tidies=False)
        )
        self.advance("narrowed", 1, 1)
        return net, seconds

    def level(self, level: str) -> tuple[LeNet5, np.ndarray]:
        """Return the network of a level, and the seconds of pruning to it, all levels before too."""
        net, seconds = self.level(FOLLOWS[level]) if level in FOLLOWS else self.narrow()
        seconds = seconds + self.cache.stage(
            f"level-{level}",
            net,
            lambda: prune_to(level, net, self.trainer, self.cache.folder, self.advance),
        )
        return net, seconds

    def settled(self, level: str) -> tuple[LeNet5, np.ndarray]:
        """Return the network of a level, trained on where it is one that settles."""
        net, seconds = self.level(level)
        if level in SETTLED:
            seconds = seconds + self.cache.stage(
                f"settled-{level}",
                net,
                lambda: retrain(net, self.trainer, SETTLED[level], SETTLING_LR),
            )
            self.advance(f"settled, {level}", 1, 1)
        return net, seconds

    def baseline(self, name: str, level: str = "71") -> tuple[LeNet5, np.ndarray]:
        """Return the network of a baseline, and the seconds of pruning to a level by it."""
        return self._after(
            f"baseline-{name}-{level}",
            self.narrow(),
            lambda net: prune_at_once(name, level, net, self.trainer),
        )

    def shared(self, level: str, k: int) -> tuple[LeNet5, np.ndarray]:
        """Return the network of a level with shared weights, and the seconds that led to it."""
        values = dict.fromkeys(SIZES, k)
        return self._after(
            f"shared-{level}-{k}",
            self.settled(level),
            lambda net: share(net, values, self.trainer, LEVEL),
        )

    def rate(self, nbytes: int) -> tuple[LeNet5, np.ndarray]:
        """Return the network of a number of bytes, settled, and the seconds that led to it."""
        return self._after(
            f"rate-{nbytes}",
            self.narrow(),
            lambda net: prune_by_rate(nbytes, net, self.rate_trainer),
        )

    def shared_rate(self, nbytes: int) -> tuple[LeNet5, np.ndarray]:
        """Return the network of a number of bytes with shared weights."""
        return self._after(
            f"sharedrate-{nbytes}",
            self.rate(nbytes),
            lambda net: share(net, RATE_VALUES, self.rate_trainer, RATE),
        )

    def _trainer(self, scale: Scale) -> Trainer:
        return Trainer(self.data, copy.deepcopy(self.dense), copies=scale.copies, seed=self.seed)

    def _after(
        self, name: str, before: tuple[LeNet5, np.ndarray], work: Callable[[LeNet5], None]
    ) -> tuple[LeNet5, np.ndarray]:
        """Return what a stage makes of a network, whose weights are plain, and all seconds."""
        net, seconds = before
        unparametrize(net)
        more = self.cache.stage(name, net, lambda: work(net))
        self.advance(name, 1, 1)
        return net, seconds + more

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
        rows.append(self.row("narrowed", *self.narrow()))
        rows += [self.row(f"baseline {name}", *self.baseline(name)) for name in BASELINES]
        rows += [self.row(f"progressive {level}", *self.level(level)) for level in LEVELS]
        rows += [
            self.row(f"progressive {level}, settled", *self.settled(level)) for level in SETTLED
        ]
        for level, k in SHARED:
            name = f"progressive {level}, k = {k}"
            rows.append(self.row(name, *self.shared(level, k), folder / f"{name}.terse"))
        for nbytes in RATES:
            name = f"rate, {nbytes:,} B"
            rows.append(self.row(name, *self.rate(nbytes)))
            name = f"{name}, shared"
            rows.append(self.row(name, *self.shared_rate(nbytes), folder / f"{name}.terse"))
        return rows


STAGES = {
    "level": Bench.level,
    "settled": Bench.settled,
    "baseline": Bench.baseline,
    "shared": lambda bench, level, k: bench.shared(level, int(k)),
    "rate": lambda bench, nbytes: bench.rate(int(nbytes)),
    "sharedrate": lambda bench, nbytes: bench.shared_rate(int(nbytes)),
}


def figures(rows: list[Row]) -> dict[str, Any]:
    """Return what is claimed, or None where the images do not bear it out."""
    named = {row.name: row for row in rows}
    dense = rows[0]

    def loses(found: float, before: float, points: float) -> bool:
        return found < before - points / 100 - 1e-9

    first, second = (named[name] for name in CLAIMED.values())
    found: dict[str, Any] = {
        "pruning_factor_loss_0.1pt": None if loses(first.test, dense.test, 0.1) else first.factor,
        "pruning_factor_acc_99.0": second.factor if second.test >= 0.99 else None,
    }
    chosen = smallest(rows)
    borne = chosen is not None and not loses(chosen.test, dense.test, 0.2)
    for what in ("payload", "file"):
        found[f"{what}_bytes_loss_0.2pt"] = getattr(chosen, f"{what}_nbytes") if borne else None
    return found


def smallest(rows: list[Row]) -> Row | None:
    """Return the smallest file that loses no more than 0.2 points of the validation images."""
    within = [r for r in rows if r.file_nbytes and r.validation >= rows[0].validation - 2e-3 - 1e-9]
    return min(within, key=lambda row: row.file_nbytes or 0, default=None)


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
    by_rate = [row for row in others if row.name.startswith("rate") and not row.file_nbytes]
    kinds["by rate"] = ("D", by_rate)
    kinds["with shared weights"] = ("s", [row for row in others if row.file_nbytes])
    for label, (style, points) in kinds.items():
        axes.plot(
            [p.factor for p in points],
            [100 * p.test for p in points],
            style,
            fillstyle="none",
            label=label,
        )
    axes.set(
        xlabel="weights in all / weights kept", ylabel="test accuracy, %", title="LeNet-5, MNIST"
    )
    axes.legend()
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    """Run the stages that are named, or all of them and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="stage")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    root = Path(os.environ.get("TERSENET_CACHE") or ".cache", "admm_lenet5")
    cache = Cache(root)
    with progress() as bars:

        def advance(what: str, done: int, total: int) -> None:
            bars(what, done, total)
            if not sys.stderr.isatty():
                print(f"{time.strftime('%X')} {what}: {done} of {total}", file=sys.stderr)

        bench = Bench(cache, advance)
        for stage in arguments.stages:
            work, *which = stage.split("-")
            found = STAGES[work](bench, *which)
            print(bench.row(stage, *found))
        if arguments.stages:
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
    chosen = smallest(rows) or max(files, key=lambda row: row.validation)
    (record / "admm_lenet5.terse").write_bytes((cache.folder / f"{chosen.name}.terse").read_bytes())
    plot(rows, record / "admm_lenet5.svg")
    timing.write(
        "admm_lenet5",
        timing.environment()
        | {
            "seed": SEED,
            "seconds": "of one thread beside other work: wall_s are longer than cpu_s for that",
            "loss": "half cross-entropy of labels, half of the dense network's softened scores",
            "dense_test": rows[0].test,
            "figures": found,
            "exported": chosen.name,
            "table": [asdict(row) for row in rows],
        },
    )


if __name__ == "__main__":
    main()
