"""Two stages: prune with soft masks while training, then quantize what is left and train that.

::

    soft pruning:  train(model, [SoftPruning], "pruning")      # pruned weights may return
    hard masks                                                 # exactly the plan's sparsity
    quantize:      codebook and symbols under the masks
                   train(model, [], "quantization")            # the codebooks are the parameters

Why this order: the codebook then spends its values on the weights that stay, and zero, the most
frequent value, needs none of them. Nothing returns once the second stage begins.

Price: that of two trainings; see `SoftPruning` and `quantize`.

Source: the stages: Han, Mao and Dally 2016, "Deep compression"; two stages with a fine-tuning mode of
their own are also what the abstract of arXiv 2010.01892 states, whose details are not followed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from tersenet.parametrization import masks
from tersenet.plan import Plan
from tersenet.pruning import PruningReport, SoftPruning
from tersenet.pruning.masking import PrunedLayer, sparsified
from tersenet.pruning.resuming import Folder
from tersenet.quantization import QuantizationReport, quantize
from tersenet.training.callback import Callback

Stage = Literal["pruning", "quantization"]
Train = Callable[[nn.Module, Sequence[Callback], Stage], object]


@dataclass(frozen=True)
class PipelineReport:
    """What the two stages made of each layer."""

    pruning: PruningReport
    quantization: QuantizationReport


def prune_and_quantize(
    model: nn.Module,
    plan: Plan,
    train: Train,
    *,
    steps: int,
    every: int = 100,
    initial: float = 0.0,
    criterion: str = "taylor",
    by: str = "weight",
    fade: float = 0.0,
    normalize_gradient: bool = True,
    checkpoint: str | Path | None = None,
) -> PipelineReport:
    """Prune and quantize a trained model in place, as the plan says; `compress` then packs it.

    Args:
        model: dense, or pruned; not quantized.
        plan: a sparsity for each layer to prune, a quantizer for each to quantize.
        train: trains a model in place with `fit` and the callbacks (or calls `step()` of each in a
            loop of its own), with an optimizer made within: the parameters of the stages differ.
        steps: as `SoftPruning`.
        every: as `SoftPruning`.
        initial: as `SoftPruning`.
        criterion: as `SoftPruning`.
        by: as `SoftPruning`.
        fade: as `SoftPruning`.
        normalize_gradient: as `quantize`.
        checkpoint: a folder for the state after the first stage. Where it holds that of the same
            run, the model starts from there; whether `train` or the data changed it cannot tell.

    Raises:
        OSError: if the folder cannot be written.
        ValueError: if the plan prunes or quantizes nothing, the checkpoint is of another run, or as
            `SoftPruning` and `quantize`.
    """
    if all(rule.quantizer is None for rule in plan.layers.values()):
        raise ValueError("pipeline: the plan quantizes no layer, expected a quantizer for one")
    folder = None
    if checkpoint is not None:
        decides = repr((plan, steps, every, initial, criterion, by, fade))
        folder = Folder(Path(checkpoint), decides, model, "pipeline")
        if folder.load("pruned", model) is not None:
            return _quantized(model, plan, train, normalize_gradient)
    soft = SoftPruning(
        model,
        plan,
        steps=steps,
        every=every,
        initial=initial,
        criterion=criterion,
        by=by,
        fade=fade,
    )
    train(model, [soft], "pruning")
    soft.finish()
    if folder is not None:
        folder.save("pruned", model)
    return _quantized(model, plan, train, normalize_gradient)


def _quantized(
    model: nn.Module, plan: Plan, train: Train, normalize_gradient: bool
) -> PipelineReport:
    """Quantize a pruned model and train it; report what is left of the layers that were pruned."""
    kept = masks(model)
    pruned = PruningReport(
        tuple(
            PrunedLayer(t.name, tuple(t.original.shape), int(kept[t.name].count_nonzero()))
            for t in sparsified(model, plan, "pipeline")
        )
    )
    shared = quantize(model, plan, normalize_gradient=normalize_gradient)
    train(model, [], "quantization")
    return PipelineReport(pruned, shared)
