"""DeepDTA on DAVIS and on KIBA: linear layers, and whole networks, pruned and with shared values.

::

    dense     training on four of five folds; the fifth decides everything
    heads     the table of the linear layers, while the convolutions stay as they are
    wholes    whole networks
    speed     the chosen files beside their dense torch forms; nothing else should compute meanwhile

The pages of `deepdta_training`, `deepdta_head` and `deepdta_whole` say what each stage does. The test
fold is only reported. What is claimed is of the network that errs least on the validation fold, of those
with learnt values in at most 3.5 % (DAVIS) or 5 % (KIBA) of the linear layers' bytes, and of the whole
ones within the published bytes; where it errs more on the test fold than the dense one it is null.

    TERSENET_DATA=… TERSENET_CACHE=… PYTHONPATH=benches python benches/paper/deepdta.py davis [stage…]
    writes benches/record/paper_deepdta_davis.{json,svg,terse}; likewise kiba

Finished parts of stages stay in TERSENET_CACHE and are not run again. With names of stages only these
are run, and nothing is written but by `record`, which takes the rows that are finished.

Networks have kernels of 4, 6, 8 letters of drugs and 4, 8, 12 residues of proteins, and 32, 64, 96
filters.

Source: Marinò, Petrini, Malchiodi and Frasca 2021, "Compact representations of convolutional neural
networks via weight pruning and quantization"; Öztürk et al. 2018, "DeepDTA".
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import os
from pathlib import Path
from typing import Any, TypeVar

import affinity
import deepdta_head
import deepdta_training
import deepdta_whole
import timing
import torch
from cache import Cache
from deepdta_head import KEPT, LEARNT_KS, Heads, Row
from deepdta_training import SEED, train_dense
from deepdta_whole import BATCHES, Wholes, export, plain, speeds
from networks import DeepDTA
from stepwise import said

from tersenet.console import progress, show, table
from tersenet.pruning.stages import Progress

STAGES = ("dense", "heads", "wholes", "speed", "record")
PUBLISHED = {
    "davis": {"dense_mse": 0.3223, "fc_occupancy": 0.060, "net_occupancy": 0.0544},
    "kiba": {"dense_mse": 0.1756, "fc_occupancy": 0.127, "net_occupancy": 0.0544},
}
WEAK = {"davis": 0.45, "kiba": 0.30}  # errors of a dense network that has learnt too little
GOALS = {"davis": 0.035, "kiba": 0.05}  # of the linear layers' bytes
LEARNT = tuple(itertools.product(KEPT, LEARNT_KS))

Key = TypeVar("Key")


class Bench:
    """The stages of one data set."""

    def __init__(self, name: str, cache: Cache, advance: Progress) -> None:
        """Load the data, and train the dense network."""
        self.name, self.cache = name, cache
        self.data = affinity.load(name)
        torch.manual_seed(SEED)
        self.net = DeepDTA()
        path = cache.folder / "dense-epochs.pt"
        self.seconds = cache.stage(
            "dense", self.net, lambda: train_dense(self.net, self.data, name, path)
        )
        self.net.eval()
        self.advance = advance

    @functools.cached_property
    def heads(self) -> Heads:
        """The compressed linear layers."""
        return Heads(self.net, self.data, self.cache, self.advance)

    @functools.cached_property
    def wholes(self) -> Wholes:
        """The compressed whole networks."""
        return Wholes(self.net, self.heads, self.name)

    def chosen(self, rows: dict[Key, Row], most: float) -> Key | None:
        """Return which errs least on the validation fold, of those of at most so many bytes."""
        small = [key for key, row in rows.items() if row["occupancy"] <= most]
        return min(small, key=lambda key: rows[key]["validation"], default=None)

    def chosen_head(self) -> tuple[float, int] | None:
        """Return which linear layers are claimed: some whose values were learnt."""
        rows = self.heads.finished
        names = {which: f"units-{which[0]:g}-{which[1]}" for which in LEARNT}
        there = {which: rows[name] for which, name in names.items() if name in rows}
        return self.chosen(there, GOALS[self.name])

    def chosen_whole(self) -> tuple[float, float] | None:
        """Return which whole network is claimed."""
        return self.chosen(self.wholes.finished, PUBLISHED[self.name]["net_occupancy"])

    def files(self) -> dict[str, tuple[DeepDTA, Path]]:
        """Return the plain networks and the files of what is claimed, "head" and "whole"."""
        nets = {}
        if head := self.chosen_head():
            net = copy.deepcopy(self.net)
            net.fc = self.heads.learnt(*head).fc
            nets["head"] = plain(net)
        if whole := self.chosen_whole():
            nets["whole"] = self.wholes.learnt(*whole)
        return {what: (net, self.cache.folder / f"{what}.terse") for what, net in nets.items()}

    def speed(self) -> dict[str, Row]:
        """Return bytes and milliseconds of the files of what is claimed."""

        def work() -> list[Row]:
            rows = []
            for what, (net, path) in self.files().items():
                nbytes = export(net, self.data, path)
                times = speeds(net, path, self.data)
                rows.append({"what": what, "nbytes": nbytes, "times": times})
            return rows

        name = f"speed-{self.chosen_head()}-{self.chosen_whole()}"
        return {row["what"]: row for row in self.cache.rows(name, work)}

    def figures(self) -> dict[str, Any]:
        """Return what is claimed, or None where the test fold does not bear it out."""
        rows = self.heads.finished
        dense, weak = rows["dense"], rows["dense"]["mse"] > WEAK[self.name]
        found: dict[str, Any] = {"metric_dense": dense["mse"], "baseline_weak": weak}
        head, whole = self.chosen_head(), self.chosen_whole()
        claimed = {
            "fc_occupancy": rows[f"units-{head[0]:g}-{head[1]}"] if head else None,
            "net_occupancy": self.wholes.finished[whole] if whole else None,
        }
        for name, row in claimed.items():
            borne = row is not None and row["mse"] <= dense["mse"]
            found[name] = row["occupancy"] if borne else None
        for name, row in zip(("metric_compressed", "net_metric"), claimed.values(), strict=True):
            found[name] = row and row["mse"]
        for what, row in self.speed().items():
            for batch in BATCHES:
                of = {name: row["times"][f"{name}, batch {batch}"] for name in ("torch", "Network")}
                name = f"speedup_batch{batch}" if what == "whole" else f"fc_speedup_batch{batch}"
                found[name] = of["torch"]["median_ms"] / of["Network"]["median_ms"]
        return found


def plot(bench: Bench, path: Path) -> None:
    """Draw test errors by the bytes of the linear layers, and of whole networks."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": path.stem, "svg.fonttype": "none", "font.size": 8}
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.4), layout="constrained")
    dense, *others = bench.heads.finished.values()
    axes.axhline(dense["mse"], color="gray", linestyle=":", label="dense")
    rows = [*others, *bench.wholes.finished.values()]
    markers = dict(zip(dict.fromkeys(row["method"] for row in rows), "DPox+*1234v^", strict=False))
    for method, marker in markers.items():
        points = [row for row in rows if row["method"] == method]
        axes.plot(
            [100 * row["occupancy"] for row in points],
            [row["mse"] for row in points],
            marker,
            fillstyle="none",
            label=method,
        )
    published = PUBLISHED[bench.name]
    axes.plot(100 * published["fc_occupancy"], published["dense_mse"], "k*", label="published")
    axes.set(
        xscale="log",
        yscale="log",
        ylim=(None, 4 * dense["mse"]),
        xlabel="of dense float32 bytes, %",
        ylabel="test mean squared error",
        title=f"DeepDTA, {bench.name.upper()}: linear layers, and whole networks",
    )
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, metadata={"Date": None})


def shown(rows: list[Row]) -> None:
    """Print all rows."""
    made = table("method", "scope", "pruned", "k", "of dense", "validation", "test", "concordance")
    for row in rows:
        made.add_row(
            row["method"],
            row["scope"] or "",
            f"{row['sparsity']:.1%}",
            str(row["k"] or ""),
            f"{row['occupancy']:.3%}",
            *(f"{row[name]:.4f}" for name in ("validation", "mse", "ci")),
        )
    show(made)


def record(bench: Bench) -> None:
    """Write the record, the plot and the file of the whole network."""
    rows = [*bench.heads.finished.values(), *bench.wholes.finished.values()]
    found = bench.figures()
    shown(rows)
    print(found)
    folder, name = timing.HERE / "record", f"paper_deepdta_{bench.name}"
    _, path = bench.files().get("whole") or bench.files()["head"]
    (folder / f"{name}.terse").write_bytes(path.read_bytes())
    plot(bench, folder / f"{name}.svg")
    parameters = sum(parameter.numel() for parameter in bench.net.parameters())
    timing.write(
        name,
        timing.environment()
        | {
            "seed": SEED,
            "settings": {
                "dense": {"lr": deepdta_training.LR, "epochs": deepdta_training.EPOCHS[bench.name]},
                "heads": {"lr": deepdta_head.LR, "steps": deepdta_head.STEPS},
                "wholes": {"lr": deepdta_whole.LR, "epochs": deepdta_whole.EPOCHS[bench.name]},
                "lengths": affinity.LENGTHS[bench.name],
                "widths": deepdta_head.WIDTHS,
            },
            "data": f"{len(bench.data.train)} pairs for training, {len(bench.data.validation)} to "
            f"decide, {len(bench.data.test)} reported",
            "occupancy": "of the four linear weights in a file for size, codebooks as float32; of "
            "whole networks all bytes of the file; over dense float32. Archives are of the level "
            "fast but where units were left out",
            "seconds": "of one thread, CPU; what rows have in common is in the first of them",
            "parameters": parameters,
            "rows_unfinished": len(bench.heads.works()) + len(deepdta_whole.ROWS) - len(rows),
            "dense_seconds": dict(zip(("wall_s", "cpu_s"), bench.seconds.tolist(), strict=True)),
            "published": PUBLISHED[bench.name],
            "figures": found,
            "chosen": {"head": bench.chosen_head(), "whole": bench.chosen_whole()},
            "speed": bench.speed(),
            "rows": [
                {"seconds" if key == "stage_cpu_seconds" else key: of for key, of in row.items()}
                for row in rows
            ],
        },
    )


def main() -> None:
    """Run the stages that are named, or all of them and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(PUBLISHED))
    parser.add_argument("stages", nargs="*", choices=[[], *STAGES], metavar="stage")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    root = Path(os.environ.get("TERSENET_CACHE") or ".cache", f"deepdta_{arguments.name}")
    with progress() as bars:
        bench = Bench(arguments.name, Cache(root), said(bars))
        works = {
            "dense": lambda: None,
            "heads": bench.heads.rows,
            "wholes": bench.wholes.rows,
            "speed": bench.speed,
            "record": lambda: record(bench),
        }
        for stage in arguments.stages or STAGES:
            works[stage]()


if __name__ == "__main__":
    main()
