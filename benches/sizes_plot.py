"""The plot of what `sizes` measured: every form of every layer and network, beside the entropy.

Ratios, since the networks' bytes differ by a factor of a thousand.

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
    "csr": ("v", "0.6"),
    "cser": ("^", "0.6"),
    "hac as published": ("<", "0.6"),
    "shac as published": (">", "0.6"),
    "zipnn": ("+", "tab:brown"),
    "xz -9e": ("x", "tab:green"),
    "zstd -19": ("+", "tab:olive"),
    "NNCodec": ("x", "tab:red"),
    "packed": ("s", "tab:cyan"),
    "coded": ("D", "tab:blue"),
    "archive": ("o", "black"),
}
HOLLOW = "<>^v"
NEAR = 0.88, 1.3


def draw(measured: list[dict[str, Any]], path: Path) -> None:
    """Draw bytes over those of the order-0 entropy: all, and larger what is near it."""
    if compressors.installed("matplotlib") is None:
        return
    import matplotlib

    matplotlib.use("svg" if path.suffix == ".svg" else "agg")
    matplotlib.rcParams |= {"svg.hashsalt": "sizes", "svg.fonttype": "none", "font.size": 8}
    import matplotlib.pyplot as plt

    rows = measured[::-1]
    size = 12, 1.5 + 0.2 * len(rows)
    figure, (whole, near) = plt.subplots(1, 2, sharey=True, figsize=size, layout="constrained")
    for axes in whole, near:
        axes.axvline(1, color="0.4", linewidth=1, label=BESIDE)
        axes.grid(color="0.92")
        for form, style in FORMS.items():
            _mark(axes, rows, form, *style)
    whole.set_xscale("log")
    whole.xaxis.set_major_formatter("{x:g}")
    near.set_xlim(*NEAR)
    whole.set_yticks(range(len(rows)), [found["name"] for found in rows])
    whole.set_ylim(-0.7, len(rows) - 0.3)
    figure.supxlabel(f"bytes / bytes of the {BESIDE} with codebooks", fontsize=9)
    figure.legend(*whole.get_legend_handles_labels(), ncols=6, loc="outside upper center")
    figure.savefig(path, dpi=100, metadata={"Date": None} if path.suffix == ".svg" else None)


def _mark(axes: Any, rows: list[dict[str, Any]], form: str, marker: str, color: str) -> None:
    ratios = [
        (found["forms"][form]["nbytes"] / found["forms"][BESIDE]["nbytes"], height)
        for height, found in enumerate(rows)
        if form in found["forms"]
    ]
    fill = "none" if marker in HOLLOW else color
    style = {"marker": marker, "markersize": 5, "color": color, "markerfacecolor": fill}
    if ratios:
        axes.plot(*zip(*ratios, strict=True), linestyle="none", label=form, zorder=3, **style)


if __name__ == "__main__":
    RECORD = timing.HERE / "record" / "sizes.json"
    draw(json.loads(RECORD.read_text())["measured"], RECORD.with_suffix(".svg"))
