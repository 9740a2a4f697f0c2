"""Bytes and times of every layout, on real pruned layers and on one large made one.

Each layer is a row for each layout: bytes, % of dense f32, seconds to encode and decode, and the
product beside torch (dense and CSR) and SciPy (CSR), interleaved in one process on one thread. The
matrix is decompressed and the product compared with one in float64 before anything is timed.

    TERSENET_DATA=… python benches/layouts.py          writes benches/record/layouts.json
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pruned
import scipy.sparse
import timing
import torch

from tersenet import CompressedMatrix, _core, bounds

CASES = (
    "vgg_vgg19mnist_prune90_k32",
    "vgg_vgg19mnist_prune97_k32",
    "dta_deepdtadavis_prune60_k16",
    "dta_deepdtadavis_prune80_k16",
)


def made_layer(density: float) -> np.ndarray:
    """A 4096 × 4096 layer with 32 values at random places."""
    rng = np.random.default_rng(0)
    codebook = np.sort(rng.standard_normal(32)).astype(np.float32)
    weights = codebook[rng.integers(0, 32, (4096, 4096))]
    weights[rng.random(weights.shape) >= density] = 0
    return weights


def check(weights: np.ndarray, matrix: CompressedMatrix, x: np.ndarray) -> None:
    """Raise unless the matrix is lossless and its product within the derived bound."""
    if not np.array_equal(matrix.decompress().view(np.uint32), weights.view(np.uint32)):
        raise AssertionError(f"{matrix.layout} is not lossless")
    exact = weights.astype(np.float64) @ x
    total = np.abs(weights).astype(np.float64) @ np.abs(x)
    n = weights.shape[1]
    if not (np.abs(matrix.matvec(x) - exact) <= (n + 2) * 2.0**-24 * total + n * 2.0**-149).all():
        raise AssertionError(f"{matrix.layout} multiplies wrongly")


def measure(name: str, weights: np.ndarray) -> dict[str, Any]:
    """One layer in every layout, beside the dense and sparse products of torch and SciPy."""
    x = np.random.default_rng(1).standard_normal(weights.shape[1]).astype(np.float32)
    dense, vector = torch.from_numpy(weights), torch.from_numpy(x)
    torch_csr, scipy_csr = dense.to_sparse_csr(), scipy.sparse.csr_matrix(weights)
    products: dict[str, Callable[[], Any]] = {
        "torch dense": lambda: dense @ vector,
        "torch csr": lambda: torch_csr @ vector,
        "scipy csr": lambda: scipy_csr @ x,
    }
    rows = []
    variants = [(layout, coder, "size", "coded") for layout, coder in _core.PAIRS]
    variants += [(layout, "fixed", "speed", "coded") for layout in ("packed", "grouped")]
    variants += [(layout, "huffman", "size", "raw") for layout in ("hac", "shac")]
    for layout, coder, goal, columns in variants:
        start = time.perf_counter()
        matrix = CompressedMatrix.compress(weights, layout, coder, goal, columns=columns)
        encode = time.perf_counter() - start
        start = time.perf_counter()
        matrix.decompress(threads=1)
        decode = time.perf_counter() - start
        check(weights, matrix, x)
        several = [other for other, _ in _core.PAIRS].count(layout) > 1
        label = (
            layout
            + (f" {coder}" if several else "")
            + {"speed": " for speed"}.get(goal, "")
            + {"raw": " as published"}.get(columns, "")
        )
        products[label] = lambda matrix=matrix: matrix.matvec(x, threads=1)
        rows.append(
            {
                "layout": label,
                "nbytes": matrix.nbytes,
                "row_ends_nbytes": matrix.sections().get("row_ends", 0),
                "percent_of_dense": 100 * matrix.occupancy,
                "encode_s": encode,
                "decode_s": decode,
            }
        )
        print(
            f"{name:32} {label:22} {matrix.nbytes:>10} bytes, encoded in {encode:.2f} s",
            file=sys.stderr,
        )
    times = timing.interleaved(products)
    for row in rows:
        row.update(times[row["layout"]])
    density = float((weights != 0).mean())
    return {
        "name": name,
        "shape": weights.shape,
        "density": density,
        "k": int(np.unique(weights[weights != 0]).size),
        "entropy_percent": 100 * bounds.entropy_bits(weights) / 32 / weights.size,
        "peers": {peer: times[peer] for peer in ("torch dense", "torch csr", "scipy csr")},
        "layouts": rows,
    }


def main() -> None:
    """Measure everything, print a table, write the record."""
    torch.set_num_threads(1)
    layers = pruned.sham_layers(list(CASES))
    if not layers:
        print("TERSENET_DATA is not set: the real layers are left out", file=sys.stderr)
    layers |= {f"made 4096x4096 at {d:.0%} kept": made_layer(d) for d in (0.2, 0.1, 0.05)}
    record = timing.environment() | {
        "layers": [measure(name, weights) for name, weights in layers.items()]
    }
    for layer in record["layers"]:
        peers = "  ".join(f"{peer} {t['median_ms']:.3f} ms" for peer, t in layer["peers"].items())
        print(
            f"\n{layer['name']}: {layer['density']:.1%} kept, k = {layer['k']}, "
            f"order-0 entropy {layer['entropy_percent']:.3f} % of dense\n  {peers}"
        )
        for row in layer["layouts"]:
            print(
                f"  {row['layout']:22} {row['percent_of_dense']:8.3f} %  encode {row['encode_s']:6.2f} s"
                f"  decode {row['decode_s']:6.3f} s  product {row['median_ms']:8.3f} ms"
            )
    timing.write("layouts", record)


if __name__ == "__main__":
    main()
