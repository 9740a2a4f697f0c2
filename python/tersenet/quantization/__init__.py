"""Quantizers: few distinct values in place of many, on the kept weights only.

`QUANTIZERS` is the one place to add a quantizer: a function of (weights, k, *, mask, seed) that
returns a `Quantized`, in a module of its own. Only `sharing` (values that settled weights share) and
`learned` (weights that choose among learned values while they train) need torch, and that is loaded
only when one of their names is asked for.
"""

from __future__ import annotations

import importlib
import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tersenet.quantization.cws import cws
from tersenet.quantization.ecsq import ecsq
from tersenet.quantization.kept import Mask, Quantized, Weights
from tersenet.quantization.pws import pws
from tersenet.quantization.uq import uq

if TYPE_CHECKING:
    from tersenet.quantization.learned import LearnedCodebook, LearnedStep, prepare_qat
    from tersenet.quantization.sharing import (
        QuantizationReport,
        SharedWeights,
        codebook_parameters,
        quantize,
        quantized,
    )

__all__ = [
    "QUANTIZERS",
    "LearnedCodebook",
    "LearnedStep",
    "QuantizationReport",
    "Quantized",
    "SharedWeights",
    "codebook_parameters",
    "cws",
    "ecsq",
    "layer_seed",
    "prepare_qat",
    "pws",
    "quantize",
    "quantize_arrays",
    "quantized",
    "uq",
]

QUANTIZERS: dict[str, Callable[..., Quantized]] = {"cws": cws, "pws": pws, "uq": uq, "ecsq": ecsq}


def quantize_arrays(
    arrays: Mapping[str, Weights],
    quantizer: str,
    k: int | None,
    *,
    masks: Mapping[str, Mask] | None = None,
    seed: int = 0,
    lam: float | None = None,
) -> dict[str, Quantized]:
    """Quantize several arrays with one codebook, or one array with its own.

    All results have the same codebook, the same array even, but for those in which nothing is
    kept: their codebook is empty. `masks` may leave arrays out; those keep what is not zero.

    Raises:
        ValueError: if the quantizer is unknown or does not take `lam`, a mask has no array, or
            the quantizer refuses the weights; the array is named.

    Examples:
        >>> q = quantize_arrays({"a": np.float32([1, 2]), "b": np.float32([2, 0])}, "cws", 2)
        >>> q["a"].codebook is q["b"].codebook
        True
    """
    function = QUANTIZERS.get(quantizer)
    if function is None:
        names = ", ".join(QUANTIZERS)
        raise ValueError(f"quantize: quantizer is {quantizer!r}, expected one of {names}")
    options: dict[str, Any] = {}
    if lam is not None:
        if "lam" not in inspect.signature(function).parameters:
            raise ValueError(f"quantize: lam is {lam}, expected none for {quantizer}")
        options["lam"] = lam
    masks = dict(masks or {})
    if stray := [name for name in masks if name not in arrays]:
        raise ValueError(f"quantize: mask {stray[0]!r} has no array, expected one of that name")
    if len(arrays) == 1:  # spare the copies
        ((name, weights),) = arrays.items()
        try:
            return {name: function(weights, k, mask=masks.get(name), seed=seed, **options)}
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    kept = {name: masks[name] if name in masks else arrays[name] != 0 for name in arrays}
    for name, mask in kept.items():
        if mask.shape != arrays[name].shape or mask.dtype != np.bool_:
            found, expected = f"{mask.dtype} {mask.shape}", f"bool {arrays[name].shape}"
            raise ValueError(f"quantize: mask of {name!r} is {found}, expected {expected}")
    pool = [arrays[name][mask] for name, mask in kept.items()]
    for name, weights in zip(kept, pool, strict=True):
        if not np.isfinite(weights).all():
            found = f"{np.count_nonzero(~np.isfinite(weights))} non-finite values"
            raise ValueError(f"{name}: {quantizer}: {found}, expected finite ones")
    joined = np.concatenate(pool) if pool else np.zeros(0, np.float32)
    del pool
    every = np.ones(joined.size, np.bool_)
    together = function(joined, k, mask=every, seed=seed, **options)
    return _split(together, kept)


def layer_seed(seed: int, name: str) -> int:
    """Return the seed for one layer: other layers neither share it nor change it."""
    return int(np.random.SeedSequence((seed, zlib.crc32(name.encode()))).generate_state(1)[0])


def _split(together: Quantized, kept: Mapping[str, Mask]) -> dict[str, Quantized]:
    """Give each array its share of the symbols of all kept weights, joined in order."""
    results = {}
    start = 0
    for name, mask in kept.items():
        end = start + int(np.count_nonzero(mask))
        symbols = np.zeros(mask.shape, np.uint16)
        symbols[mask] = together.symbols[start:end]
        stays = mask.copy()
        stays[mask] = together.mask[start:end]
        dropped = end - start - int(np.count_nonzero(stays))
        codebook = together.codebook if stays.any() else together.codebook[:0]
        results[name] = Quantized(codebook, symbols, stays, dropped=dropped)
        start = end
    return results


_LEARNED = ("LearnedCodebook", "LearnedStep", "prepare_qat")


def __getattr__(name: str) -> Any:
    """Load torch only when a name that needs it is asked for."""
    if name in __all__:
        module = "learned" if name in _LEARNED else "sharing"
        return getattr(importlib.import_module(f"tersenet.quantization.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
