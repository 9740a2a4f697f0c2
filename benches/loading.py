"""From a file for size to networks in memory: seconds on one core and on all, and memory at most.

::

    VGG19 for 32 × 32 images, 39 M weights: fc1 as the authors of HAC pruned and shared it (90 %,
    k = 32); all others drawn at random, with rows of different scales, and pruned and shared alike
    a process each time: the network loaded as it is multiplied fastest, and as it is smallest

Made weights have no structure but the scales of their rows, so their file is larger, and decodes
slower, than a trained network's. Linux alone says what a process took at most.

    TERSENET_DATA=… python benches/loading.py          writes benches/record/loading.json
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pruned
import timing
import torch
from networks import VGG

import tersenet
from tersenet.plan import Plan

FORMS = ("cached", "compressed")
ROUNDS = 3
SPARSITY, K = 0.9, 32

# Seconds, what the weights take, and the most bytes that the process grew by.
_LOAD = """
import sys, time, numpy, tersenet
def peak():
    with open("/proc/self/status") as file:
        return 1024 * sum(int(l.split()[1]) for l in file if l.startswith("VmHWM"))
before, start = peak(), time.perf_counter()
network = tersenet.Network.load(sys.argv[1], resident=sys.argv[2])
print(time.perf_counter() - start, network.nbytes, peak() - before)
"""


def vgg19() -> torch.nn.Module:
    """Return the network, compressed."""
    generator = torch.Generator().manual_seed(0)
    model = VGG(hidden=(4096, 4096))
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            scales = torch.randn(len(layer.weight), generator=generator).mul(0.3).exp()
            drawn = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.copy_(drawn * scales.view(-1, *[1] * (drawn.dim() - 1)))
        name = f"vgg_vgg19mnist_prune{SPARSITY * 100:.0f}_k{K}"
        (fc1,) = pruned.sham_layers([name]).values()
        first = next(layer for layer in layers if layer.weight.shape == fc1.shape)
        first.weight.copy_(torch.from_numpy(fc1))
    plan = Plan.of(sparsity=SPARSITY, quantizer="uq", k=K)
    return tersenet.compress(model, plan, inplace=True)


def load(path: Path, form: str, cores: int) -> dict[str, float]:
    """Load a network in a process of its own, on so many cores."""
    command = ["taskset", "-c", f"0-{cores - 1}", sys.executable, "-c", _LOAD, str(path), form]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, nbytes, peak = done.stdout.split()
    return {"seconds": float(seconds), "nbytes": int(nbytes), "peak_nbytes": int(peak)}


def main() -> None:
    """Measure, print and write the record."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vgg19.terse")
        model = vgg19()
        example = torch.zeros(1, 3, 32, 32)
        file_nbytes = tersenet.export(model, example, path, goal="size")
        x = np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32)
        expected = model.eval()(torch.from_numpy(x)).detach().numpy()
        found = tersenet.Network.load(path).run(x)
        assert abs(found - expected).max() <= 1e-4 * abs(expected).max()
        runs: dict[tuple[str, int], list[dict[str, float]]] = {}
        for _ in range(ROUNDS):
            for form in FORMS:
                for count in sorted({1, cores}):
                    runs.setdefault((form, count), []).append(load(path, form, count))
    rows: list[dict[str, Any]] = []
    for (form, count), measured in runs.items():
        seconds = [run["seconds"] for run in measured]
        row = {
            "resident": form,
            "cores": count,
            "median_s": float(np.median(seconds)),
            "best_s": min(seconds),
            "weights_nbytes": measured[0]["nbytes"],
            "peak_nbytes": max(run["peak_nbytes"] for run in measured),
        }
        rows.append(row)
        print(row)
    weights = sum(p.numel() for p in VGG(hidden=(4096, 4096)).parameters() if p.dim() > 1)
    record = {"weights": weights, "file_nbytes": file_nbytes, "loads": rows}
    timing.write("loading", timing.environment() | record)


if __name__ == "__main__":
    main()
