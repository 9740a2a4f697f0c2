"""Whole networks from compressed weights beside torch, ONNX Runtime and OpenVINO.

VGG19 for 32 x 32 images (made weights) and ResNet-20 and -56 (their real weights), pruned by
magnitude to 80, 90 and 95 % in each layer, 32 shared values a layer. The dense runtimes compute
with the same pruned weights. Every answer is checked against torch in float64 before anything is
timed: the error of ours must be at most 4 times that of torch in float32, that of the others in
float32 at most 32 times, and int8 must say something of the answer.

    TERSENET_DATA=… python benches/compare.py [vgg19 resnet20 resnet56]
                                            writes benches/record/compare_(instruction set).json
"""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import numpy as np
import peers
import timing
import torch
import trained
from torch import nn

import tersenet

SPARSITIES = (0.8, 0.9, 0.95)
BATCHES = (1, 32)
OURS = ("compressed", "packed", "cached", "dense")


def model_of(name: str) -> nn.Module | None:
    """The network called `name`; None, with a message, where its data is not there."""
    torch.manual_seed(0)
    if name == "vgg19":
        return networks.VGG().eval()
    if not trained.data().is_dir():
        print(f"TERSENET_DATA names no folder: {name} is left out", file=sys.stderr)
        return None
    return trained.resnet(int(name.removeprefix("resnet")))


def measure(name: str, model: nn.Module, sparsity: float, folder: Path) -> dict[str, Any]:
    """One network at one sparsity: file and resident bytes, and times at each batch."""
    plan = tersenet.Plan.of(sparsity=sparsity, quantizer="cws", k=32)
    small = tersenet.compress(copy.deepcopy(model), plan)
    dense = tersenet.decompress(small).eval()
    example = torch.zeros(2, 3, 32, 32)
    files = {"size": folder / f"{name}-size.terse", "speed": folder / f"{name}-speed.terse"}
    tersenet.export(small, example, files["size"], goal="size")
    tersenet.export(small, example, files["speed"], goal="speed")
    load = tersenet.Network.load
    ours = {
        "compressed": load(files["size"], resident="compressed"),
        "packed": load(files["speed"], resident="compressed"),
        "cached": load(files["size"], resident="cached"),
        "dense": load(files["size"], resident="dense"),
    }
    numbers = sum(parameter.numel() for parameter in dense.parameters())
    row: dict[str, Any] = {
        "network": name,
        "sparsity": sparsity,
        "dense_nbytes": 4 * numbers,
        "file_nbytes": {goal: path.stat().st_size for goal, path in files.items()},
        "file_percent": {g: 25 * p.stat().st_size / numbers for g, p in files.items()},
        "layouts": sorted({layout for _, layout, _ in ours["compressed"].layers()}),
        "batches": {},
    }
    for batch in BATCHES:
        rng = np.random.default_rng(batch)
        x = rng.standard_normal((batch, 3, 32, 32)).astype(np.float32)
        row["batches"][batch] = compare(dense, ours, x)
    row["resident_nbytes"] = {form: network.nbytes for form, network in ours.items()}
    row["memory"] = {
        form: memory(files["speed" if form == "packed" else "size"], form) for form in OURS
    }
    return row


# Bytes of memory in use before a network is loaded, after, and after runs of one image: what a
# process with NumPy alone has, without the pages of the file that the system keeps. The peak has
# these, and is of loading and of running.
_MEMORY = """
import sys, numpy, tersenet
def read(path, name):
    with open("/proc/self/" + path) as file:
        return 1024 * sum(int(l.split()[1]) for l in file if l.startswith(name))
def peak():
    found = read("status", "VmHWM:") - resident
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    return found
nbytes = lambda: read("smaps_rollup", "Anonymous:")
x = numpy.ones((1, 3, 32, 32), numpy.float32)
resident, before = read("status", "VmRSS:"), nbytes()
peak()
network = tersenet.Network.load(sys.argv[1], resident=sys.argv[2])
loaded, loading = nbytes(), peak()
for _ in range(3):
    network.run(x, threads=1)
print(loaded - before, nbytes() - before, loading, peak(), network.nbytes)
"""


def memory(path: Path, form: str) -> dict[str, int] | None:
    """What a process grows by when it loads a network and runs it; None where Linux is not."""
    if not Path("/proc/self/smaps_rollup").exists():
        return None
    resident = "compressed" if form == "packed" else form
    command = [sys.executable, "-c", _MEMORY, str(path), resident]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names = ("loaded", "running", "loading_peak", "running_peak", "weights")
    found = zip(names, map(int, done.stdout.split()), strict=True)
    return {f"{name}_nbytes": count for name, count in found}


def difference(answer: Any, exact: np.ndarray) -> tuple[float, float]:
    """The largest difference, and that of all numbers over their norm."""
    apart = np.asarray(answer, np.float64) - exact
    return float(np.abs(apart).max()), float(np.linalg.norm(apart) / np.linalg.norm(exact))


def compare(dense: nn.Module, ours: dict[str, Any], x: np.ndarray) -> dict[str, Any]:
    """Milliseconds of everything on one thread, of ours on two as well, and the ratios."""
    with torch.inference_mode():
        exact = copy.deepcopy(dense).double()(torch.from_numpy(x).double()).numpy()
        torch_error = np.abs(dense(torch.from_numpy(x)).numpy() - exact).max()
        errors = {form: float(np.abs(net.run(x) - exact).max()) for form, net in ours.items()}
        if max(errors.values()) > 4 * torch_error:
            raise AssertionError(f"errors {errors}, torch's own is {torch_error}")
        calls: dict[str, Callable[[], Any]] = peers.torch_runs(dense, x)
        calls |= peers.onnx_runs(dense, x, threads=1)
        found = {name: difference(call(), exact) for name, call in calls.items()}
        for peer, (most, relative) in found.items():
            if relative > 0.5 or ("int8" not in peer and most > 32 * torch_error):
                raise AssertionError(f"{peer} is off by {most}, {relative:.0%} of the answer")
        for form, network in ours.items():
            calls[form] = lambda network=network: network.run(x, threads=1)
            if form in ("compressed", "cached"):
                calls[f"{form}, 2 threads"] = lambda network=network: network.run(x, threads=2)
        times = timing.interleaved(calls)
    median = {name: time["median_ms"] for name, time in times.items()}
    best_torch = min(time for name, time in median.items() if name.startswith("torch"))
    int8 = [time for name, time in median.items() if "int8" in name]
    return {
        "times": times,
        "torch_error": float(torch_error),
        "errors": errors | {name: most for name, (most, _) in found.items()},
        "against_torch": {form: best_torch / median[form] for form in OURS},
        "against_int8": {form: min(int8) / median[form] for form in OURS} if int8 else {},
        "two_threads": {f: median[f] / median[f"{f}, 2 threads"] for f in ("compressed", "cached")},
        "compressed_over_packed": median["compressed"] / median["packed"],
    }


def main() -> None:
    """Measure the networks named on the command line, or all; print tables; write the record."""
    torch.set_num_threads(1)
    names = sys.argv[1:] or ["vgg19", "resnet20", "resnet56"]
    record: dict[str, Any] = timing.environment() | {"networks": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            model = model_of(name)
            for sparsity in SPARSITIES if model is not None else ():
                row = measure(name, model, sparsity, Path(folder))
                record["networks"].append(row)
                percents = ", ".join(f"{g} {p:.2f} %" for g, p in row["file_percent"].items())
                print(f"\n{name}, {sparsity:.0%} sparse: file for {percents} of dense f32")
                for form, found in row["memory"].items():
                    if found is not None:
                        print(f"  {form:12} {found}")
                for batch, result in row["batches"].items():
                    for label, time in result["times"].items():
                        print(f"  batch {batch:2}  {label:24} {time['median_ms']:9.3f} ms")
                    for key in ("against_torch", "against_int8", "two_threads"):
                        ratios = "  ".join(f"{n} {r:.2f} x" for n, r in result[key].items())
                        print(f"  batch {batch:2}  {key:24} {ratios}")
    timing.write_speed("compare", record)


if __name__ == "__main__":
    main()
