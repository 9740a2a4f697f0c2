"""Joint pruning and quantization for extreme sparsity: by Taylor scores, by bytes, and for stereo.

::

    scores      LeNet-5, MNIST: Taylor scores against magnitude at 95 % and more, three seeds
    resnet20    ResNet-20, CIFAR-10: the pruning stage alone
    budgets     ResNet-20, CIFAR-10: pruning alone, quantizing alone, both, at equal bytes, three seeds
    stereo      a network of disparities: dense, dense trained longer, compressed to a fiftieth, three seeds

The pages of `joint_classifiers` and `joint_stereo` say what each stage does and what decides in it.

    TERSENET_DATA=… TERSENET_CACHE=… PYTHONPATH=benches python \
        benches/paper/joint_pruning_quantization.py [stage…] [--part 0.02]
    writes benches/record/joint_pruning_quantization.{json,svg}

Finished parts of stages stay in TERSENET_CACHE and are not run again. With names of stages only these
are run, and nothing is written: processes can share the work. `--part` takes that part of all training
for a trial; then nothing is written either.

Source: the title is that of arXiv 2010.01892, of which the abstract is followed: a Taylor score for
pruning and quantization, a pruning stage and a quantization stage, extreme sparsity in dense prediction.
"""

from __future__ import annotations

import argparse
import os
import statistics
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import joint_classifiers
import joint_stereo
import numpy as np
import timing
import torch
from cache import Cache
from joint_classifiers import Classifiers
from joint_stereo import Stereo
from stepwise import said

from tersenet.console import progress, show, table

STAGES = ("scores", "resnet20", "budgets", "stereo")
STEREO_PARTS = ("test", "teddy", "cones")

Rows = list[dict[str, Any]]
Steps = TypeVar("Steps", joint_classifiers.Steps, joint_stereo.Steps)


def scaled(steps: Steps, part: float) -> Steps:
    """Return a part of all steps, at least 16 of each."""
    counts = {field.name: getattr(steps, field.name) for field in fields(steps)}
    return type(steps)(**{name: max(round(part * count), 16) for name, count in counts.items()})


def figures(found: dict[str, Rows]) -> dict[str, float]:
    """Return what the record is about; every test figure is of test examples alone.

    The dense stereo network of a seed is the one of the two, the one that was compressed and the one that
    trained on as long, that the validation stereograms prefer; errors are over its, in the mean of the
    seeds. Bytes are of the whole file, of the seed with the largest. The gain in points is the least of all
    budgets, over the better single way, in the mean of the seeds.
    """
    seeds = {row["seed"]: rows_of(found["stereo"], row["seed"]) for row in found["stereo"]}
    fractions = []
    for rows in seeds.values():
        dense = min((rows["dense"], rows["longer"]), key=lambda row: row["validation"])
        fractions.append(rows["compressed"]["test"] / dense["test"])
    cuts = [
        1 - r["compressed"]["nbytes"] / (4 * r["compressed"]["weights"]) for r in seeds.values()
    ]
    gains = joint_gains(found["budgets"])
    return {
        "memory_cut_fraction": min(cuts),
        "epe_fraction": statistics.mean(fractions),
        "joint_minus_best_single_points": min(statistics.mean(gain) for gain in gains.values()),
    }


def rows_of(stereo: Rows, seed: int) -> dict[str, dict[str, Any]]:
    """Return the networks of a seed by name."""
    return {row["network"]: row for row in stereo if row["seed"] == seed}


def errors_over(stereo: Rows, network: str) -> dict[str, list[float]]:
    """Return the compressed networks' errors over those of another one, for each seed."""
    seeds = [rows_of(stereo, seed) for seed in sorted({row["seed"] for row in stereo})]
    return {
        part: [rows["compressed"][part] / rows[network][part] for rows in seeds]
        for part in STEREO_PARTS
    }


def joint_gains(budgets: Rows) -> dict[int, list[float]]:
    """Return, by budget, the points of both ways over the better single one, for each seed."""
    tests = {(r["seed"], r["budget"], r["method"]): 100 * r["test"] for r in budgets}
    seeds, sizes = ({row[name] for row in budgets} for name in ("seed", "budget"))

    def gain(*which: int) -> float:
        return tests[*which, "joint"] - max(tests[*which, "pruned"], tests[*which, "quantized"])

    return {budget: [gain(seed, budget) for seed in sorted(seeds)] for budget in sorted(sizes)}


def taylor_minus_magnitude(scores: Rows) -> dict[str, dict[str, float]]:
    """Return, by sparsity, the difference of test accuracies over the seeds, in points."""
    found = {}
    for sparsity in joint_classifiers.SPARSITIES:
        taylor, magnitude = (
            np.array(
                [r["test"] for r in scores if (r["sparsity"], r["criterion"]) == (sparsity, name)]
            )
            for name in ("taylor", "magnitude")
        )
        points = 100 * (taylor - magnitude)
        found[f"{sparsity}"] = {
            "mean_points": float(points.mean()),
            "least_points": float(points.min()),
            "most_points": float(points.max()),
        }
    return found


def plot(found: dict[str, Rows], path: Path) -> None:
    """Draw test errors of LeNet-5 by sparsity, of ResNet-20 by bytes, and of stereo."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": path.stem, "svg.fonttype": "none", "font.size": 8}
    from matplotlib import pyplot

    figure, (scores, budgets, stereo) = pyplot.subplots(
        1, 3, figsize=(12, 3.6), layout="constrained"
    )
    for criterion, marker in zip(joint_classifiers.CRITERIA, "xo", strict=True):
        rows = [row for row in found["scores"] if row["criterion"] == criterion]
        pruned = [100 * (1 - row["sparsity"]) for row in rows]
        errors = [100 * (1 - row["test"]) for row in rows]
        scores.plot(pruned, errors, marker, fillstyle="none", label=criterion)
    scores.set(
        xscale="log",
        xlabel="weights kept, %",
        ylabel="test error, %",
        title="LeNet-5, MNIST: 3 seeds",
    )
    kept = [100 * (1 - sparsity) for sparsity in joint_classifiers.SPARSITIES]
    scores.set_xticks(kept, [f"{percent:g}" for percent in kept])
    scores.set_xticks([], minor=True)
    scores.legend()
    for method, marker in (("pruned", "x"), ("quantized", "+"), ("joint", "o")):
        rows = [row for row in found["budgets"] if row["method"] == method]
        sizes = [row["file_nbytes"] / 1000 for row in rows]
        budgets.plot(
            sizes, [100 * row["test"] for row in rows], marker, fillstyle="none", label=method
        )
    dense = next(row["test"] for row in found["resnet20"] if row["method"] == "dense")
    budgets.axhline(100 * dense, color="gray", linestyle=":", label="dense")
    budgets.set(
        xlabel="file, kB",
        ylabel="test accuracy, %",
        title="ResNet-20, CIFAR-10: the same bytes, 3 seeds",
    )
    budgets.legend()
    names = ("dense", "longer", "compressed")
    for place, name in enumerate(names):
        rows = [row for row in found["stereo"] if row["network"] == name]
        errors = [[row[part] for row in rows] for part in STEREO_PARTS]
        at = np.arange(len(STEREO_PARTS)) + 0.27 * (place - 1)
        label = f"{name}, {max(row['nbytes'] for row in rows) / 1000:,.0f} kB"
        ranges = [[statistics.mean(of) - min(of) for of in errors]]
        ranges += [[max(of) - statistics.mean(of) for of in errors]]
        stereo.bar(at, [statistics.mean(of) for of in errors], 0.25, yerr=ranges, label=label)
    stereo.set_xticks(range(len(STEREO_PARTS)), ["stereograms", "teddy", "cones"])
    stereo.set(ylabel="end-point error, pixels", title="stereo disparity: 3 seeds, and their range")
    stereo.margins(y=0.35)  # room for the legend
    stereo.legend()
    figure.savefig(path, metadata={"Date": None})


def shown(name: str, rows: Rows) -> None:
    """Print the rows of a stage."""
    columns = list(rows[0])
    made = table(columns[0], *columns[1:])
    for row in rows:
        made.add_row(*(f"{v:.4g}" if isinstance(v, float) else f"{v}" for v in row.values()))
    print(name)
    show(made)


def main() -> None:
    """Run the stages that are named, or all of them and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", choices=[[], *STAGES], metavar="stage")
    parser.add_argument("--part", type=float, default=1.0, help="of all training, for a trial")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    root = Path(os.environ.get("TERSENET_CACHE") or ".cache", "joint_pruning_quantization")
    cache = Cache(root / f"{arguments.part:g}")
    classifier_steps = scaled(joint_classifiers.Steps(), arguments.part)
    stereo_steps = scaled(joint_stereo.Steps(), arguments.part)
    found: dict[str, Rows] = {}
    with progress() as bars:
        classifiers = Classifiers(cache, said(bars), classifier_steps)
        stereo = Stereo(cache, said(bars), stereo_steps)
        works = {
            "scores": classifiers.scores,
            "resnet20": classifiers.resnet20,
            "budgets": classifiers.budgets,
            "stereo": stereo.rows,
        }
        for name in arguments.stages or STAGES:
            found[name] = works[name]()
    for name, rows in found.items():
        shown(name, rows)
    if arguments.stages:
        return
    wanted = figures(found)
    differences = taylor_minus_magnitude(found["scores"])
    print(wanted, differences, sep="\n")
    if arguments.part != 1:
        return
    plot(found, timing.HERE / "record" / "joint_pruning_quantization.svg")
    timing.write(
        "joint_pruning_quantization",
        timing.environment()
        | {
            "steps": {"classifiers": asdict(classifier_steps), "stereo": asdict(stereo_steps)},
            "data": "stereograms are generated; teddy and cones are real pairs at a third of their "
            "size; the images that decide on CIFAR-10 are the first 1,000 test images, and those "
            "reported the next 4,000",
            "figures": wanted,
            "joint_minus_best_single": joint_gains(found["budgets"]),
            "taylor_minus_magnitude": differences,
            "epe_over_dense": errors_over(found["stereo"], "dense"),
            "epe_over_dense_trained_longer": errors_over(found["stereo"], "longer"),
            "constant_disparity_epe": stereo.constant(),
            **found,
        },
    )


if __name__ == "__main__":
    main()
