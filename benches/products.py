"""Products of `packed` made for speed, of `sell` and of `coded`, beside torch (dense, CSR) and SciPy (CSR).

::

    a 4096 × 4096 layer, k = 32, 60 … 99 % sparse   matvec, and linear at batch 1, 8, 32, 128
    answers within the derived bound of a float64 sum, then every call in turns on one thread

Torch's own `linear` with a CSR weight and its product of a CSR matrix with the turned batch are both
timed; the record holds both. TERSENET_SIMD chooses the instruction set.

    python benches/products.py          writes benches/record/products_(instruction set).json
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import timing
import torch

from tersenet import CompressedMatrix

SIZE = 4096
K = 32
SPARSITIES = (0.6, 0.8, 0.9, 0.95, 0.99)
BATCHES = (1, 8, 32, 128)
FORMS = ("packed", "sell", "coded")


def made_layer(sparsity: float) -> np.ndarray:
    """Return a layer of K values at random places."""
    rng = np.random.default_rng(0)
    codebook = np.sort(rng.standard_normal(K)).astype(np.float32)
    weights = codebook[rng.integers(0, K, (SIZE, SIZE))]
    weights[rng.random(weights.shape) < sparsity] = 0
    return weights


def check(weights: np.ndarray, x: np.ndarray, answers: dict[str, np.ndarray]) -> None:
    """Raise unless every answer, [batch, out], is within the derived bound."""
    exact = x.astype(np.float64) @ weights.T.astype(np.float64)
    total = np.abs(x).astype(np.float64) @ np.abs(weights.T).astype(np.float64)
    n = weights.shape[1]
    bound = (n + 2) * 2.0**-24 * total + n * 2.0**-149
    for name, answer in answers.items():
        if not (np.abs(answer - exact) <= bound).all():
            raise AssertionError(f"{name} multiplies wrongly")


def calls(
    weights: np.ndarray, matrices: dict[str, CompressedMatrix], x: np.ndarray
) -> dict[str, Callable[[], Any]]:
    """Return the product with each peer: of a vector at batch 1, else of a batch."""
    dense, batch = torch.from_numpy(weights), torch.from_numpy(x)
    torch_csr, scipy_csr = dense.to_sparse_csr(), scipy.sparse.csr_matrix(weights)
    if len(x) == 1:
        vector, row = batch[0], np.ascontiguousarray(x[0])
        return {
            **{n: lambda m=m: m.matvec(row, threads=1) for n, m in matrices.items()},
            "torch dense": lambda: dense @ vector,
            "torch csr": lambda: torch_csr @ vector,
            "scipy csr": lambda: scipy_csr @ row,
        }
    turned, turned_array = batch.T.contiguous(), np.ascontiguousarray(x.T)
    return {
        **{n: lambda m=m: m.matmul(x, threads=1) for n, m in matrices.items()},
        "torch dense": lambda: torch.nn.functional.linear(batch, dense),
        "torch csr": lambda: torch.nn.functional.linear(batch, torch_csr),
        "torch csr, turned": lambda: (torch_csr @ turned).T,
        "scipy csr, turned": lambda: (scipy_csr @ turned_array).T,
    }


def measure(sparsity: float, batch: int) -> dict[str, Any]:
    """Return one product's times beside its peers'."""
    weights = made_layer(sparsity)
    x = np.random.default_rng(1).standard_normal((batch, SIZE)).astype(np.float32)
    chosen = CompressedMatrix.compress(weights, goal="speed")
    matrices = {name: chosen.to(name, goal="speed") for name in FORMS}
    products = calls(weights, matrices, x)
    check(weights, x, {n: np.asarray(call()).reshape(batch, SIZE) for n, call in products.items()})
    return {
        "shape": weights.shape,
        "sparsity": sparsity,
        "k": K,
        "batch": batch,
        "chosen_for_speed": chosen.layout,
        "nbytes": {name: matrix.nbytes for name, matrix in matrices.items()},
        "products": timing.interleaved(products),
    }


def main() -> None:
    """Measure everything, print a table, write the record."""
    torch.set_num_threads(1)
    cases = []
    for batch in BATCHES:
        for sparsity in SPARSITIES:
            case = measure(sparsity, batch)
            cases.append(case)
            best = {name: times["best_ms"] for name, times in case["products"].items()}
            ours = best.pop("packed")
            peers = "  ".join(
                f"{name} {ms:.3f} ({ms / ours:.1f} times)" for name, ms in best.items()
            )
            print(f"batch {batch:3} at {sparsity:.0%} sparse: {ours:.3f} ms beside {peers}")
    timing.write_speed("products", timing.environment() | {"cases": cases})


if __name__ == "__main__":
    main()
