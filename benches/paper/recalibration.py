"""Networks pruned and shared without training and without labels, batch norms recalibrated.

::

    for each network, sparsity of all layers together and number of values of a layer:
        compress; accuracy on the test images
        for each seed: recalibrate copies by 500 training images, to their statistics, and by what
            they say that compression changed; accuracy on the test images

Nothing is chosen, and no label is used but those of the test images. The images are plain, where
training saw shifted and mirrored ones: their statistics are not quite those of training.

    TERSENET_DATA=… PYTHONPATH=benches python benches/paper/recalibration.py
    writes benches/record/recalibration.{json,svg}
"""

from __future__ import annotations

import copy
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import cifar10
import timing
import torch
import trained
from torch import Tensor, nn

from tersenet import Plan, prune, quantize
from tersenet.console import progress, show, table
from tersenet.parametrization import unparametrize
from tersenet.training import TensorBatches, accuracy, evaluate, recalibrate

# Sparsity, and values of a layer; None leaves the values that are kept as they are.
SETTINGS = ((0.5, 16), (0.5, None), (0.6, None), (0.7, None), (0.8, None))
SETTINGS_DEEP = ((0.7, None),)
IMAGES = 500
BATCH = 250
SEEDS = 3


@dataclass(frozen=True)
class Row:
    """One network; accuracies on the test images are fractions."""

    network: str
    sparsity: float
    k: int | None
    test: float
    recalibrated: list[float]
    with_reference: list[float]


def compressed(depth: int, sparsity: float, k: int | None) -> nn.Module:
    """Return a trained ResNet, pruned by magnitude and with shared values, in torch's own form."""
    model = trained.resnet(depth)
    prune(model, Plan.of(sparsity=sparsity, pruning_scope="global"))
    if k is not None:
        quantize(model, Plan.of(quantizer="cws", k=k))
    unparametrize(model)
    return model


def recalibrated(
    model: nn.Module, images: Tensor, seed: int, reference: nn.Module | None = None
) -> nn.Module:
    """Return a copy recalibrated by images that the seed draws."""
    found = copy.deepcopy(model)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:IMAGES]
    recalibrate(found, images[chosen].split(BATCH), reference=reference)
    return found


def plot(rows: list[Row], path: Path) -> None:
    """Draw test accuracies of ResNet-20 over the sparsity, values as they are."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 4), layout="constrained")
    shown = [row for row in rows if row.network == "resnet20" and row.k is None]
    percents = [100 * row.sparsity for row in shown]
    axes.plot(percents, [100 * row.test for row in shown], "x-", label="pruned")
    for name, label in (
        ("recalibrated", "to the statistics of"),
        ("with_reference", "to a reference by"),
    ):
        after = [100 * statistics.mean(getattr(row, name)) for row in shown]
        axes.plot(percents, after, "o-", label=f"{label} {IMAGES} images")
    axes.set(xlabel="weights pruned, %", ylabel="test accuracy, %", title="ResNet-20, CIFAR-10")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure all networks, print the table, and write the record."""
    torch.set_num_threads(1)
    unlabelled, _ = cifar10.load("train", 10_000)
    test = TensorBatches(*cifar10.load("test", 10_000), batch_size=500, shuffle=False)
    wanted = [(20, *setting) for setting in SETTINGS] + [(56, *s) for s in SETTINGS_DEEP]
    rows = []
    with progress() as bars:
        for number, (depth, sparsity, k) in enumerate(wanted):
            model = compressed(depth, sparsity, k)
            before = evaluate(model, test, accuracy)
            own, moved = (
                [
                    evaluate(recalibrated(model, unlabelled, seed, reference), test, accuracy)
                    for seed in range(SEEDS)
                ]
                for reference in (None, trained.resnet(depth))
            )
            rows.append(Row(f"resnet{depth}", sparsity, k, before, own, moved))
            bars("networks", number + 1, len(wanted))
    shown = table("network", "pruned", "values", "test", "recalibrated", "with reference")
    for row in rows:
        after = [
            ", ".join(f"{share:.2%}" for share in shares)
            for shares in (row.recalibrated, row.with_reference)
        ]
        shown.add_row(row.network, f"{row.sparsity:.0%}", str(row.k), f"{row.test:.2%}", *after)
    show(shown)
    dense = {f"resnet{d}": evaluate(trained.resnet(d), test, accuracy) for d in (20, 56)}
    timing.write(
        "recalibration",
        timing.environment()
        | {
            "images": IMAGES,
            "seeds": SEEDS,
            "dense": dense,
            "table": [asdict(row) for row in rows],
        },
    )
    plot(rows, timing.HERE / "record" / "recalibration.svg")


if __name__ == "__main__":
    main()
