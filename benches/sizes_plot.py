"""The plot of what `sizes` measured: every form of every layer and network, beside the entropy.

python benches/sizes_plot.py    draws benches/record/sizes.svg from benches/record/sizes.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import compressors
import timing

BESIDE = "order-0 entropy"
# Marker and color of each form; ours are filled.
FORMS = {
    "csr": ("1", "0.6"),
    "cser": ("2", "0.6"),
    "hac as published": ("3", "0.6"),
    "shac as published": ("4", "0.6"),
    "zipnn": ("+", "tab:brown"),
    "xz -9e": ("x", "tab:green"),
    "zstd -19": ("+", "tab:olive"),
    "NNCodec": ("x", "tab:red"),
    "packed": ("s", "tab:cyan"),
    "coded": ("D", "tab:blue"),
    "archive": ("o", "black"),
}


def draw(measured: list[dict[str, Any]], path: Path) -> None:
    """Draw bytes over those of the order-0 entropy, a line for each layer or network."""
    if compressors.installed("matplotlib") is None:
        return
    import matplotlib

    matplotlib.use("svg" if path.suffix == ".svg" else "agg")
    matplotlib.rcParams["svg.hashsalt"] = "sizes"
    import matplotlib.pyplot as plt

    rows = measured[::-1]
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.24 * len(rows)), layout="constrained")
    axes.axvline(1, color="0.4", linewidth=1, label=BESIDE)
    for form, (marker, color) in FORMS.items():
        points = [
            (found["forms"][form]["nbytes"] / found["forms"][BESIDE]["nbytes"], height)
            for height, found in enumerate(rows)
            if form in found["forms"]
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), 30, color, marker, label=form, zorder=3)
    axes.set_xscale("log")
    axes.set_xlabel(f"bytes / bytes of the {BESIDE} with codebooks")
    axes.set_yticks(range(len(rows)), [found["name"] for found in rows], fontsize=8)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.grid(axis="both", color="0.92")
    axes.legend(ncols=6, fontsize=8, loc="lower center", bbox_to_anchor=(0.4, 1), frameon=False)
    figure.savefig(path, dpi=100, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    RECORD = timing.HERE / "record" / "sizes.json"
    draw(json.loads(RECORD.read_text())["measured"], RECORD.with_suffix(".svg"))
