"""Masks from one model to another, and masks drawn at random to compare them with.

::

    copy_masks(pretext, model)                                  # same layers, other weights and head
    copy_masks(random_masks(masks(pretext), seed=0), model)     # as many weights in each layer

Why this way: which weights are kept is found on one objective and used on another, so a mask goes by
the name and shape of its layer alone. A random mask of the same count in each layer tells what the
places of the kept weights are worth, beyond how many each layer keeps.

Source: Caron, Morcos, Bojanowski, Mairal and Joulin 2020, "Pruning convolutional neural networks with
self-supervision" (arXiv 2001.03554).
"""

from __future__ import annotations

import glob
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tersenet.parametrization import masks, targets
from tersenet.plan import Plan, Rule
from tersenet.pruning.masking import Masked, PrunedLayer, PruningReport, put


def copy_masks(source: nn.Module | Mapping[str, Tensor], model: nn.Module) -> PruningReport:
    """Mask a model as another one, in place; its weights stay, and masks of other layers too.

    A mask that a layer has is replaced: what it hid counts again where the new one keeps it. Later
    changes to one model's masks do not reach the other.

    Args:
        source: a pruned model, or masks by layer name as `masks` returns them: bool, True where
            kept, in the shape of the weight.
        model: has a layer of the same name and shape for each mask.

    Raises:
        ValueError: if the source has no masks, a layer is not there, is quantized or no plain
            parameter, a mask does not fit its weight, or tied layers get two masks. The model is
            as it was.

    Examples:
        >>> from tersenet.pruning import prune
        >>> first, second = nn.Linear(10, 10), nn.Linear(10, 10)
        >>> _ = prune(first, Plan.of(sparsity=0.9))
        >>> copy_masks(first, second).layers[0].nnz
        10
    """
    found = masks(source) if isinstance(source, nn.Module) else dict(source)
    if not found:
        raise ValueError("copy masks: the source has no masks, expected one at least (prune it)")
    names = {name for name, _ in model.named_modules()}
    for name in found:
        if name not in names:
            raise ValueError(f"copy masks: the model has no layer {name!r}, expected one for it")
    plan = Plan({glob.escape(name): Rule(sparsity=0.0) for name in found})
    chosen = targets(model, plan)
    for target in chosen:
        if type(target.parametrization) not in (type(None), Masked):
            raise ValueError(
                f"copy masks: layer {target.name!r} is quantized, expected it not to be"
            )
        given = [(name, found[name]) for name in target.names if name in found]
        expected = tuple(target.original.shape)
        for name, mask in given:
            if mask.dtype != torch.bool or tuple(mask.shape) != expected:
                raise ValueError(
                    f"copy masks: mask of layer {name!r} is {mask.dtype} {list(mask.shape)}, "
                    f"expected torch.bool {list(expected)}"
                )
            if not torch.equal(mask.cpu(), given[0][1].cpu()):
                raise ValueError(
                    f"copy masks: layers {given[0][0]!r} and {name!r} share one weight, "
                    "found two masks for it, expected the same"
                )
    report = []
    for target in chosen:
        mask = next(found[name] for name in target.names if name in found)
        put(target, mask.clone())
        report.append(PrunedLayer(target.name, tuple(mask.shape), int(mask.count_nonzero())))
    return PruningReport(tuple(report))


def random_masks(masks: Mapping[str, Tensor], *, seed: int) -> dict[str, Tensor]:
    """Return masks with as many weights of each layer kept, anywhere with the same chance.

    Args:
        masks: by layer name, as `masks` returns them; layers with one mask object get one again.
        seed: the same one gives the same masks, on any device.

    Examples:
        >>> found = random_masks({"fc": torch.tensor([True, False, False, False])}, seed=0)
        >>> int(found["fc"].sum())
        1
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[int, Tensor] = {}
    for mask in masks.values():
        if id(mask) not in drawn:
            order = torch.randperm(mask.numel(), generator=generator)
            kept = torch.zeros(mask.numel(), dtype=torch.bool)
            kept[order[: int(mask.count_nonzero())]] = True
            drawn[id(mask)] = kept.reshape(mask.shape).to(mask.device)
    return {name: drawn[id(mask)] for name, mask in masks.items()}
