"""Fine-tuning shared weights: the codebook is the parameter.

::

    weight    = codebook[symbols] where mask, else 0            # on each use
    gradient of codebook[j] = (sum of the gradients of the weights with symbol j) / count of j

Why this way: rebuilding the weights from fixed centers, or training them freely and clustering
again, never teaches the values themselves; with the codebook as the parameter of a
torch.nn.utils.parametrize list, autograd does, and any optimizer works. The symbols are buffers
(uint8 up to k = 256, then int16, then int32). With one codebook for a kind of layer, all their
lists hold the same Parameter: it is one entry of `model.parameters()`, its gradient is the sum over
the layers, and copies and pickles keep it one.

Why divided by the count: the plain sum grows with the cluster, so a learning rate that suits dense
weights would overshoot. The mean moves a codebook value by -lr * mean(g), which is the move of all
weights of the cluster under a dense step, -lr * g each, projected onto the weights that can be
shared (least squares). So the learning rate keeps its meaning. Adam is indifferent to the factor.
`normalize_gradient=False` gives the plain sum.

Two values that meet in training stay two parameters; `quantized` merges them.

Price: 1 byte (2 or 4 for a larger k) and 1 for the mask a weight, one dense copy a use; see
`lookup` for the gradient.

Source: Han, Mao and Dally 2016, "Deep compression", section 3; Marino et al. 2021.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tersenet.parametrization import (
    Parametrization,
    Target,
    as_array,
    attach,
    parametrized,
    targets,
)
from tersenet.plan import Plan
from tersenet.quantization import layer_seed, quantize_arrays
from tersenet.quantization.kept import Quantized
from tersenet.quantization.learned import LearnedQuantizer
from tersenet.quantization.lookup import Lookup


class SharedWeights(Parametrization):
    """Computes a weight from a codebook [k], which is its original.

    `counts` is int64 [k], how many weights have each value, over all layers that share the
    codebook. Assigning to the weight sets the codebook to the mean of each cluster.
    """

    symbols: Tensor
    counts: Tensor

    def __init__(
        self, symbols: Tensor, mask: Tensor, counts: Tensor, *, normalize_gradient: bool = True
    ) -> None:
        """Keep symbols and mask (in the shape of the weight) and counts as buffers."""
        super().__init__()
        self.register_buffer("symbols", symbols)
        self.register_buffer("mask", mask)
        self.register_buffer("counts", counts)
        self.normalize_gradient = normalize_gradient

    def forward(self, codebook: Tensor) -> Tensor:
        """Return the weight."""
        if codebook.numel() == 0:  # all pruned; the empty sum keeps the codebook in the graph
            return codebook.new_zeros(self.symbols.shape) + codebook.sum()
        counts = self.counts if self.normalize_gradient else None
        weight: Tensor = Lookup.apply(codebook, self.symbols, self.mask, counts)
        return weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the codebook nearest to an assigned weight: the mean of each cluster.

        Raises:
            ValueError: if other layers share the codebook; one of them cannot set it alone.
        """
        symbols = self.symbols[self.mask].to(torch.int64)
        counts = torch.bincount(symbols, minlength=self.counts.numel())
        if not torch.equal(counts, self.counts):
            raise ValueError(
                "quantize: weight is assigned to one of several layers that share a codebook, "
                "expected an assignment to the codebook"
            )
        sums = torch.zeros(counts.numel(), dtype=torch.float64, device=weight.device)
        sums.index_add_(0, symbols, weight[self.mask].to(torch.float64))
        return (sums / counts.clamp(min=1)).to(weight.dtype)


@dataclass(frozen=True)
class QuantizedLayer:
    """What quantizing made of one layer.

    `dropped` weights went to zero and left the mask; `squared_error` is the sum of (w - q)**2
    over the weights that were kept before.
    """

    name: str
    shape: tuple[int, ...]
    nnz: int
    k: int
    dropped: int
    squared_error: float


@dataclass(frozen=True)
class QuantizationReport:
    """What quantizing made of each layer, in the model's order; tied layers count once."""

    layers: tuple[QuantizedLayer, ...]


def quantize(
    model: nn.Module, plan: Plan, *, normalize_gradient: bool = True
) -> QuantizationReport:
    """Replace the weights of the layers whose rule asks for it by codebook and symbols, in place.

    A mask from `prune` stays; without one, weights equal to zero count as pruned. The codebook is
    a new parameter in the model's dtype: make the optimizer after this. A layer that is quantized
    already is quantized anew from its present weights. With `codebook_scope="kind"` all fc layers
    share one codebook and all conv layers another. If an error is raised, the model is as it was.

    Raises:
        ValueError: if a pattern matches nothing, a weight is not finite or no plain parameter, or
            layers that are to share a codebook differ in quantizer, k, lam, dtype or device.

    Examples:
        >>> model = nn.Linear(10, 10)
        >>> report = quantize(model, Plan.of(quantizer="cws", k=4))
        >>> [parameter.shape for parameter in codebook_parameters(model)]
        [torch.Size([4])]
    """
    groups: dict[str, list[Target]] = {}
    for target in targets(model, plan):
        if target.rule.quantizer is not None:
            key = target.kind if plan.codebook_scope == "kind" else target.name
            groups.setdefault(key, []).append(target)
    ready = []
    for key, group in groups.items():
        _check_alike(group)
        ready.append((group, _quantize_group(group, layer_seed(plan.seed, key))))
    layers = {}
    for group, results in ready:
        for target in group:
            layers[target.name] = _describe(target, results[target.name])
        _attach_group(group, results, normalize_gradient)
    return QuantizationReport(
        tuple(layers[t.name] for t in parametrized(model) if t.name in layers)
    )


def quantized(model: nn.Module) -> dict[str, Quantized]:
    """Return the present codebook, symbols and mask of every quantized layer by layer name.

    Codebook values that became equal are merged, those that became +0.0 leave the mask; the
    weights are the same to the bit (a float64 codebook is rounded to float32). Layers that share
    a codebook have the same array. Of a layer of `prepare_qat` it is what the layer computes with.
    """
    groups: dict[int, list[Target]] = {}
    found: dict[str, Quantized] = {}
    for target in parametrized(model):
        if isinstance(target.parametrization, SharedWeights):
            groups.setdefault(id(target.original), []).append(target)
        elif isinstance(target.parametrization, LearnedQuantizer):
            result = target.parametrization.quantized(target.original)
            found |= dict.fromkeys(target.names, result)
    for group in groups.values():
        codebook = as_array(group[0].original).astype(np.float32)
        states = {}
        for target in group:
            shared = target.parametrization
            assert isinstance(shared, SharedWeights)
            symbols = shared.symbols.cpu().numpy().astype(np.uint16)
            states[target.name] = (symbols, shared.mask.cpu().numpy().copy())
        results = _normalized(codebook, states)
        found |= {name: results[target.name] for target in group for name in target.names}
    return {name: found[name] for name, _ in model.named_modules() if name in found}


def codebook_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield each codebook or learned step once, for an optimizer group of its own."""
    seen = set()
    for target in parametrized(model):
        if isinstance(target.parametrization, LearnedQuantizer):
            yield from target.parametrization.parameters()
        elif isinstance(target.parametrization, SharedWeights) and id(target.original) not in seen:
            seen.add(id(target.original))
            yield target.original


def _check_alike(group: list[Target]) -> None:
    first = group[0]
    for other in group[1:]:
        for name in ("quantizer", "k", "lam"):
            found = getattr(first.rule, name), getattr(other.rule, name)
            if found[0] != found[1]:
                raise ValueError(_unlike(first, other, name, found))
        for name in ("dtype", "device"):
            found = getattr(first.original, name), getattr(other.original, name)
            if found[0] != found[1]:
                raise ValueError(_unlike(first, other, name, found))


def _unlike(first: Target, other: Target, name: str, found: tuple[object, object]) -> str:
    return (
        f"quantize: layers {first.name!r} and {other.name!r} share the codebook of kind "
        f"{first.kind}, found {name} {found[0]} and {found[1]}, expected the same"
    )


def _quantize_group(group: list[Target], seed: int) -> dict[str, Quantized]:
    """Return the results for layers that share a codebook, its values exact in their dtype."""
    rule = group[0].rule
    assert rule.quantizer is not None
    arrays = {target.name: as_array(target.weight()) for target in group}
    masks = {
        target.name: target.parametrization.mask.cpu().numpy()
        for target in group
        if target.parametrization is not None
    }
    lam = rule.lam if rule.quantizer == "ecsq" else None
    results = quantize_arrays(arrays, rule.quantizer, rule.k, masks=masks, seed=seed, lam=lam)
    codebook = max((result.codebook for result in results.values()), key=len)
    rounded = as_array(torch.from_numpy(codebook).to(group[0].original.dtype)).astype(np.float32)
    if np.array_equal(rounded, codebook):
        return results
    states = {name: (result.symbols, result.mask) for name, result in results.items()}
    before = {name: result.dropped for name, result in results.items()}
    merged = _normalized(rounded, states)
    return {name: replace(q, dropped=q.dropped + before[name]) for name, q in merged.items()}


def _normalized(codebook: Any, states: dict[str, tuple[Any, Any]]) -> dict[str, Quantized]:
    """Return valid results for a codebook that may hold equal values and zeros."""
    results = {
        name: Quantized.of(codebook, symbols, mask, keep_unused=len(states) > 1)
        for name, (symbols, mask) in states.items()
    }
    shared = max((result.codebook for result in results.values()), key=len)
    return {name: replace(q, codebook=shared) if q.k else q for name, q in results.items()}


def _describe(target: Target, result: Quantized) -> QuantizedLayer:
    error = as_array(target.weight()).astype(np.float64) - result.values()
    squared = float(np.vdot(error, error))
    return QuantizedLayer(target.name, result.shape, result.nnz, result.k, result.dropped, squared)


def _attach_group(
    group: list[Target], results: dict[str, Quantized], normalize_gradient: bool
) -> None:
    """Give the layers of a group one codebook parameter, and each its symbols and mask."""
    first = group[0].original
    codebook = torch.from_numpy(max((q.codebook for q in results.values()), key=len).copy())
    trains = any(target.original.requires_grad for target in group)
    parameter = nn.Parameter(codebook.to(first.device, first.dtype), requires_grad=trains)
    k = codebook.numel()
    counts = np.zeros(k, np.int64)
    for result in results.values():
        counts += np.bincount(result.symbols[result.mask], minlength=k)
    dtype = torch.uint8 if k <= 256 else torch.int16 if k <= 32_768 else torch.int32
    for target in group:
        result = results[target.name]
        shared = SharedWeights(
            torch.from_numpy(result.symbols.astype(np.int32)).to(first.device, dtype),
            torch.from_numpy(result.mask).to(first.device),
            torch.from_numpy(counts.copy()).to(first.device),
            normalize_gradient=normalize_gradient,
        )
        attach(target, shared, parameter)
