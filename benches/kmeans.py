"""Weight sharing by k-means beside scikit-learn's: squared error and time.

::

    for each trained layer and number of values:
        cws, and KMeans of the same kept weights, started by k-means++ once
        squared error of the weights, of cws over that of KMeans; seconds, the median of some in turns

Both get float32 and cluster the weights that are not 0. The error is summed in float64 from what each
gives. One thread.

    TERSENET_DATA=… python benches/kmeans.py          writes benches/record/kmeans.json
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timing
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from tersenet.checkpoint import open_checkpoint
from tersenet.console import show, table
from tersenet.quantization import cws

LAYERS = (
    ("lenet5_mnist/lenet5_caffe", "ip1.weight"),
    ("resnet_cifar10/resnet56", "layer3.8.conv2.weight"),
    ("kws_hello_edge/dnn_l", "fc2/W"),
)
VALUES = (4, 16, 32, 256)
ROUNDS = 5

F32 = npt.NDArray[np.float32]


def shared(weights: F32, k: int) -> F32:
    """Return each weight's value by `cws`."""
    return cws(weights, k).values()


def clustered(weights: F32, k: int, seed: int) -> F32:
    """Return each weight's value by scikit-learn."""
    found = KMeans(k, n_init=1, random_state=seed).fit(weights[:, None])
    return found.cluster_centers_[found.labels_, 0]


def measure(weights: F32, k: int) -> dict[str, Any]:
    """Return errors and seconds of both, taken in turns, each of KMeans by another seed."""
    seconds: dict[str, list[float]] = {"cws": [], "scikit-learn": []}
    errors: dict[str, list[float]] = {"cws": [], "scikit-learn": []}
    for seed in range(ROUNDS):
        calls: dict[str, Callable[[], F32]] = {
            "cws": partial(shared, weights, k),
            "scikit-learn": partial(clustered, weights, k, seed),
        }
        for name, call in calls.items():
            start = time.perf_counter()
            values = call()
            seconds[name].append(time.perf_counter() - start)
            errors[name].append(float(((values.astype(np.float64) - weights) ** 2).sum()))
    least = min(errors["scikit-learn"])
    return {
        "k": k,
        "weights": weights.size,
        "seconds": {name: statistics.median(found) for name, found in seconds.items()},
        "squared_error": {"cws": errors["cws"][0], "scikit-learn": errors["scikit-learn"]},
        "times_as_fast": statistics.median(seconds["scikit-learn"])
        / statistics.median(seconds["cws"]),
        "error_over_best": errors["cws"][0] / least,
        "error_over_mean": errors["cws"][0] / statistics.mean(errors["scikit-learn"]),
    }


def main() -> None:
    """Measure all layers, print a table, write the record."""
    rows = []
    for checkpoint, layer in LAYERS:
        path = Path(os.environ["TERSENET_DATA"], f"{checkpoint}.safetensors")
        weights = open_checkpoint(path).get(layer).astype(np.float32).ravel()
        weights = weights[weights != 0]
        for k in VALUES:
            with threadpool_limits(1):
                rows.append({"layer": f"{checkpoint}: {layer}"} | measure(weights, k))
    shown = table("layer", "weights", "k", "times as fast", "error, of the best", "of the mean")
    for row in rows:
        shown.add_row(
            row["layer"],
            f"{row['weights']:,}",
            str(row["k"]),
            f"{row['times_as_fast']:.1f}",
            f"{row['error_over_best']:.4f}",
            f"{row['error_over_mean']:.4f}",
        )
    show(shown)
    timing.write("kmeans", timing.environment() | {"rounds": ROUNDS, "table": rows})


if __name__ == "__main__":
    main()
