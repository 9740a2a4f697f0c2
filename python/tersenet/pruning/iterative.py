"""Iterative pruning: a fraction of what is left goes, the rest starts again, and so on in rounds.

::

    model, trained
    for each round, until the plan's sparsity:
        keep (1 - fraction) of the weights that are left, the largest magnitudes; at last the plan's
        weights = an early state of them (rewind), or fresh ones (reinitialize), or as they are
        train

Why this way: what one cut to a high sparsity takes at once is chosen by the magnitudes of a dense
model, which say little about a sparse one; a round asks a model that has trained with what the round
before has left. The counts do not drift: round r keeps round(n * (1 - fraction)^r) of n, and the last
one exactly as many as `prune` would. No labels are asked for: `train` may be of any objective, and
`copy_masks` gives what it finds to a model of another one.

Each training takes its seed from its round (`stages`), so that a run that was interrupted goes on to
the same bits.

Price: a training a round, log(density) / log(1 - fraction) of them; two copies of the model, and one
in a file for each round where a checkpoint is asked for.

Source: Caron, Morcos, Bojanowski, Mairal and Joulin 2020, "Pruning convolutional neural networks with
self-supervision" (arXiv 2001.03554): 20 % a round, all layers ranked together (`pruning_scope` of the
plan), the last layer spared (`skip`), rewinding or fresh weights. Rounds and rewinding: Frankle et
al. 2019, "Stabilizing the lottery ticket hypothesis".
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tersenet.parametrization import Target, as_array
from tersenet.plan import Plan
from tersenet.pruning import restarting
from tersenet.pruning.masking import (
    PrunedLayer,
    PruningReport,
    put,
    ranked,
    ranked_together,
    sparsified,
)
from tersenet.pruning.resuming import Folder, digest_of, put_state, state_of
from tersenet.pruning.stages import Progress, Stage, Validate, seed_of, stage_of

_METHOD = "iterative pruning"

Train = Callable[[nn.Module, Stage], object]


@dataclass(frozen=True)
class Round:
    """What one round left of the layers, and what `validate` gave after its training."""

    pruned: PruningReport
    value: float | None


@dataclass(frozen=True)
class IterativeReport:
    """Every round in order."""

    rounds: tuple[Round, ...]


def prune_iteratively(
    model: nn.Module,
    plan: Plan,
    *,
    train: Train,
    fraction: float = 0.2,
    rewind: Mapping[str, Tensor] | None = None,
    reinitialize: restarting.Draw | None = None,
    validate: Validate | None = None,
    seed: int | torch.Generator = 0,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> IterativeReport:
    """Prune a trained model in rounds, in place; it ends masked and trained.

    The parameters stay the same objects. If an error is raised, the model is as it was. What is
    left is counted from the masks that the model has, so that a second call goes on from a first.

    Args:
        model: dense, or pruned already: its masks only shrink.
        plan: the sparsity of each layer at the end; the layers of one sparsity are ranked together
            where its scope is "global".
        train: trains a model in place: it makes the optimizer, and takes whatever is random from
            the stage's seed.
        fraction: what part of the weights that are left goes in a round, in (0, 1).
        rewind: the early state to start from in each round, as `rewind` takes it.
        reinitialize: draws the weights to start from in each round, as `reinitialize` takes it.
            With neither, training goes on from what is kept.
        validate: a number that the report is to have for each round.
        seed: in [0, 2**63), or a generator that one is drawn from.
        checkpoint: a folder for the state after each round. What it holds of the same run is not
            trained again; whether a function or the data changed it cannot tell.
        progress: called after each training with what it was, and trainings done and in all.

    Raises:
        OSError: if the folder cannot be written.
        ValueError: if an option is out of its range, there is both an early state and a drawing,
            no layer has more weights left than the plan keeps, the early state does not fit,
            `validate` gives no finite number, the checkpoint is of another run, or as `prune`.

    Examples:
        >>> model = nn.Linear(10, 10)
        >>> early = copy.deepcopy(model.state_dict())
        >>> def train(model, stage):
        ...     sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     (model(torch.eye(10)) - torch.eye(10)).square().mean().backward()
        ...     sgd.step()
        >>> report = prune_iteratively(model, Plan.of(sparsity=0.5), train=train, rewind=early)
        >>> [step.pruned.layers[0].nnz for step in report.rounds]
        [80, 64, 51, 50]
    """
    if not 0 < fraction < 1:
        raise ValueError(f"{_METHOD}: fraction is {fraction}, expected a number in (0, 1)")
    if rewind is not None and reinitialize is not None:
        raise ValueError(f"{_METHOD}: found rewind and reinitialize, expected one of them at most")
    seed = seed_of(seed, _METHOD)
    counts = [_counts(group, fraction) for group in _groups(model, plan)]
    total = max(map(len, counts))
    if total == 0:
        raise ValueError(
            f"{_METHOD}: no layer has more weights left than the plan keeps, expected one that has"
        )
    pruned = copy.deepcopy(model)
    if rewind is not None:
        restarting.rewind(copy.deepcopy(model), rewind)  # what it refuses, it refuses before all
    folder = None
    if checkpoint is not None:
        start = "rewind" if rewind is not None else "reinitialize" if reinitialize else "go on"
        decides = repr((plan, fraction, start, seed, validate is not None))
        if rewind is not None:
            decides += digest_of(rewind)
        folder = Folder(Path(checkpoint), decides, model, _METHOD)
    rounds = []
    for number in range(total):
        name = f"round-{number}"
        value = folder.load(name, pruned) if folder else None
        if value is None:
            stage = stage_of(seed, number, 0, "retraining")
            for group, left in zip(_groups(pruned, plan), counts, strict=True):
                if number < len(left):
                    _cut(group, plan, left[number])
            if rewind is not None:
                restarting.rewind(pruned, rewind)
            elif reinitialize is not None:
                restarting.reinitialize(pruned, reinitialize, seed=stage.seed)
            train(pruned, stage)
            value = float(validate(pruned)) if validate is not None else 0.0
            if not math.isfinite(value):
                raise ValueError(f"{_METHOD}: validate gave {value}, expected a finite number")
            if folder:
                folder.save(name, pruned, value)
        left_now = tuple(
            PrunedLayer(target.name, tuple(target.original.shape), _kept(target))
            for target in sparsified(pruned, plan, _METHOD)
        )
        rounds.append(Round(PruningReport(left_now), value if validate is not None else None))
        if progress is not None:
            progress(_METHOD, number + 1, total)
    put_state(model, state_of(pruned))
    return IterativeReport(tuple(rounds))


def _groups(model: nn.Module, plan: Plan) -> list[list[Target]]:
    return ranked_together(sparsified(model, plan, _METHOD), plan)


def _kept(target: Target) -> int:
    if target.parametrization is None:
        return target.original.numel()
    return int(target.parametrization.mask.count_nonzero())


def _counts(group: list[Target], fraction: float) -> list[int]:
    """Return how many weights the group keeps after each round, at last as many as its rule."""
    size, present = sum(target.original.numel() for target in group), sum(map(_kept, group))
    sparsity = group[0].rule.sparsity
    assert sparsity is not None
    final = size - round(sparsity * size)
    counts: list[int] = []
    while (counts[-1] if counts else present) > final:
        counts.append(max(round(present * (1 - fraction) ** (len(counts) + 1)), final))
    return counts


def _cut(group: list[Target], plan: Plan, kept: int) -> None:
    """Mask all but so many weights of a group, the largest of those that are left."""
    size = sum(target.original.numel() for target in group)
    sparsity = group[0].rule.sparsity
    assert sparsity is not None
    if kept > size - round(sparsity * size):
        sparsity = 1 - kept / size
    chosen = [replace(target, rule=replace(target.rule, sparsity=sparsity)) for target in group]
    arrays = {target.name: as_array(target.weight()) for target in chosen}
    within = {
        target.name: target.parametrization.mask.cpu().numpy()
        for target in chosen
        if target.parametrization is not None
    }
    found = ranked(chosen, plan, arrays, within)
    for target in chosen:
        put(target, torch.from_numpy(found[target.name]))
