"""Pruners: which weights stay.

`PRUNERS` is the one place to add a pruner: a function of (arrays, *, sparsity, threshold, scope,
within) that returns a mask for each array, in a module of its own. It ranks magnitudes, or scores
such as `taylor_scores`. `ADMM` and `prune_admm` train toward what a pruner keeps, `prune_iteratively`
between its rounds; `copy_masks` gives what they found to another model. What needs torch loads it
only when its name is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tersenet.pruning.magnitude import Mask, magnitude_mask, magnitude_masks

if TYPE_CHECKING:
    from tersenet.parametrization import masks, unparametrize
    from tersenet.pruning.admm import ADMM
    from tersenet.pruning.iterative import IterativeReport, Round, prune_iteratively
    from tersenet.pruning.masking import Masked, PrunedLayer, PruningReport, prune
    from tersenet.pruning.progressive import Candidate, ProgressiveReport, prune_admm
    from tersenet.pruning.rate import RatePruning
    from tersenet.pruning.restarting import reinitialize, reset_parameters, rewind
    from tersenet.pruning.soft import SoftPruning
    from tersenet.pruning.stages import Stage
    from tersenet.pruning.taylor import taylor_scores
    from tersenet.pruning.transferring import copy_masks, random_masks

__all__ = [
    "ADMM",
    "PRUNERS",
    "Candidate",
    "IterativeReport",
    "Mask",
    "Masked",
    "ProgressiveReport",
    "PrunedLayer",
    "PruningReport",
    "RatePruning",
    "Round",
    "SoftPruning",
    "Stage",
    "copy_masks",
    "magnitude_mask",
    "magnitude_masks",
    "masks",
    "prune",
    "prune_admm",
    "prune_iteratively",
    "random_masks",
    "reinitialize",
    "reset_parameters",
    "rewind",
    "taylor_scores",
    "unparametrize",
]

PRUNERS: dict[str, Callable[..., dict[str, Mask]]] = {"magnitude": magnitude_masks}


_MODULES = {  # of what needs torch
    "ADMM": "pruning.admm",
    "Candidate": "pruning.progressive",
    "IterativeReport": "pruning.iterative",
    "Masked": "pruning.masking",
    "ProgressiveReport": "pruning.progressive",
    "PrunedLayer": "pruning.masking",
    "PruningReport": "pruning.masking",
    "RatePruning": "pruning.rate",
    "Round": "pruning.iterative",
    "SoftPruning": "pruning.soft",
    "Stage": "pruning.stages",
    "copy_masks": "pruning.transferring",
    "masks": "parametrization",
    "prune": "pruning.masking",
    "prune_admm": "pruning.progressive",
    "prune_iteratively": "pruning.iterative",
    "random_masks": "pruning.transferring",
    "reinitialize": "pruning.restarting",
    "reset_parameters": "pruning.restarting",
    "rewind": "pruning.restarting",
    "taylor_scores": "pruning.taylor",
    "unparametrize": "parametrization",
}


def __getattr__(name: str) -> Any:
    """Load torch only when a name that needs it is asked for."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"tersenet.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
