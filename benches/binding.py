"""What binds convolutions and whole networks: a line through the times of the records.

::

    time(density) = fixed + density * multiply-adds / rate

`rate` is what a kept weight costs where there are many, `fixed` what no weight can change: copies of inputs,
starting a row of a strip, sums that leave the registers, the epilogue. The dense rate is that of torch's
fastest form, which is near what the multiply-add unit can do. The last two columns are measured, at a tenth of
the weights: what part of the time is fixed, and how many times as fast as torch it is.

    PYTHONPATH=benches python benches/binding.py [avx512]     reads benches/record, prints a table
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import timing

from tersenet.console import show, table

VGG19_MULTIPLY_ADDS = 398_136_320  # of an image of 32 x 32, convolutions and the linear layer
OURS = {"convolutions": "coded for size", "compare": "compressed"}
TENTH = 0.1


def medians(times: Mapping[str, Any], *names: str) -> float:
    """Return the least median of what has one of the names, in milliseconds."""
    return float(min(times[name]["median_ms"] for name in names))


def line(points: Mapping[float, float]) -> tuple[float, float]:
    """Return the milliseconds at density 0, and for each unit of density."""
    slope, fixed = np.polyfit(list(points), list(points.values()), 1)
    return float(fixed), float(slope)


def told(what: str, multiply_adds: int, dense: float, points: Mapping[float, float]) -> list[str]:
    """Return a row: rates in 10⁹ multiply-adds a second, what is fixed, and the ratios to torch."""
    fixed, slope = line(points)
    rates = [multiply_adds / (ms * 1e6) for ms in (dense, slope)]
    tenth = points[TENTH]
    shares = [f"{rates[1] / rates[0]:.0%}", f"{fixed:.2f}", f"{fixed / tenth:.0%}"]
    return [what, *(f"{rate:.0f}" for rate in rates), *shares, f"{dense / tenth:.1f}"]


def rows(simd: str) -> list[list[str]]:
    """Return a row for each convolution and batch, and for VGG19."""
    found = []
    layers: dict[tuple[int, ...], dict[float, Any]] = {}
    for layer in timing.read_speed("convolutions", simd)["layers"]:
        key = tuple(layer[name] for name in ("channels", "rows", "size", "batch"))
        layers.setdefault(key, {})[layer["density"]] = layer["times"]
    for (channels, outputs, size, batch), by_density in layers.items():
        times = by_density.values()
        dense = min(medians(each, "torch", "torch channels last") for each in times)
        points = {d: medians(each, OURS["convolutions"]) for d, each in by_density.items()}
        name = f"{channels} to {outputs}, {size} x {size}, batch {batch}"
        found.append(told(name, batch * channels * outputs * 9 * size**2, dense, points))
    networks = [
        net for net in timing.read_speed("compare", simd)["networks"] if net["network"] == "vgg19"
    ]
    for batch in ("1", "32"):
        by_density = {round(1 - n["sparsity"], 3): n["batches"][batch]["times"] for n in networks}
        times = by_density.values()
        dense = min(medians(each, "torch", "torch channels last") for each in times)
        points = {d: medians(each, OURS["compare"]) for d, each in by_density.items()}
        name = f"VGG19, batch {batch}"
        found.append(told(name, int(batch) * VGG19_MULTIPLY_ADDS, dense, points))
    return found


def main() -> None:
    """Print the table of an instruction set."""
    simd = sys.argv[1] if sys.argv[1:] else "avx512"
    shown = table(
        "layer", "torch, G/s", "a weight more, G/s", "of torch's", "fixed, ms", "at 90 %", "times"
    )
    for row in rows(simd):
        shown.add_row(*row)
    show(shown)


if __name__ == "__main__":
    main()
