"""Pruners: which weights stay.

`PRUNERS` is the one place to add a pruner: a function of (arrays, *, sparsity, threshold, scope,
within) that returns a mask for each array, in a module of its own. It ranks magnitudes, or scores
such as `taylor_scores`. `ADMM` and `prune_admm` train toward what a pruner keeps. What needs torch
loads it only when its name is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tersenet.pruning.magnitude import Mask, magnitude_mask, magnitude_masks

if TYPE_CHECKING:
    from tersenet.parametrization import masks, unparametrize
    from tersenet.pruning.admm import ADMM
    from tersenet.pruning.masking import Masked, PrunedLayer, PruningReport, prune
    from tersenet.pruning.progressive import Candidate, ProgressiveReport, Stage, prune_admm
    from tersenet.pruning.soft import SoftPruning
    from tersenet.pruning.taylor import taylor_scores

__all__ = [
    "ADMM",
    "PRUNERS",
    "Candidate",
    "Mask",
    "Masked",
    "ProgressiveReport",
    "PrunedLayer",
    "PruningReport",
    "SoftPruning",
    "Stage",
    "magnitude_mask",
    "magnitude_masks",
    "masks",
    "prune",
    "prune_admm",
    "taylor_scores",
    "unparametrize",
]

PRUNERS: dict[str, Callable[..., dict[str, Mask]]] = {"magnitude": magnitude_masks}


_MODULES = {  # of what needs torch
    "ADMM": "pruning.admm",
    "Candidate": "pruning.progressive",
    "Masked": "pruning.masking",
    "ProgressiveReport": "pruning.progressive",
    "PrunedLayer": "pruning.masking",
    "PruningReport": "pruning.masking",
    "SoftPruning": "pruning.soft",
    "Stage": "pruning.progressive",
    "masks": "parametrization",
    "prune": "pruning.masking",
    "prune_admm": "pruning.progressive",
    "taylor_scores": "pruning.taylor",
    "unparametrize": "parametrization",
}


def __getattr__(name: str) -> Any:
    """Load torch only when a name that needs it is asked for."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"tersenet.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
