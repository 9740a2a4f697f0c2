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
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import timing
import torch
from selfsup_stages import MASKS, OBJECTIVES, ROUNDS, STARTS, TRANSFERS, Bench, Settings, network

from tersenet.console import progress, show, table

STAGES = ("dense", "masks", "transfer", "tickets")
SEEDS = (0, 1, 2)
T_95 = 4.303  # Student's, two-sided 95 %, three seeds


def run(bench: Bench, stages: list[str], seeds: list[int]) -> None:
    """Finish the stages of the seeds."""
    for seed in seeds:
        for objective in OBJECTIVES:
            if "dense" in stages:
                bench.dense(objective, seed)
            if "masks" in stages:
                bench.masks(objective, seed)
        if "transfer" in stages:
            for name in TRANSFERS:
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

    transfers = {name: [bench.transfer(name, seed) for seed in SEEDS] for name in TRANSFERS}
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
    both[1].legend(loc="upper left", bbox_to_anchor=(0, 0.92))
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
    record = timing.environment() | {
        "settings": asdict(settings),
        "seeds": SEEDS,
        "weights": sum(p.numel() for p in network("labels", 0).parameters() if p.dim() > 1),
        "seconds": sum(bench.seconds.values()),  # an interrupted stage: since it went on
        "figures": claims,
    }
    timing.write("selfsup_pruning", record | found)
    plot(found, timing.HERE / "record" / "selfsup_pruning.svg")


if __name__ == "__main__":
    main()
