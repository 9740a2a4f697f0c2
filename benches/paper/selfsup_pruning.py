"""Masks found without labels on CIFAR-10, beside masks found with them and random ones.

::

    for each seed, a network of 165,000 weights and 10,000 images:
        dense      with labels, and by rotations alone; both leave their weights of an early epoch
        masks      of each objective: prune_iteratively, 20 % a round, rewinding, to each density
        transfer   a linear probe of the rotations' features, of all weights and of 10 % of them;
                   and fine-tuning on labels from there
        tickets    networks trained with labels under the masks of labels, of rotations, and random
                   ones with the rotations' layer densities; from early weights, or from fresh ones

Early weights are those of the objective that found the mask, and for random masks the rotations'; fresh
ones are the same for all three, and so is the head always. 2,000 other images choose the price `l2`
of each probe, the test images are only reported.

    TERSENET_DATA=… TERSENET_CACHE=… PYTHONPATH=benches python benches/paper/selfsup_pruning.py
    writes benches/record/selfsup_pruning.{json,svg}

What is finished stays in TERSENET_CACHE and is not run again, rounds of pruning too. With `--stages`
or `--seeds` only these are run, with what they need, and nothing is written: processes can share the
work. For a trial, `--images` and the options for epochs make it small; then nothing is written either.

Source: Caron, Morcos, Bojanowski, Mairal and Joulin 2020, "Pruning convolutional neural networks with
self-supervision" (arXiv 2001.03554).
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timing
import torch
import torch.nn.functional as F
import trained
from torch import Tensor, nn

from tersenet.console import progress, show, table
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
from tersenet.self_supervision import RotatedBatches, features, linear_probe, with_head
from tersenet.training import State, TensorBatches, accuracy, evaluate, fit

OBJECTIVES = {"labels": 10, "rotations": 4}  # classes
ROUNDS = {0.2: 7, 0.1: 3, 0.05: 3, 0.02: 4}  # density: rounds to it from the one before
PROBED = 0.1
MASKS = ("labels", "rotations", "random")
STARTS = ("rewound", "fresh")
STAGES = ("dense", "masks", "transfer", "tickets")
SEEDS = (0, 1, 2)
BATCH = 100
LR, DECAY = 0.1, 5e-4
PRICES = (1e-3, 1e-2)  # of a probe
VALIDATION = 2_000
T_95 = 4.303  # Student's, two-sided 95 %, three seeds

Result = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What a run does, in images and epochs; a record is written for these values alone."""

    images: int = 10_000
    test: int = 10_000
    labels: int = 6
    rotations: int = 12
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

    def __init__(self, images: Tensor, classes: Tensor, seed: int) -> None:
        """Pad the images once."""
        padded = F.pad(images, (4, 4, 4, 4)).contiguous(memory_format=torch.channels_last)
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
            is_mirrored = torch.rand(len(images), generator=self._generator) < 0.5
            images = torch.where(is_mirrored[:, None, None, None], images.flip(3), images)
            yield images.contiguous(memory_format=torch.channels_last), classes


class Bench:
    """The data, the settings, and the folder of what is finished."""

    def __init__(self, settings: Settings, folder: Path, advance: Progress) -> None:
        """Read the images."""
        self.settings, self.folder, self.advance = settings, folder, advance
        folder.mkdir(parents=True, exist_ok=True)
        images, classes = _images("train", settings.images + VALIDATION)
        self.train = images[: settings.images], classes[: settings.images]
        self.validation = images[settings.images :], classes[settings.images :]
        self.test = _images("test", settings.test)
        self.seconds: dict[str, float] = {}  # of all that this run has asked for, when it ran

    def finished(self, name: str, work: Callable[[], Result]) -> Result:
        """Return what the work gives, or gave once; tensors and numbers only."""
        path = self.folder / f"{name}.pt"
        if path.exists():
            found: Result = torch.load(path, weights_only=True)
        else:
            start = time.perf_counter()
            found = work()
            found["seconds"] = time.perf_counter() - start
            with Replacing(path) as file:
                torch.save(found, file)
            self.advance(f"{name}, {found['seconds']:.0f} s", 1, 1)
        self.seconds[name] = found["seconds"]
        return found

    def fit(
        self,
        net: nn.Module,
        objective: str,
        epochs: int,
        seed: int,
        watch: Callable[[State], None] | None = None,
    ) -> None:
        """Train a network on an objective."""
        batches: Any = Augmented(*self.train, seed)
        if objective == "rotations":
            batches = RotatedBatches(batches, turns="random", seed=seed)
        sgd = torch.optim.SGD(
            net.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=DECAY
        )
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            sgd, LR, total_steps=epochs * len(batches), pct_start=0.2
        )
        fit(
            net,
            batches,
            epochs=epochs,
            optimizer=sgd,
            loss=F.cross_entropy,
            scheduler=cycle,
            scheduler_unit="step",
            callbacks=[watch] if watch else [],
            seed=seed,
        )

    def accuracy(self, net: nn.Module) -> float:
        """Return the accuracy on the test images."""
        return evaluate(net, TensorBatches(*self.test, batch_size=500, shuffle=False), accuracy)

    def dense(self, objective: str, seed: int) -> Result:
        """Return the states of a dense network, early and at the end, and its test accuracy."""

        def work() -> Result:
            net, early = network(objective, seed), {}

            def watch(state: State) -> None:
                if state.epoch + 1 == self.settings.early:
                    early.update(copy.deepcopy(net.state_dict()))

            self.fit(net, objective, getattr(self.settings, objective), seed, watch)
            found = {"early": early, "state": net.state_dict()}
            return found | ({"accuracy": self.accuracy(net)} if objective == "labels" else {})

        return self.finished(f"{seed}-dense-{objective}", work)

    def masks(self, objective: str, seed: int) -> dict[float, dict[str, Tensor]]:
        """Return the masks of an objective for each density."""
        dense = self.dense(objective, seed)

        def train(net: nn.Module, stage: Stage) -> None:
            self.fit(net, objective, self.settings.round, stage.seed)

        def work() -> Result:
            net = network(objective, seed)
            net.load_state_dict(dense["state"])
            found, before = {}, 1.0
            for density, rounds in ROUNDS.items():
                name = f"{seed}-masks-{objective}-{density:g}"
                prune_iteratively(
                    net,
                    Plan({"conv:*": Rule(sparsity=1 - density)}, pruning_scope="global"),
                    train=train,
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
        return {density: found[f"{density:g}"] for density in ROUNDS}

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
            chosen, probed = self.probe(net)
            if name == "untrained":
                return probed
            tuned = with_head(net, "head", chosen)
            self.fit(tuned, "labels", self.settings.ticket, seed)
            return probed | {"tuned": self.accuracy(tuned)}

        return self.finished(f"{seed}-transfer-{name.replace(' ', '-')}", work)

    def probe(self, net: nn.Module) -> tuple[nn.Linear, Result]:
        """Return the probe that the validation images choose, and its accuracies."""
        parts = [
            features(net, TensorBatches(*part, batch_size=500, shuffle=False), "head")
            for part in (self.train, self.validation, self.test)
        ]
        probes = [linear_probe(*parts[0], count=10, l2=price) for price in PRICES]
        values = [accuracy(probe(parts[1][0]), parts[1][1]) for probe in probes]
        best = int(np.argmax(values))
        test = accuracy(probes[best](parts[2][0]), parts[2][1])
        return probes[best], {"l2": PRICES[best], "validation": values[best], "probe": test}

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


def network(objective: str, seed: int) -> Net:
    """Return a fresh network for an objective."""
    torch.manual_seed(seed)
    net = Net(OBJECTIVES[objective])
    return net.to(memory_format=torch.channels_last)


def _of_body(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("body."): v for k, v in state.items() if k.startswith("body.")}


def _images(part: str, count: int) -> tuple[Tensor, Tensor]:
    images, classes = trained.cifar10(count, part)
    images = trained.normalized(images).contiguous(memory_format=torch.channels_last)
    return images, torch.from_numpy(classes).long()


def run(bench: Bench, stages: list[str], seeds: list[int]) -> None:
    """Finish the stages of the seeds."""
    for seed in seeds:
        for objective in OBJECTIVES:
            if "dense" in stages:
                bench.dense(objective, seed)
            if "masks" in stages:
                bench.masks(objective, seed)
        if "transfer" in stages:
            for name in ("untrained", "all weights", "few weights"):
                bench.transfer(name, seed)
        if "tickets" in stages:
            for density in ROUNDS:
                for start in STARTS:
                    for mask in MASKS:
                        bench.ticket(mask, start, density, seed)


def summary(values: list[float]) -> dict[str, Any]:
    """Return the mean, its standard error, and the values of the seeds."""
    error = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": float(np.mean(values)), "standard_error": error, "seeds": values}


def points(bench: Bench) -> dict[str, Any]:
    """Return the table, and the differences between masks, in points of test accuracy."""
    tickets = {
        (mask, start, density): [100 * bench.ticket(mask, start, density, s) for s in SEEDS]
        for mask in MASKS
        for start in STARTS
        for density in ROUNDS
    }

    def difference(first: str, second: str, start: str, densities: list[float]) -> dict[str, Any]:
        pairs = [
            np.subtract(tickets[first, start, d], tickets[second, start, d]) for d in densities
        ]
        return summary(np.mean(pairs, 0).tolist())

    transfers = {
        name: [bench.transfer(name, seed) for seed in SEEDS]
        for name in ("untrained", "all weights", "few weights")
    }
    return {
        "dense": summary([100 * bench.dense("labels", seed)["accuracy"] for seed in SEEDS]),
        "transfer": {
            name: {
                key: summary([100 * result[key] for result in results])
                for key in ("probe", "tuned")
                if key in results[0]
            }
            for name, results in transfers.items()
        },
        "tickets": [
            {"mask": mask, "start": start, "density": density, "accuracy": summary(values)}
            for (mask, start, density), values in tickets.items()
        ],
        "differences": {
            f"{first} minus {second}, {start}, {what}": difference(first, second, start, densities)
            for first, second in (("labels", "rotations"), ("rotations", "random"))
            for start in STARTS
            for what, densities in [
                *((f"{density:g}", [density]) for density in ROUNDS),
                ("mean of densities", list(ROUNDS)),
            ]
        },
    }


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """Return what the record claims; an interval is Student's, of 95 %, over the seeds."""
    probes = [found["transfer"][name]["probe"]["seeds"] for name in ("all weights", "few weights")]
    drop = summary(np.subtract(*probes).tolist())
    differences = found["differences"]
    fresh, rewound = (
        differences[f"labels minus rotations, {start}, mean of densities"]
        for start in ("fresh", "rewound")
    )
    ahead = differences["rotations minus random, rewound, 0.02"]
    return {
        "probe_drop_points_at_10pct": drop["mean"],
        "probe_drop_standard_error": drop["standard_error"],
        "label_free_minus_random_points_at_2pct": ahead["mean"],
        "label_free_minus_random_standard_error": ahead["standard_error"],
        "label_free_minus_random_points_at_2pct_fresh": differences[
            "rotations minus random, fresh, 0.02"
        ]["mean"],
        "labels_minus_label_free_points_fresh": fresh["mean"],
        "labels_minus_label_free_points_rewound": rewound["mean"],
        "equal_when_fresh": abs(fresh["mean"]) <= T_95 * fresh["standard_error"],
        "labels_ahead_when_rewound": rewound["mean"] > T_95 * rewound["standard_error"],
    }


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw test accuracy against density for each kind of mask, with standard errors."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(9, 4), sharey=True)
    for axes, start in zip(both, STARTS, strict=True):
        axes.axhline(found["dense"]["mean"], color="gray", linestyle=":", label="dense")
        for mask, style in zip(MASKS, ("o-", "s-", "x--"), strict=True):
            rows = [r for r in found["tickets"] if (r["mask"], r["start"]) == (mask, start)]
            axes.errorbar(
                [100 * row["density"] for row in rows],
                [row["accuracy"]["mean"] for row in rows],
                [row["accuracy"]["standard_error"] for row in rows],
                fmt=style,
                capsize=3,
                label=f"masks of {mask}" if mask != "random" else "random masks",
            )
        ticks = [100 * density for density in ROUNDS]
        axes.set(xscale="log", xlabel="weights kept, %", title=f"{start} weights")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        axes.minorticks_off()
    both[0].set_ylabel("test accuracy with labels, %")
    both[0].legend()
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def printed(found: dict[str, Any]) -> None:
    """Print the table."""

    def text(values: dict[str, Any]) -> str:
        return f"{values['mean']:.2f} ± {values['standard_error']:.2f}"

    shown = table("masks, start", *(f"{100 * density:g} %" for density in ROUNDS))
    for mask in MASKS:
        for start in STARTS:
            rows = [r for r in found["tickets"] if (r["mask"], r["start"]) == (mask, start)]
            shown.add_row(f"{mask}, {start}", *(text(row["accuracy"]) for row in rows))
    show(shown)
    shown = table("rotations", "probe", "fine-tuned")
    for name, row in found["transfer"].items():
        shown.add_row(name, *(text(row[key]) if key in row else "" for key in ("probe", "tuned")))
    show(shown)


def main() -> None:
    """Run the stages that are named, or all of them and write the record."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    usual = Settings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    for name, value in asdict(usual).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = vars(parser.parse_args())
    stages, seeds = options.pop("stages"), options.pop("seeds")
    settings = Settings(**options)
    cache = Path(os.environ.get("TERSENET_CACHE") or ".cache", "selfsup_pruning")
    with progress() as bars:

        def advance(what: str, done: int, total: int) -> None:
            bars(what, done, total)
            if not sys.stderr.isatty():
                print(f"{time.strftime('%X')} {what}: {done} of {total}", file=sys.stderr)

        bench = Bench(settings, cache / "-".join(map(str, asdict(settings).values())), advance)
        run(bench, stages, seeds)
        print(f"{sum(bench.seconds.values()):.0f} s")
        if stages != list(STAGES) or seeds != list(SEEDS):
            return
        found = points(bench)
    printed(found)
    claims = figures(found)
    print(claims)
    if settings != usual:
        return
    plot(found, timing.HERE / "record" / "selfsup_pruning.svg")
    record = timing.environment() | {
        "settings": asdict(settings),
        "seeds": SEEDS,
        "weights": sum(p.numel() for p in network("labels", 0).parameters() if p.dim() > 1),
        "seconds": sum(bench.seconds.values()),  # an interrupted stage: since it went on
        "figures": claims,
    }
    timing.write("selfsup_pruning", record | found)


if __name__ == "__main__":
    main()
