"""What the stages of a bench leave in a folder, so that a finished stage is not run again.

A stage may have run on another device than the next: rows say which.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from devices import CPU, name_of
from torch import nn

from tersenet.pruning.resuming import put_state, state_of
from tersenet.replacing import Replacing


class Cache:
    """Networks after each stage, and the seconds that each took when it ran; rows of results."""

    def __init__(self, folder: Path, device: torch.device = CPU) -> None:
        """Make the folder; what is not there yet is worked out on the device."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.device = folder, device

    def stage(self, name: str, model: nn.Module, work: Callable[[], object]) -> np.ndarray:
        """Work on a model, or give it what the work left once; return seconds: wall and CPU."""
        path = self.folder / f"{name}.pt"
        if path.exists():
            state = torch.load(path, weights_only=True, map_location=CPU)
            put_state(model, state)
        else:
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
            state = {**state_of(model), "seconds": seconds}
            with Replacing(path) as file:
                torch.save(state, file)
        return np.array(list(state["seconds"].values()))

    def has_stage(self, name: str) -> bool:
        """Return whether what a stage left is there."""
        return (self.folder / f"{name}.pt").exists()

    def rows(self, name: str, work: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Return the rows that the work gives, or gave once; with its CPU seconds and device in each."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            start = time.process_time()
            rows = work()
            seconds = time.process_time() - start
            told = {"stage_cpu_seconds": seconds, "device": name_of(self.device)}
            text = json.dumps([row | told for row in rows])
            with Replacing(path) as file:
                file.write(text.encode())
        found: list[dict[str, Any]] = json.loads(path.read_text())
        return found

    def has_rows(self, name: str) -> bool:
        """Return whether rows of that name are there."""
        return (self.folder / f"{name}.json").exists()
