"""Progressive ADMM beside one-shot magnitude pruning and one round of ADMM, three seeds each.

::

    for each seed: dense LeNet-5; its narrower network; from it, to 71 and to 170 times fewer weights
        one-shot magnitude, then training
        prune_admm in one round
        prune_admm in rounds                                         # progressive

All of `admm_lenet5`, where the page says how: of a seed and a level the three begin with the same
network, keep as many weights of each layer, and train for as many epochs of the same images. Nothing
is chosen by any of them; the test images are only reported.

    TERSENET_DATA=… TERSENET_CACHE=… PYTHONPATH=benches python benches/paper/admm_seeds.py [seed…]
    writes benches/record/admm_seeds.json

Finished stages stay in TERSENET_CACHE and are not run again. With seeds only these are run, and nothing
is written.

Source: Ye et al. 2018, "Progressive weight pruning of deep neural networks using ADMM".
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timing
import torch
from admm_lenet5 import BASELINES, Bench
from cache import Cache

from tersenet.console import progress, show, table

SEEDS = (0, 1, 2)
COMPARED = ("71", "167")  # levels
PROGRESSIVE = "progressive"


def compared(bench: Bench) -> list[dict[str, Any]]:
    """Return the rows of one seed."""
    rows = [asdict(bench.row("dense", bench.dense, bench.dense_seconds)) | {"level": None}]
    for level in COMPARED:
        found = {name: bench.baseline(name, level) for name in BASELINES}
        found[PROGRESSIVE] = bench.level(level)
        rows += [asdict(bench.row(name, *of)) | {"level": level} for name, of in found.items()]
    return [{"seed": bench.seed} | row for row in rows]


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return test accuracies of each method, and progressive less the others by seed, in points."""

    def tests(name: str, level: str | None = None) -> list[float]:
        return [100 * r["test"] for r in rows if (r["level"], r["name"]) == (level, name)]

    def summary(of: list[float]) -> dict[str, float]:
        return {"mean_percent": statistics.mean(of), "deviation_points": statistics.stdev(of)}

    found: dict[str, Any] = {"dense": summary(tests("dense"))}
    for level in COMPARED:
        methods = {name: tests(name, level) for name in (*BASELINES, PROGRESSIVE)}
        found[level] = {name: summary(of) for name, of in methods.items()}
        for name in BASELINES:
            gains = [a - b for a, b in zip(methods[PROGRESSIVE], methods[name], strict=True)]
            found[level][f"{PROGRESSIVE}_minus_{name}_points"] = gains
    return found


def main() -> None:
    """Run the seeds that are named, or all of them and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", nargs="*", type=int, metavar="seed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    root = Path(os.environ.get("TERSENET_CACHE") or ".cache", "admm_seeds")
    rows: list[dict[str, Any]] = []
    with progress() as bars:
        for seed in arguments.seeds or SEEDS:

            def advance(what: str, done: int, total: int, seed: int = seed) -> None:
                bars(f"seed {seed}: {what}", done, total)
                if not sys.stderr.isatty():
                    print(
                        f"{time.strftime('%X')} {seed} {what}: {done} of {total}", file=sys.stderr
                    )

            rows += compared(Bench(Cache(root / f"{seed}"), advance, seed))
    shown = table("seed", "level", "network", "kept", "validation", "test", "CPU s")
    for row in rows:
        shares = [f"{row[part]:.2%}" for part in ("validation", "test")]
        which = (str(row["seed"]), str(row["level"] or ""), row["name"])
        shown.add_row(
            *which, f"{sum(row['kept'].values()):,}", *shares, f"{row['cpu_seconds']:.0f}"
        )
    show(shown)
    if arguments.seeds:
        return
    found = figures(rows)
    print(found)
    timing.write("admm_seeds", timing.environment() | {"figures": found, "table": rows})


if __name__ == "__main__":
    main()
