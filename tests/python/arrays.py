"""Arrays for tests: few values, most of them zero."""

from __future__ import annotations

import numpy as np


def sparse(nrows: int = 60, ncols: int = 50, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(6).astype(np.float32)
    kept = rng.random((nrows, ncols)) < 0.2
    return np.where(kept, values[rng.integers(0, 6, (nrows, ncols))], np.float32(0))
