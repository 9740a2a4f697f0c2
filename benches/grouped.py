"""Rows that share a common part: bytes and products of `grouped` beside the layouts without it.

::

    VGG19 on MNIST, fc1 as its authors pruned and shared it    packed, coded, grouped with either
    DeepDTA on DAVIS, fc1, likewise                            inner layout, for size and for speed
    answers within the derived bound of a float64 sum, then a vector and batches in turns

Entries are kept weights that are stored and multiplied: with groups those of common parts once.

    TERSENET_DATA=… python benches/grouped.py          writes benches/record/grouped.json
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import products
import pruned
import timing
import torch

from tersenet import CompressedMatrix

CASES = (
    "vgg_vgg19mnist_prune60_k32",
    "vgg_vgg19mnist_prune80_k256",
    "vgg_vgg19mnist_prune90_k32",
    "vgg_vgg19mnist_prune97_k32",
    "vgg_vgg19mnist_prune99_k32",
    "dta_deepdtadavis_prune60_k16",
)
FORMS = {
    "packed": ("packed", "fixed", "size"),
    "grouped packed": ("grouped", "fixed", "size"),
    "coded": ("coded", "tans", "size"),
    "grouped coded": ("grouped", "tans", "size"),
    "packed for speed": ("packed", "fixed", "speed"),
    "grouped packed for speed": ("grouped", "fixed", "speed"),
}
BATCHES = (1, 8, 32, 128)


def entries(matrix: CompressedMatrix) -> int:
    """Return how many kept weights are stored."""
    if matrix.layout != "grouped":
        return matrix.nnz
    # Of the packed form for speed, a symbol is a byte.
    return matrix.to("grouped", "fixed", "speed").sections()["symbols"]


def call(matrix: CompressedMatrix, x: np.ndarray) -> Callable[[], np.ndarray]:
    """Return the product with a vector where the batch is one, else with the batch."""
    if len(x) == 1:
        return lambda: matrix.matvec(x[0], threads=1)[None]
    return lambda: matrix.matmul(x, threads=1)


def measure(name: str, weights: np.ndarray) -> dict[str, Any]:
    """Return one layer's bytes and times in every form."""
    forms = {form: CompressedMatrix.compress(weights, *how) for form, how in FORMS.items()}
    if any(m.decompress().tobytes() != weights.tobytes() for m in forms.values()):
        raise AssertionError("a form is not lossless")
    rng, times = np.random.default_rng(1), {}
    for batch in BATCHES:
        x = rng.standard_normal((batch, weights.shape[1])).astype(np.float32)
        calls = {form: call(matrix, x) for form, matrix in forms.items()}
        products.check(weights, x, {form: each() for form, each in calls.items()})
        times[batch] = timing.interleaved(calls)
    return {
        "name": name,
        "shape": weights.shape,
        "nnz": forms["packed"].nnz,
        "auto": {g: CompressedMatrix.compress(weights, goal=g).layout for g in ("size", "speed")},
        "forms": {
            form: {
                "nbytes": m.nbytes,
                "entries": entries(m),
                "products": {batch: times[batch][form] for batch in BATCHES},
            }
            for form, m in forms.items()
        },
    }


def main() -> None:
    """Measure everything, print a table, write the record."""
    if not os.environ.get("TERSENET_DATA"):
        sys.exit("TERSENET_DATA names no folder, expected the one that holds sham_layers")
    torch.set_num_threads(1)
    layers = pruned.sham_layers(list(CASES))
    cases = [measure(name, weights) for name, weights in layers.items()]
    for case in cases:
        print(f"{case['name']} {case['shape']}, {case['nnz']} kept, auto {case['auto']}")
        for form, found in case["forms"].items():
            ms = "  ".join(f"{found['products'][batch]['best_ms']:7.3f}" for batch in BATCHES)
            print(f"  {form:26} {found['nbytes']:>9} bytes {found['entries']:>8} entries  {ms} ms")
    timing.write("grouped", timing.environment() | {"cases": cases})


if __name__ == "__main__":
    main()
