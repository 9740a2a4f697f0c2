"""A load test of inference: the same bits at full rate, without errors, without growing.

    python benches/load.py --seconds 600

Eight threads run one shared network on inputs of two batches, each call with one thread of its own or
two; a second process does the same on the same file at the same time. Every result is compared bit by
bit with that of a first call. Neither process has torch. Memory is what the system holds for a process,
and what the process has allocated (glibc's mallinfo2): freed pieces between others count in the first
alone. Growth is between the least of two spans of samples, the third fourth of the run and the last.
Writes benches/record/load.json.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import tersenet

THREADS = 8
BATCHES = (1, 5)
SAMPLES = 40


def exported(path: Path) -> None:
    """Write a network of convolutions and linear layers, pruned and quantized."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(64 * 64, 256), nn.ReLU(), nn.Linear(256, 10)),
    ).eval()
    plan = tersenet.Plan.of(sparsity=0.9, quantizer="cws", k=16)
    tersenet.export(tersenet.compress(model, plan), torch.ones(2, 3, 32, 32), path, goal="size")


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def allocated() -> int:
    """Return the bytes that this process has allocated and not freed, in heaps and mappings."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


def growth(held: list[int]) -> int:
    """Return how much more the least of the last fourth is than that of the fourth before."""
    quarter = len(held) // 4
    return min(held[-quarter:]) - min(held[-2 * quarter : -quarter])


def under_load(path: Path, seconds: float) -> dict[str, object]:
    """Run the network in threads for so long; return calls, errors, wrong results and growth."""
    network = tersenet.Network.load(path)
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal((n, 3, 32, 32)).astype(np.float32) for n in BATCHES]
    expected = [network.run(x, threads=1) for x in inputs]
    end = time.perf_counter() + seconds
    calls, wrong, errors = [0] * THREADS, [0] * THREADS, []

    def work(number: int) -> None:
        out = [np.empty_like(y) for y in expected]
        try:
            while time.perf_counter() < end:
                which, threads = calls[number] % 2, 1 + (calls[number] + number) % 2
                into = out[which] if calls[number] % 3 else None
                found = network.run(inputs[which], threads=threads, out=into)
                wrong[number] += found.tobytes() != expected[which].tobytes()
                calls[number] += 1
        except Exception as error:  # noqa: BLE001
            errors.append(repr(error))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for worker in workers:
        worker.start()
    held: dict[str, list[int]] = {"resident": [], "allocated": []}
    for _ in range(SAMPLES):
        time.sleep(seconds / SAMPLES)
        held["resident"].append(resident())
        held["allocated"].append(allocated())
    for worker in workers:
        worker.join()
    return {
        "calls": sum(calls),
        "calls_a_second": round(sum(calls) / seconds, 1),
        "fewest_of_a_thread": min(calls),
        "wrong": sum(wrong),
        "errors": errors,
        **{f"{what}_nbytes": samples for what, samples in held.items()},
        "growth_nbytes": {what: growth(samples) for what, samples in held.items()},
        "sum": float(np.sum([y.astype(np.float64).sum() for y in expected])),
    }


def main() -> None:
    """Run both processes and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)  # of the processes below
    options = parser.parse_args()
    if options.file:
        print(json.dumps(under_load(options.file, options.seconds)))
        return
    from timing import environment, write

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.terse"
        exported(path)
        command = [sys.executable, __file__, "--seconds", str(options.seconds), "--file", str(path)]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        answers = [process.communicate(timeout=options.seconds + 300)[0] for process in both]
        processes = [json.loads(answer) for answer in answers]
    record = {**environment(), "seconds": options.seconds, "threads_a_process": THREADS}
    record |= {"same_in_both": processes[0]["sum"] == processes[1]["sum"], "processes": processes}
    write("load", record)
    failed = [p for p in processes if p["errors"] or p["wrong"]]
    sys.exit(1 if failed or not record["same_in_both"] else 0)


if __name__ == "__main__":
    main()
