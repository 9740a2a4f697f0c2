"""Export a torch model to a file that runs without torch.

::

    model ──tracing──▶ ATen operators ──lowering──▶ graph ──fusing──▶ graph ──storing──▶ .terse

`operators` has a function for each ATen operator; `tersenet.Network` runs the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tersenet.exporting import operators
from tersenet.exporting.fusing import fuse
from tersenet.exporting.lowering import LOWERINGS, lower
from tersenet.exporting.storing import store
from tersenet.exporting.tracing import traced
from tersenet.files import check_level

if TYPE_CHECKING:
    from tersenet._core import Goal
    from tersenet.files import Level, Path

__all__ = ["export", "operators"]


def export(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    path: Path,
    *,
    goal: Goal | None = None,
    metadata: Mapping[str, str] | None = None,
    level: Level = "best",
) -> int:
    """Write a model to a file that `tersenet.Network` runs without torch; return the bytes.

    The model is traced in evaluation mode, for any batch: dimension 0 of each input. A compressed
    layer is stored as it is; a plain weight with at most 65,536 distinct values is compressed
    where that is smaller. Batch norms, biases and activations go into the layers before them,
    without a change to a weight.

    Args:
        model: plain or compressed, on the CPU, in float32; it stays as it was.
        example_input: an input, or a tuple of all inputs; float32, or integers for embeddings, of
            any width: the file takes ids as int64.
        path: where to; `.terse` is the usual ending.
        goal: "size" or "speed" gives matrices the layout that is best for it; None keeps those of
            compressed layers, and compresses others for size.
        metadata: strings of your own, stored with it.
        level: of archives, for the goal "size": see `tersenet.save`.

    Raises:
        OSError: if the file cannot be written; the old one is still there.
        ValueError: if the model cannot be traced, or has an operator without a counterpart (it
            says which, where, and what there is).

    Examples:
        >>> model = nn.Sequential(nn.Linear(20, 10), nn.ReLU())
        >>> export(model, torch.zeros(1, 20), "model.terse")  # doctest: +SKIP
    """
    if goal not in (None, "size", "speed"):
        raise ValueError(f"export: goal is {goal!r}, expected 'size', 'speed' or None")
    check_level("export", goal, level)
    with torch.no_grad():
        graph, weights = lower(model, traced(model, example_input, LOWERINGS.keys()))
        fuse(graph, weights)
        return store(graph, path, goal, metadata, level)
