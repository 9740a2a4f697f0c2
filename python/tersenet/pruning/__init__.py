"""Pruners: which weights stay.

`PRUNERS` is the one place to add a pruner: a function of (arrays, *, sparsity, threshold, scope,
within) that returns a mask for each array, in a module of its own. `prune`, `masks` and
`unparametrize` need torch, which is loaded only when one of these names is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tersenet.pruning.magnitude import Mask, magnitude_mask, magnitude_masks

if TYPE_CHECKING:
    from tersenet.parametrization import masks, unparametrize
    from tersenet.pruning.masking import Masked, PrunedLayer, PruningReport, prune

__all__ = [
    "PRUNERS",
    "Mask",
    "Masked",
    "PrunedLayer",
    "PruningReport",
    "magnitude_mask",
    "magnitude_masks",
    "masks",
    "prune",
    "unparametrize",
]

PRUNERS: dict[str, Callable[..., dict[str, Mask]]] = {"magnitude": magnitude_masks}


def __getattr__(name: str) -> Any:
    """Load torch only when a name that needs it is asked for."""
    if name in ("masks", "unparametrize"):
        from tersenet import parametrization

        return getattr(parametrization, name)
    if name in __all__:
        from tersenet.pruning import masking

        return getattr(masking, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
