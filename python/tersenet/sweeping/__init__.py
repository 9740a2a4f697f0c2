"""Sweeps: many plans tried on one model, and which of them is worth its bytes.

::

    space ──grid, or search──▶ settings ──trial──▶ bytes of a real file, accuracy on validation data
                                   │                        │
                              an executor: processes   one file of results, each trial as it ends
                              here, or a cluster            │
                                                        fronts, choose(max_drop=...)

`space` says what is tried, `searching` proposes settings by Optuna, `trial` does one, `running`
gives them to workers and tries again where one dies, `results` keeps what was found, and `driving`
puts these together. `rays` is Ray behind the interface of `concurrent.futures`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tersenet.sweeping.results import Layer, Results, Trial
from tersenet.sweeping.space import Range, Search, Space

if TYPE_CHECKING:
    from tersenet.sweeping.driving import sweep
    from tersenet.sweeping.rays import RayExecutor
    from tersenet.sweeping.trial import Data

__all__ = [
    "Data",
    "Layer",
    "Range",
    "RayExecutor",
    "Results",
    "Search",
    "Space",
    "Trial",
    "sweep",
]

_MODULES = {"Data": "trial", "RayExecutor": "rays", "sweep": "driving"}  # need torch, or Ray


def __getattr__(name: str) -> Any:
    """Load torch or Ray only when a name that needs it is asked for."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"tersenet.sweeping.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
