"""States of a masked model in a folder, so that an interrupted run goes on where it was.

A state is the masks, the tensors of the model, a number that the run wants back, and a digest of
what the run started from, so that a state of another run is refused rather than taken. Files appear
under their name only when all of them is written; they are read without unpickling code.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersenet.parametrization import masks, targets
from tersenet.plan import Plan, Rule
from tersenet.pruning.masking import put
from tersenet.replacing import Replacing

State = dict[str, Any]


class Folder:
    """The states of one run, each under a name."""

    def __init__(self, path: Path, run: str, start: nn.Module, method: str) -> None:
        """Make the folder where it is not there.

        Args:
            path: of the folder.
            run: whatever decides what the run does.
            start: the model that it starts from.
            method: the name that errors begin with.

        Raises:
            OSError: if it cannot be made.
        """
        path.mkdir(parents=True, exist_ok=True)
        self._path, self._method = path, method
        self._run = digest_of(start.state_dict(), run)

    def save(self, name: str, model: nn.Module, value: float = 0.0) -> None:
        """Write the state of a model, and a number with it.

        Raises:
            OSError: if it cannot be written.
        """
        with Replacing(self._path / f"{name}.pt") as file:
            torch.save({"run": self._run, "value": value, **state_of(model)}, file)

    def load(self, name: str, model: nn.Module) -> float | None:
        """Put a state that was saved under the name into the model; return its number.

        Returns None, and leaves the model alone, where there is none.

        Raises:
            ValueError: if the state is no such file, or of another run.
        """
        path = self._path / f"{name}.pt"
        if not path.exists():
            return None
        try:
            state = torch.load(path, weights_only=True)
            run, value = state["run"], float(state["value"])
        except Exception as error:
            raise ValueError(
                f"{self._method}: checkpoint {path} cannot be read: {error}"
            ) from error
        if run != self._run:
            raise ValueError(
                f"{self._method}: checkpoint {path} is of another run, expected one with the same "
                "model, plans, options and seed (take another folder, or remove this one)"
            )
        put_state(model, state)
        return value


def digest_of(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return a digest of a text and of named tensors, to the bit."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def state_of(model: nn.Module) -> State:
    """Return the masks of a model by layer name, and its tensors."""
    return {"masks": masks(model), "tensors": model.state_dict()}


def put_state(model: nn.Module, state: State) -> None:
    """Mask a model of the same architecture and give it the tensors; parameters stay the same."""
    found: dict[str, Tensor] = state["masks"]
    if found:
        plan = Plan({glob.escape(name): Rule(sparsity=0.0) for name in found})
        for target in targets(model, plan):
            put(target, found[target.name].clone())
    model.load_state_dict(state["tensors"])
