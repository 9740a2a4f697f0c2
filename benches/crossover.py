"""Which layout multiplies fastest: from which sparsity on, at which batch, for which layer.

::

    linear layers 512 × 512 and 4096 × 4096, 3 × 3 convolutions 64 → 64 on 32 × 32 and
    512 → 512 on 4 × 4, k = 32, 0 … 99 % sparse, batch 1, 8, 32
    packed made for speed, sell (linear layers), packed made for size, coded, dense, and torch's
    dense product

Each answer is checked against one in float64 before anything is timed. One thread.

    python benches/crossover.py          writes benches/record/crossover_(instruction set).json
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import timing
import torch
from torch.nn import functional as F

from tersenet import CompressedMatrix

SPARSITIES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
BATCHES = (1, 8, 32)
# Outputs, inputs, and the height and width of the input of 3 x 3 kernels.
LAYERS = ((512, 512, None), (4096, 4096, None), (64, 64, 32), (512, 512, 4))
FORMS = (
    ("packed for speed", "packed", "speed"),
    ("sell", "sell", "speed"),
    ("packed for size", "packed", "size"),
    ("coded", "coded", "size"),
    ("dense", "dense", "speed"),
)
ONES = (1, 1)


def measure(rows: int, channels: int, size: int | None, sparsity: float, batch: int) -> Any:
    """One layer at one sparsity and batch: bytes, milliseconds, and the fastest form."""
    rng = np.random.default_rng(0)
    taps = None if size is None else 9
    codebook = np.sort(rng.standard_normal(32)).astype(np.float32)
    weights = codebook[rng.integers(0, 32, (rows, channels * (taps or 1)))]
    weights[rng.random(weights.shape) < sparsity] = 0
    shape = (batch, channels) if size is None else (batch, channels, size, size)
    x = rng.standard_normal(shape).astype(np.float32)
    product, multiply = torch_products(weights, size)
    plain = torch.from_numpy(x)
    exact = product(plain.double(), torch.from_numpy(weights).double()).numpy()
    total = product(plain.double().abs(), torch.from_numpy(weights).double().abs()).numpy()
    calls: dict[str, Callable[[], Any]] = {"torch": lambda: multiply(plain)}
    nbytes = {"torch": 4 * weights.size}
    forms = [form for form in FORMS if size is None or form[1] != "sell"]
    for name, layout, goal in forms:
        matrix = CompressedMatrix.compress(weights, layout=layout, goal=goal, taps=taps)
        run = ours(matrix, x, size)
        if not (np.abs(run() - exact) <= (weights.shape[1] + 2) * 2.0**-24 * total).all():
            raise AssertionError(f"{name}: a wrong product")
        calls[name], nbytes[name] = run, matrix.nbytes
    chosen = CompressedMatrix.compress(weights, goal="speed", taps=taps)
    with torch.inference_mode():
        times = timing.interleaved(calls)
    return {
        "rows": rows,
        "channels": channels,
        "size": size,
        "sparsity": sparsity,
        "batch": batch,
        "nbytes": nbytes,
        "times": times,
        "fastest": min(times, key=lambda name: times[name]["best_ms"]),
        "chosen_for_speed": chosen.layout,
    }


def torch_products(weights: np.ndarray, size: int | None) -> tuple[Any, Any]:
    """Return torch's product of any input and weights, and one with these weights."""
    if size is None:
        dense = torch.from_numpy(weights)
        return F.linear, lambda x: F.linear(x, dense)

    def kernels(flat: torch.Tensor) -> torch.Tensor:
        return flat.reshape(len(weights), -1, 3, 3)

    fixed = kernels(torch.from_numpy(weights)).contiguous(memory_format=torch.channels_last)
    return (
        lambda x, flat: F.conv2d(x, kernels(flat), padding=1),
        lambda x: F.conv2d(x, fixed, padding=1),
    )


def ours(matrix: CompressedMatrix, x: np.ndarray, size: int | None) -> Callable[[], np.ndarray]:
    """Return the product of a matrix with x as a call."""
    if size is None:
        return lambda: matrix.matmul(x, threads=1)
    return lambda: matrix.conv(x, (3, 3), ONES, (ONES, ONES), ONES, 1, threads=1)


def main() -> None:
    """Measure everything, print a table, write the record."""
    torch.set_num_threads(1)
    record: dict[str, Any] = timing.environment() | {"cases": []}
    for rows, channels, size in LAYERS:
        layer = f"{channels} to {rows}" + ("" if size is None else f", {size} x {size}")
        for batch in BATCHES:
            for sparsity in SPARSITIES:
                case = measure(rows, channels, size, sparsity, batch)
                record["cases"].append(case)
                times = "  ".join(f"{n} {t['best_ms']:.3f}" for n, t in case["times"].items())
                print(f"{layer}, batch {batch:2}, {sparsity:.0%}: {times}; {case['fastest']}")
    timing.write_speed("crossover", record)


if __name__ == "__main__":
    main()
