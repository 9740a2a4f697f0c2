"""Pruning a model: a mask on each weight that training cannot undo.

::

    weight = where(mask, original, 0)          # on each use; the gradient is masked likewise
    soft:    the gradient passes straight through to all of the original
    whole:   weight = original, as if nothing were pruned

Why this way: the dense original keeps training where it is kept, and whatever momentum, Adam's
state or weight decay do to it elsewhere never shows. `where` and not a product, so that a pruned
NaN or infinity is zero too. Pruning again ranks only what is still kept, so a mask shrinks, unless
`regrow` asks to rank all of the original. A soft mask is for the time before the choice is final:
what it hides keeps learning (`SoftPruning`). The whole weight is a teacher's, in the same storage
(`PQK`).

Price: one byte a weight for the mask, one masked copy a use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tersenet.parametrization import Parametrization, Target, as_array, attach, targets
from tersenet.plan import Plan
from tersenet.pruning import PRUNERS, Mask
from tersenet.pruning.magnitude import Weights
from tersenet.pruning.scores import groups_within, scores_of, spread


class _StraightThrough(torch.autograd.Function):
    """where(mask, original, 0), whose gradient reaches all of the original."""

    @staticmethod
    def forward(ctx: Any, original: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, original, torch.zeros_like(original))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, None]:
        return grads[0], None


class Masked(Parametrization):
    """Computes a weight as its original where the mask is True, and zero elsewhere.

    While `is_soft`, what is pruned gets gradients as if it were not; while `is_whole`, the weight
    is all of the original.
    """

    is_soft = False
    is_whole = False

    def __init__(self, mask: Tensor) -> None:
        """Keep the mask, a bool tensor in the shape of the weight, as a buffer."""
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, original: Tensor) -> Tensor:
        """Return the masked weight."""
        return original if self.is_whole else self.masked(original)

    def masked(self, original: Tensor) -> Tensor:
        """Return the masked weight, whole or not."""
        if self.is_soft:
            weight: Tensor = _StraightThrough.apply(original, self.mask)
            return weight
        return torch.where(self.mask, original, torch.zeros_like(original))

    def refit(self, original: Tensor) -> None:
        """Adapt what else computes the weight to a mask that has been chosen; here nothing."""

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the original for an assigned weight: the weight itself."""
        return weight


@dataclass(frozen=True)
class PrunedLayer:
    """What pruning left of one layer."""

    name: str
    shape: tuple[int, ...]
    nnz: int

    @property
    def sparsity(self) -> float:
        """The fraction of pruned weights."""
        size = int(np.prod(self.shape))
        return 1 - self.nnz / size if size else 0.0


@dataclass(frozen=True)
class PruningReport:
    """What pruning left of each layer, in the model's order; tied layers count once."""

    layers: tuple[PrunedLayer, ...]

    @property
    def sparsity(self) -> float:
        """The fraction of pruned weights over all these layers."""
        size = sum(int(np.prod(layer.shape)) for layer in self.layers)
        return 1 - sum(layer.nnz for layer in self.layers) / size if size else 0.0


def prune(
    model: nn.Module,
    plan: Plan,
    *,
    regrow: bool = False,
    scores: Mapping[str, Weights] | None = None,
) -> PruningReport:
    """Mask the weights of the layers whose rule asks for it, in place; the model stays trainable.

    Reached are Linear, Conv1d, Conv2d and, where a pattern means them, Embedding layers; biases
    and norms never. The parameters stay the same objects, so an optimizer made before stays valid.
    A layer that is pruned already can only lose more weights, unless `regrow`; then all weights
    under the mask are ranked anew. If an error is raised, the model is as it was.

    With `scores` (of `taylor_scores`, or your own) the pruner ranks these in place of the weights:
    floats of at least 0 by layer name, in the shape of the weight, or [out, in] or [out] for
    kernels or filters that stay or go whole. A sparsity is then met exactly in what has a score.

    Raises:
        ValueError: if a pattern matches nothing, a pruner is unknown, a weight or score is NaN, a
            weight is no plain parameter, a layer is quantized already, or scores do not fit.

    Examples:
        >>> model = nn.Linear(10, 10)
        >>> prune(model, Plan.of(sparsity=0.9)).layers[0].nnz
        10
    """
    chosen = prunable(model, plan)
    arrays, present, within = {}, {}, {}
    for target in chosen:
        name, shape = target.name, tuple(target.original.shape)
        if scores is not None:
            arrays[name] = scores_of(scores, name, shape)
        else:
            arrays[name] = as_array(target.original)
        if target.parametrization is not None and not regrow:
            present[name] = target.parametrization.mask.cpu().numpy()
            within[name] = groups_within(present[name], arrays[name])
    found = ranked(chosen, plan, arrays, within)
    report = []
    for target in chosen:
        mask = found[target.name]
        if scores is not None:
            mask = spread(mask, tuple(target.original.shape))
        if target.name in present:
            mask = mask & present[target.name]
        put(target, torch.from_numpy(mask))
        if isinstance(target.parametrization, Masked):
            target.parametrization.refit(target.original)
        report.append(PrunedLayer(target.name, mask.shape, int(np.count_nonzero(mask))))
    return PruningReport(tuple(report))


def put(target: Target, mask: Tensor) -> None:
    """Let the mask, bool in the shape of the weight, be the one that the weight has."""
    mask = mask.to(target.original.device)
    if target.parametrization is None:
        attach(target, Masked(mask), target.original)
    else:
        target.parametrization.mask = mask


def prunable(model: nn.Module, plan: Plan) -> list[Target]:
    """Return the weights that the plan prunes, in the model's order.

    Raises:
        ValueError: as `targets`, or if a layer is quantized already.
    """
    chosen = [target for target in targets(model, plan) if target.rule.prunes]
    for target in chosen:
        present = target.parametrization
        if not (present is None or isinstance(present, Masked)):
            raise ValueError(
                f"prune: layer {target.name!r} is quantized, expected a layer that is not "
                "(prune first, or unparametrize it)"
            )
    return chosen


def sparsified(model: nn.Module, plan: Plan, method: str) -> list[Target]:
    """Return the weights that the plan prunes to a sparsity, for a method that trains toward it.

    Raises:
        ValueError: as `prunable`, or if there are none, or one is pruned by a threshold.
    """
    chosen = prunable(model, plan)
    if not chosen:
        raise ValueError(f"{method}: the plan prunes no layer, expected a sparsity for one")
    for target in chosen:
        if target.rule.sparsity is None:
            found = f"layer {target.name!r} gets threshold {target.rule.threshold}"
            raise ValueError(f"{method}: {found}, expected a sparsity")
    return chosen


def ranked_together(chosen: list[Target], plan: Plan) -> list[list[Target]]:
    """Return the chosen weights in groups: one each, or for a global scope all that ask the same."""
    groups: dict[object, list[Target]] = {}
    for target in chosen:
        rule = target.rule
        alike = (rule.pruner, rule.sparsity, rule.threshold)
        key = alike if plan.pruning_scope == "global" else target.name
        groups.setdefault(key, []).append(target)
    return list(groups.values())


def ranked(
    chosen: list[Target],
    plan: Plan,
    arrays: Mapping[str, Weights],
    within: Mapping[str, Mask],
) -> dict[str, Mask]:
    """Return the masks that the rules of the chosen weights ask for.

    Args:
        chosen: of `prunable`.
        plan: its scope says whether weights that ask the same are ranked together.
        arrays: what is ranked, for each chosen name.
        within: masks that the results may not leave; may leave names out.

    Raises:
        ValueError: if a pruner is unknown, or refuses the arrays.
    """
    found: dict[str, Mask] = {}
    for group in ranked_together(chosen, plan):
        rule = group[0].rule
        pruner = rule.pruner or "magnitude"
        if pruner not in PRUNERS:
            raise ValueError(f"prune: pruner is {pruner!r}, expected one of {', '.join(PRUNERS)}")
        names = [target.name for target in group]
        found |= PRUNERS[pruner](
            {name: arrays[name] for name in names},
            sparsity=rule.sparsity,
            threshold=rule.threshold,
            scope="global",
            within={name: within[name] for name in names if name in within},
        )
    return found
