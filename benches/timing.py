"""What every bench shares: calls timed in turn, where it ran, and where the record goes."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

from tersenet import _core

HERE = Path(__file__).parent
ROUNDS = 9


def interleaved(
    calls: dict[str, Callable[[], Any]], rounds: int = ROUNDS
) -> dict[str, dict[str, float]]:
    """Return the best and the median milliseconds of each call, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {n: {"best_ms": min(t), "median_ms": float(np.median(t))} for n, t in times.items()}


def cpu_name() -> str:
    """Return what the maker calls this machine's processor, where the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """Return the CPU, the instruction set, the versions and the commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return {
        "cpu": cpu_name(),
        "simd": _core.SIMD,
        "threads": torch.get_num_threads(),
        "versions": {
            "tersenet": _core.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            **_installed(),
        },
        "commit": commit.stdout.strip(),
    }


def _installed() -> dict[str, str]:
    """Return the versions of peers that a bench may take, where they are there."""
    found = {}
    for name in ("onnxruntime", "openvino", "scikit-learn"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def write_speed(name: str, record: dict[str, Any]) -> None:
    """Write a record of speeds under its fixed name and that of the instruction set."""
    write(f"{name}_{_core.SIMD}", record)


def read_speed(name: str, simd: str) -> dict[str, Any]:
    """Return the record of speeds of an instruction set."""
    found: dict[str, Any] = json.loads((HERE / f"record/{name}_{simd}.json").read_text())
    return found


def write(name: str, record: dict[str, Any]) -> None:
    """Write a record under its fixed name."""
    folder = HERE / "record"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
