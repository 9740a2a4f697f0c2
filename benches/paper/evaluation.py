"""One row of the paper's evaluation: a network's linear layers, and all of it, in few bytes.

::

    dense     training; a part of the training examples decides everything
    heads     the table of the linear layers, while the convolutions stay as they are
    wholes    whole networks
    speed     the chosen files beside their dense torch forms; nothing else should compute meanwhile
    record    the record, the plot and, if it is small, the file of the whole network

The test examples are only reported. What is claimed is of the network that does best on the validation
examples, of those with learnt values in no more than a goal's bytes, and of the whole ones within the
published bytes; where it does worse than the dense one on the test examples it is null.

Source: Marinò, Petrini, Malchiodi and Frasca 2021, "Compact representations of convolutional neural
networks via weight pruning and quantization".
"""

from __future__ import annotations

import argparse
import copy
import functools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import heads
import timing
import torch
from cache import Cache
from devices import CPU
from heads import Heads, Row, learnt_name
from stepwise import said
from torch import nn
from wholes import BATCHES, Wholes

from tersenet.console import progress, show, table

STAGES = ("dense", "heads", "wholes", "speed", "record")
ROUNDING = 1e-6  # of a mean of float32; one example of 10,000 counts 100 times that
LARGEST_FILE = 1_500_000  # bytes that are kept beside a record

Key = TypeVar("Key")


@dataclass(frozen=True)
class Benchmark:
    """What a network is measured by, and against."""

    name: str  # of the record
    title: str
    metric: str  # what is reported of a row
    is_error: bool  # less of it is better
    weak: float  # a dense network that does worse has learnt too little
    published: Mapping[str, float]  # dense, fc_occupancy and net_occupancy
    goal: float  # of the linear layers' bytes
    columns: tuple[str, ...] = ()  # what else is shown of a row
    settings: Mapping[str, Any] | None = None
    data: str = ""

    def is_worse(self, found: float, than: float) -> bool:
        """Return whether one value of the metric is worse than another, by more than rounding."""
        by = found - than if self.is_error else than - found
        return by > ROUNDING * abs(than)

    def best(self, rows: Mapping[Key, Row], most: float) -> Key | None:
        """Return which does best on the validation examples, of those of at most so many bytes."""
        small = [key for key, row in rows.items() if row["occupancy"] <= most]
        sign = 1 if self.is_error else -1
        return min(small, key=lambda key: sign * rows[key]["validation"], default=None)


@dataclass
class Evaluation:
    """The stages of one benchmark, on a trained network."""

    benchmark: Benchmark
    net: nn.Module
    seconds: list[float]  # of training it: wall and CPU
    heads: Heads
    wholes: Wholes

    def chosen_head(self) -> tuple[float, int] | None:
        """Return which linear layers are claimed: some whose values were learnt."""
        rows = self.heads.finished
        names = {which: learnt_name(*which) for which in self.heads.learnt_rows()}
        there = {which: rows[name] for which, name in names.items() if name in rows}
        return self.benchmark.best(there, self.benchmark.goal)

    def chosen_whole(self) -> tuple[float, float] | None:
        """Return which whole network is claimed."""
        most = self.benchmark.published["net_occupancy"]
        return self.benchmark.best(self.wholes.finished, most)

    def files(self) -> dict[str, tuple[nn.Module, Path]]:
        """Return the plain networks and the files of what is claimed, "head" and "whole"."""
        nets: dict[str, nn.Module] = {}
        wholes = self.wholes
        if head := self.chosen_head():
            net = wholes.with_head(copy.deepcopy(self.net), self.heads.learnt(*head).fc)
            nets["head"] = wholes.plain(net)
        if whole := self.chosen_whole():
            nets["whole"] = wholes.learnt(*whole)
        folder = self.heads.cache.folder
        return {what: (net.to(CPU), folder / f"{what}.terse") for what, net in nets.items()}

    def speed(self) -> dict[str, Row]:
        """Return bytes and milliseconds of the files of what is claimed."""

        def work() -> list[Row]:
            rows = []
            for what, (net, path) in self.files().items():
                nbytes = self.wholes.export(net, path)
                rows.append(
                    {"what": what, "nbytes": nbytes, "times": self.wholes.speeds(net, path)}
                )
            return rows

        name = f"speed-{self.chosen_head()}-{self.chosen_whole()}"
        return {row["what"]: row for row in self.heads.cache.rows(name, work)}

    @functools.cached_property
    def rows(self) -> list[Row]:
        """All finished rows, the dense one first."""
        return [*self.heads.finished.values(), *self.wholes.finished.values()]

    def figures(self) -> dict[str, Any]:
        """Return what is claimed, or None where the test examples do not bear it out."""
        of, rows = self.benchmark, self.heads.finished
        dense = rows["dense"][of.metric]
        weak = of.is_worse(dense, of.weak)
        found: dict[str, Any] = {"metric_dense": dense, "baseline_weak": weak}
        head, whole = self.chosen_head(), self.chosen_whole()
        claimed = {
            "fc_occupancy": rows[learnt_name(*head)] if head else None,
            "net_occupancy": self.wholes.finished[whole] if whole else None,
        }
        for name, row in claimed.items():
            borne = row is not None and not weak and not of.is_worse(row[of.metric], dense)
            found[name] = row["occupancy"] if row and borne else None
        for name, row in zip(("metric_compressed", "net_metric"), claimed.values(), strict=True):
            found[name] = row and row[of.metric]
        for what, row in self.speed().items():
            for batch in BATCHES:
                ms = {name: row["times"][f"{name}, batch {batch}"] for name in ("torch", "Network")}
                name = f"speedup_batch{batch}" if what == "whole" else f"fc_speedup_batch{batch}"
                found[name] = ms["torch"]["median_ms"] / ms["Network"]["median_ms"]
        return found

    def plot(self, path: Path) -> None:
        """Draw the metric by the bytes of the linear layers, and of whole networks."""
        import matplotlib

        matplotlib.use("svg")
        matplotlib.rcParams |= {"svg.hashsalt": path.stem, "svg.fonttype": "none", "font.size": 8}
        from matplotlib import pyplot

        of = self.benchmark
        figure, axes = pyplot.subplots(figsize=(7, 4.4), layout="constrained")
        dense, *rows = self.rows

        def height(row: Row) -> float:
            return row[of.metric] if of.is_error else 100 * (1 - row[of.metric])

        axes.axhline(height(dense), color="gray", linestyle=":", label="dense")
        methods = dict.fromkeys(row["method"] for row in rows)
        for method, marker in zip(methods, "DPox+*1234v^", strict=False):
            points = [row for row in rows if row["method"] == method]
            axes.plot(
                [100 * row["occupancy"] for row in points],
                [height(row) for row in points],
                marker,
                fillstyle="none",
                label=method,
            )
        published = {of.metric: of.published["dense"]}
        axes.plot(100 * of.published["fc_occupancy"], height(published), "k*", label="published")
        axes.set(
            xscale="log",
            yscale="log",
            ylim=(None, 4 * height(dense)),
            xlabel="of dense float32 bytes, %",
            ylabel="test mean squared error" if of.is_error else "test errors, %",
            title=f"{of.title}: linear layers, and whole networks",
        )
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(path, metadata={"Date": None})

    def shown(self) -> None:
        """Print all rows."""
        columns = ("validation", self.benchmark.metric, *self.benchmark.columns)
        made = table("method", "scope", "pruned", "k", "of dense", *columns)
        for row in self.rows:
            made.add_row(
                row["method"],
                row["scope"] or "",
                f"{row['sparsity']:.1%}",
                str(row["k"] or ""),
                f"{row['occupancy']:.3%}",
                *(f"{row[name]:.4f}" for name in columns),
            )
        show(made)

    def record(self) -> None:
        """Write the record, the plot and the file of the whole network."""
        of, found = self.benchmark, self.figures()
        self.shown()
        print(found)
        folder, name = timing.HERE / "record", f"paper_{of.name}"
        files = self.files()
        _, path = files.get("whole") or files["head"]
        if path.stat().st_size <= LARGEST_FILE:
            (folder / f"{name}.terse").write_bytes(path.read_bytes())
        self.plot(folder / f"{name}.svg")
        settings = self.heads.settings
        timing.write(
            name,
            timing.environment()
            | {
                "seed": heads.SEED,
                "settings": {
                    **(of.settings or {}),
                    "heads": {"lr": settings.lr, "steps": settings.steps},
                    "widths": settings.widths,
                },
                "data": of.data,
                "occupancy": "of the linear weights in a file for size, codebooks as float32; of "
                "whole networks all bytes of the file; over dense float32. Archives are of the "
                "level fast but where units were left out",
                "seconds": "CPU; what rows have in common is in the first of them",
                "parameters": sum(parameter.numel() for parameter in self.net.parameters()),
                "rows_unfinished": len(self.heads.works()) + len(self.wholes) - len(self.rows),
                "dense_seconds": dict(zip(("wall_s", "cpu_s"), self.seconds, strict=True)),
                "published": of.published,
                "figures": found,
                "chosen": {"head": self.chosen_head(), "whole": self.chosen_whole()},
                "speed": self.speed(),
                "devices": sorted({row["device"] for row in self.rows}),
                "rows": [
                    {"seconds" if key == "stage_cpu_seconds" else key: v for key, v in row.items()}
                    for row in self.rows
                ],
            },
        )


def run(
    begin: Callable[..., Evaluation],
    what: str,
    names: Iterable[str],
    page: str,
    *,
    takes_device: bool = False,
) -> None:
    """Run the stages that the command line names, or all, of what `begin` makes of a data set.

    Args:
        begin: trains the dense network, or takes it from the cache.
        what: the network's name, before the data set's in the cache.
        names: the data sets that there are.
        page: the first line says what it is.
        takes_device: whether `begin` trains on the device of its cache, for as long as its argument
            `like` says.
    """
    parser = argparse.ArgumentParser(description=page.splitlines()[0])
    parser.add_argument("name", choices=sorted(names))
    parser.add_argument("stages", nargs="*", choices=[[], *STAGES], metavar="stage")
    parser.add_argument("--threads", type=int, default=1, help="that train (1)")
    if takes_device:
        parser.add_argument("--device", type=torch.device, help="that trains (cpu)")
        kinds = ("cpu", "cuda")
        parser.add_argument("--scale", choices=kinds, help="of which device (that which trains)")
    parser.set_defaults(device=CPU)
    arguments = parser.parse_args()
    like = {"like": arguments.scale or arguments.device.type} if takes_device else {}
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    folder = f"{what}_{arguments.name}" + ("_long" if like.get("like") == "cuda" else "")
    root = Path(os.environ.get("TERSENET_CACHE") or ".cache", folder)
    with progress() as bars:
        evaluation = begin(arguments.name, Cache(root, arguments.device), said(bars), **like)
        works: dict[str, Callable[[], object]] = {
            "dense": lambda: None,
            "heads": evaluation.heads.rows,
            "wholes": evaluation.wholes.rows,
            "speed": evaluation.speed,
            "record": evaluation.record,
        }
        for stage in arguments.stages or STAGES:
            torch.set_num_threads(arguments.threads if stage in ("heads", "wholes") else 1)
            works[stage]()
