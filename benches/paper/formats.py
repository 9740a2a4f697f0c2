"""Bytes and product times of the formats on the authors' own matrices, beside what theory says.

The first dense layers of the networks that the authors of HAC and sHAC pruned and shared, and two
sparse matrices that they compared formats on. Each in CSC, index map, CSER, CLA, HAC and sHAC as
published, and in the layouts of tersenet, with

- the bytes of all that is stored, codebook, header and what a parallel product needs included;
- the upper bound of HAC and sHAC, and what the formulas of CSC and of the index map count;
- the bits of codewords in the authors' own files (their code is that of the whole network, ours the
  matrix's own);
- the product with a vector, on one thread, interleaved with dense and sparse ones of torch and SciPy.

HAC and sHAC are there a second time with their columns and row ends coded. An archive multiplies as the
coded layout that memory holds in its place.

A matrix is decompressed and its product compared with one in float64 before it is timed (`layouts`).

The CSC of the paper's x @ W is the CSR of the transposed W here. The 2020 version of the paper gives
stream bytes that are counted twice; what the files hold is what is shown.

    TERSENET_DATA=… TERSENET_CACHE=… PYTHONPATH=benches python benches/paper/formats.py
    writes benches/record/paper_formats.{json,svg}

Matrices that are measured stay in TERSENET_CACHE.

Source: Marinò, Petrini, Malchiodi and Frasca 2021.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pruned
import scipy.sparse
import timing
import torch
import trained
from cache import Cache

from tersenet import CompressedMatrix, bounds
from tersenet.console import show, table

RECORD = timing.HERE / "record" / "paper_formats.json"
# As they are called here: the paper's name, a marker and a color.
PUBLISHED = {
    "csr": ("CSC", "v", "0.6"),
    "index_map": ("index map", "s", "0.6"),
    "cser": ("CSER", "^", "0.6"),
    "cla": ("CLA", "d", "0.6"),
    "hac as published": ("HAC", "<", "tab:red"),
    "shac as published": ("sHAC", ">", "tab:orange"),
}
OURS = {
    "hac": ("HAC, coded", "<", "tab:red"),
    "shac": ("sHAC, coded", ">", "tab:orange"),
    "packed": ("packed", "s", "tab:cyan"),
    "packed for speed": ("packed for speed", "P", "tab:green"),
    "coded": ("coded", "D", "tab:blue"),
    "grouped fixed": ("grouped", "p", "tab:purple"),
    "grouped fixed for speed": ("grouped for speed", "X", "tab:olive"),
    "grouped tans": ("grouped, coded", "h", "tab:pink"),
    "archive": ("archive", "o", "black"),
}
# Prefixes of what the authors' files hold.
AUTHORS = {"hac as published": "ham", "shac as published": "sham"}


def matrices() -> Iterator[tuple[str, np.ndarray, dict[str, int]]]:
    """Yield a name, weights [out, in], and bits of codewords in the authors' files."""
    for name, weights in pruned.sham_layers([]).items():
        with np.load(trained.data() / "sham_layers" / f"{name}.npz") as stored:
            bits = {name: int(stored[f"{key}_payload_bits"]) for name, key in AUTHORS.items()}
        yield name, weights, {name: n for name, n in bits.items() if n >= 0}
    for path in sorted((trained.data() / "sham_benchmark").glob("*.npz")):
        with np.load(path) as stored:
            values = stored["codebook"][stored["indices"]]
            parts = values, stored["row"].astype(np.int32), stored["colptr"]
            sparse = scipy.sparse.csc_matrix(parts, shape=tuple(stored["shape"]))
        yield path.stem, np.ascontiguousarray(sparse.toarray().T), {}


def measured(name: str, weights: np.ndarray, authors: dict[str, int]) -> dict[str, Any]:
    """Return a matrix's row for each format, and what theory says of it."""
    found = layouts.measure(name, weights)
    (nrows, ncols), nnz, k = weights.shape, int((weights != 0).sum()), found["k"]
    with_zero = k + (nnz < weights.size)
    dense = 4 * weights.size
    theory = {
        "csr": bounds.csr_bits((nrows, ncols), nnz) / 8,
        "index_map": bounds.index_map_bits((nrows, ncols), with_zero) / 8,
        "hac as published": dense * bounds.hac((nrows, ncols), with_zero),
        "shac as published": dense * bounds.shac((nrows, ncols), nnz / weights.size, k),
    }
    for row in found["layouts"]:
        layout = row["layout"]
        if layout in theory:
            row["theory_nbytes"] = theory[layout]
        if layout in AUTHORS:
            matrix = CompressedMatrix.compress(weights, layout.split()[0], columns="raw")
            sections = matrix.sections()
            # The bound and the formula know no header and no row ends for threads.
            row["stream_nbytes"] = sections["stream"]
            row["bounded_nbytes"] = matrix.nbytes - sections["header"] - sections["row_ends"]
            if layout in authors:
                row["authors_stream_bits"] = authors[layout]
    return found


def figures(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians over the matrices: ours beside the best of the published formats."""
    smaller, faster, within = [], [], []
    for matrix in found:
        rows = {row["layout"]: row for row in matrix["layouts"]}
        published = [rows[name] for name in PUBLISHED if name in rows]
        ours = [rows[name] for name in OURS if name in rows]
        smallest = min(published, key=lambda row: row["nbytes"])
        smaller.append(min(row["nbytes"] for row in ours) / smallest["nbytes"])
        quickest = min(row["median_ms"] for row in published)
        faster.append(quickest / min(row["median_ms"] for row in ours))
        within += [
            row["bounded_nbytes"] / row["theory_nbytes"]
            for row in published
            if "bounded_nbytes" in row
        ]
    return {
        "matrices": len(found),
        "smallest_nbytes_of_best_published": statistics.median(smaller),
        "smallest_nbytes_of_best_published_worst": max(smaller),
        "vector_speedup_over_best_published": statistics.median(faster),
        "vector_speedup_over_best_published_worst": min(faster),
        "bounded_nbytes_of_bound_worst": max(within),
    }


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Draw bytes and product times of every format, a line for each matrix."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "formats", "svg.fonttype": "none", "font.size": 8}
    from matplotlib import pyplot

    lines = found[::-1]
    size = 12, 1.5 + 0.22 * len(lines)
    figure, (nbytes, times) = pyplot.subplots(1, 2, sharey=True, figsize=size, layout="constrained")
    for name, (label, marker, color) in (PUBLISHED | OURS).items():
        points = [
            (
                row["percent_of_dense"],
                row["median_ms"] / matrix["peers"]["torch dense"]["median_ms"],
                y,
            )
            for y, matrix in enumerate(lines)
            for row in matrix["layouts"]
            if row["layout"] == name
        ]
        fill = "none" if name in PUBLISHED else color
        style = {"marker": marker, "color": color, "markerfacecolor": fill, "markersize": 5}
        percent, ratios, heights = zip(*points, strict=True)
        nbytes.plot(percent, heights, linestyle="none", label=label, **style)
        times.plot(ratios, heights, linestyle="none", **style)
    for axes in nbytes, times:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(color="0.92")
        axes.axvline(100 if axes is nbytes else 1, color="0.4", linewidth=1)
    nbytes.set_xlabel("bytes, % of dense float32")
    times.set_xlabel("product with a vector / that of dense torch")
    nbytes.set_yticks(range(len(lines)), [matrix["name"] for matrix in lines])
    nbytes.set_ylim(-0.7, len(lines) - 0.3)
    figure.legend(ncols=7, loc="outside upper center")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure every matrix, print a table, write the record and the plot."""
    torch.set_num_threads(1)
    cache = Cache(Path(os.environ.get("TERSENET_CACHE", ".cache")) / "paper_formats")
    found = []
    for name, weights, authors in matrices():
        found += cache.rows(name, lambda w=weights, n=name, a=authors: [measured(n, w, a)])
    if not found:
        raise SystemExit("TERSENET_DATA names no folder with the matrices")
    numbers = figures(found)
    record = timing.environment() | {"figures": numbers, "matrices": found}
    shown = table("figure", "value")
    for name, value in numbers.items():
        shown.add_row(name, f"{value:.3g}")
    show(shown)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    draw(found, RECORD.with_suffix(".svg"))


if __name__ == "__main__":
    main()
