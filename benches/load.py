"""A load test of inference: the same bits at full rate, without errors, without growing.

    python benches/load.py --seconds 600

Eight threads run one shared network on inputs of two batches, each call with one thread of its own or
two; a second process does the same on the same file at the same time. Every result is compared bit by
bit with that of a first call. Writes benches/record/load.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from timing import environment, write
from torch import nn

import tersenet

THREADS = 8
BATCHES = (1, 5)
SAMPLES = 20


def exported(path: Path) -> None:
    """Write a network of convolutions and linear layers, pruned and quantized."""
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
    held = []
    for _ in range(SAMPLES):
        time.sleep(seconds / SAMPLES)
        held.append(resident())
    for worker in workers:
        worker.join()
    return {
        "calls": sum(calls),
        "calls_a_second": round(sum(calls) / seconds, 1),
        "fewest_of_a_thread": min(calls),
        "wrong": sum(wrong),
        "errors": errors,
        "resident_nbytes": held,
        "growth_of_second_half_nbytes": held[-1] - held[SAMPLES // 2 - 1],
        "sum": float(np.sum([y.astype(np.float64).sum() for y in expected])),
    }


def main() -> None:
    """Run both processes and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)  # of the second process
    options = parser.parse_args()
    if options.file:
        print(json.dumps(under_load(options.file, options.seconds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.terse"
        exported(path)
        command = [sys.executable, __file__, "--seconds", str(options.seconds), "--file", str(path)]
        second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes = [under_load(path, options.seconds)]
        answer, _ = second.communicate(timeout=options.seconds + 300)
        processes.append(json.loads(answer))
    record = {**environment(), "seconds": options.seconds, "threads_a_process": THREADS}
    record |= {"same_in_both": processes[0]["sum"] == processes[1]["sum"], "processes": processes}
    write("load", record)
    failed = [p for p in processes if p["errors"] or p["wrong"]]
    sys.exit(1 if failed or not record["same_in_both"] else 0)


if __name__ == "__main__":
    main()
