"""tersenet: prune, quantize, store losslessly in a fraction of the size, run from there.

Compressed matrices and files need NumPy alone; models need torch, which is loaded only when one
of their names is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tersenet import _core, bounds, hardware
from tersenet._core import CODERS, LAYOUTS, PAIRS, Codebook, CompressedMatrix
from tersenet.errors import FormatError, InternalError
from tersenet.io import Limits, from_safetensors, load, open, save, to_safetensors
from tersenet.network import Network
from tersenet.pages import report_page
from tersenet.plan import Plan, Rule
from tersenet.quantization.kept import Quantized
from tersenet.reporting import compare, report

if TYPE_CHECKING:
    from tersenet.budget import fit_budget
    from tersenet.compression import compress, decompress, left_dense
    from tersenet.exporting import export
    from tersenet.parametrization import masks, unparametrize
    from tersenet.pipeline import prune_and_quantize
    from tersenet.pruning import prune, taylor_scores
    from tersenet.quantization import codebook_parameters, quantize, quantized
    from tersenet.sweeping import sweep

__version__ = _core.__version__

__all__ = [
    "CODERS",
    "LAYOUTS",
    "PAIRS",
    "Codebook",
    "CompressedMatrix",
    "FormatError",
    "InternalError",
    "Limits",
    "Network",
    "Plan",
    "Quantized",
    "Rule",
    "bounds",
    "codebook_parameters",
    "compare",
    "compress",
    "decompress",
    "export",
    "fit_budget",
    "from_safetensors",
    "hardware",
    "left_dense",
    "load",
    "masks",
    "open",
    "prune",
    "prune_and_quantize",
    "quantize",
    "quantized",
    "report",
    "report_page",
    "save",
    "sweep",
    "taylor_scores",
    "to_safetensors",
    "unparametrize",
]

_NEEDS_TORCH = {
    "codebook_parameters": "tersenet.quantization",
    "compress": "tersenet.compression",
    "decompress": "tersenet.compression",
    "export": "tersenet.exporting",
    "fit_budget": "tersenet.budget",
    "left_dense": "tersenet.compression",
    "masks": "tersenet.parametrization",
    "prune": "tersenet.pruning",
    "prune_and_quantize": "tersenet.pipeline",
    "quantize": "tersenet.quantization",
    "quantized": "tersenet.quantization",
    "sweep": "tersenet.sweeping",
    "taylor_scores": "tersenet.pruning",
    "unparametrize": "tersenet.parametrization",
}


def __getattr__(name: str) -> Any:
    """Load torch only when a name that needs it is asked for."""
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module 'tersenet' has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(_NEEDS_TORCH[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            f"tersenet.{name} needs torch: pip install 'tersenet[torch]'", name="torch"
        ) from error


def __dir__() -> list[str]:
    """Return every public name, those that need torch too."""
    return sorted(__all__)
