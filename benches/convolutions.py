"""Convolutions from compressed kernels beside torch's, at the shapes of VGG's layers.

3 x 3 kernels with 32 values, one thread, batch 1 and 32, the same random input for all, interleaved
in one process; torch in the faster of its two memory formats. Each answer is checked against one in
float64 before anything is timed.

    python benches/convolutions.py          writes benches/record/convolutions_(instruction set).json
"""

from __future__ import annotations

from typing import Any

import numpy as np
import timing
import torch
from torch.nn import functional as F

from tersenet import CompressedMatrix

SHAPES = ((64, 64, 32), (256, 256, 16), (256, 256, 8), (512, 512, 4), (512, 512, 2))
DENSITIES = (0.2, 0.1, 0.05)
BATCHES = (1, 32)
ONES = (1, 1)


def measure(channels: int, rows: int, size: int, density: float, batch: int) -> dict[str, Any]:
    """One layer at one density and batch: milliseconds of torch's forms and of ours."""
    rng = np.random.default_rng(0)
    codebook = np.sort(rng.standard_normal(32)).astype(np.float32)
    weights = codebook[rng.integers(0, 32, (rows, channels * 9))]
    weights[rng.random(weights.shape) >= density] = 0
    kernels = torch.from_numpy(weights.reshape(rows, channels, 3, 3))
    x = torch.from_numpy(rng.standard_normal((batch, channels, size, size)).astype(np.float32))
    last = torch.channels_last
    by_last = x.contiguous(memory_format=last), kernels.contiguous(memory_format=last)
    exact = F.conv2d(x.double(), kernels.double(), padding=1).numpy()
    total = F.conv2d(x.double().abs(), kernels.double().abs(), padding=1).numpy()
    calls = {
        "torch": lambda: F.conv2d(x, kernels, padding=1),
        "torch channels last": lambda: F.conv2d(*by_last, padding=1),
    }
    for goal in ("size", "speed"):
        matrix = CompressedMatrix.compress(weights, goal=goal)

        def ours(matrix: CompressedMatrix = matrix) -> np.ndarray:
            return matrix.conv(x.numpy(), (3, 3), ONES, (ONES, ONES), ONES, 1, threads=1)

        if not (np.abs(ours() - exact) <= (channels * 9 + 2) * 2.0**-24 * total).all():
            raise AssertionError(f"{goal}: the convolution is wrong")
        calls[f"{matrix.layout} for {goal}"] = ours
    with torch.inference_mode():
        times = timing.interleaved(calls)
    best = min(times["torch"]["median_ms"], times["torch channels last"]["median_ms"])
    return {
        "channels": channels,
        "rows": rows,
        "size": size,
        "density": density,
        "batch": batch,
        "times": times,
        "ratios": {n: best / t["median_ms"] for n, t in times.items() if "torch" not in n},
    }


def main() -> None:
    """Measure every layer, print a table, write the record."""
    torch.set_num_threads(1)
    record: dict[str, Any] = timing.environment() | {"layers": []}
    for channels, rows, size in SHAPES:
        for density in DENSITIES:
            for batch in BATCHES:
                row = measure(channels, rows, size, density, batch)
                record["layers"].append(row)
                times = "  ".join(f"{n} {t['median_ms']:.3f}" for n, t in row["times"].items())
                ratios = "  ".join(f"{n} {r:.2f} x" for n, r in row["ratios"].items())
                print(
                    f"{channels:3} to {rows:3}, {size:2} x {size:2}, {density:.0%} kept, "
                    f"batch {batch:2}: ms {times}; against torch {ratios}"
                )
    timing.write_speed("convolutions", record)


if __name__ == "__main__":
    main()
