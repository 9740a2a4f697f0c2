"""Progressive ADMM: pruning in rounds, each from the best models of the round before.

::

    beam = [model]
    for each round, a plan or several, sparser than the last:
        for each model of the beam, each plan, each rho:           # a candidate
            train with ADMM                                        # only what is still kept
            cut to exactly the sparsity of the plan
            train what is left
            value = validate
        beam = the candidates with the largest values

Why this way: one round of ADMM from a dense model to a very high sparsity settles what it can, and
cuts what it has not settled. A round from a model that is pruned in part has few weights left, so it
converges fast and its cut costs little; a layer that it leaves as it is is not pulled at.

Each training begins with an optimizer and a seed of its own (`stages`), so that a run that was
interrupted goes on to the same bits.

Price: two trainings a candidate; a copy of the model for each candidate of a round, and two files
of its state where a checkpoint is asked for.

Source: Ye et al. 2018, "Progressive weight pruning of deep neural networks using ADMM".
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tersenet.parametrization import parametrized
from tersenet.plan import Plan
from tersenet.pruning.admm import ADMM
from tersenet.pruning.resuming import Folder, put_state, state_of
from tersenet.pruning.stages import PHASES, Phase, Progress, Stage, Validate, seed_of, stage_of
from tersenet.training.callback import Callback


@dataclass(frozen=True)
class Candidate:
    """What one candidate of a round came to.

    `parent` is the candidate of the round before that it comes from (0 in the first round), `plan`
    the number of its plan in the round, `nnz` what is kept of all masked layers, each mask counted
    once, and `value` what `validate` gave.
    """

    round: int
    candidate: int
    parent: int
    plan: int
    rho: float
    nnz: int
    value: float


@dataclass(frozen=True)
class ProgressiveReport:
    """Every candidate in order, and the one of the last round that the model became."""

    candidates: tuple[Candidate, ...]
    best: Candidate


Train = Callable[[nn.Module, Sequence[Callback], Stage], object]


def prune_admm(
    model: nn.Module,
    rounds: Sequence[Plan | Sequence[Plan]],
    *,
    train: Train,
    validate: Validate,
    rho: float | Sequence[float] = 1.5e-3,
    rho_growth: float = 1.0,
    epochs_per_update: int = 1,
    beam: int = 1,
    seed: int | torch.Generator = 0,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> ProgressiveReport:
    """Prune a trained model in rounds, in place; it ends masked and retrained.

    The parameters stay the same objects. If an error is raised, the model is as it was.

    Args:
        model: dense, or pruned already: its masks only shrink.
        rounds: what to prune to in each, a plan or several to be tried.
        train: trains a model in place: it makes the optimizer (the paper: a learning rate of 1e-3
            in phase "admm", 1e-2 of SGD in "retraining"), hands the callbacks to `fit`, and takes
            whatever is random from the stage's seed.
        validate: how good a model is, larger is better; on examples that nothing is reported of.
        rho: as `ADMM`; each of several is a candidate.
        rho_growth: as `ADMM`.
        epochs_per_update: as `ADMM`.
        beam: how many candidates of a round go on to the next.
        seed: in [0, 2**63), or a generator that one is drawn from.
        checkpoint: a folder for the state after each training. What it holds of the same run is
            not trained again; whether `train` or the data changed it cannot tell.
        progress: called after each training with what it was, and trainings done and in all.

    Raises:
        OSError: if the folder cannot be written.
        ValueError: if there are no rounds or plans, an option is out of its range, `validate`
            gives no finite number, the checkpoint is of another run, or as `ADMM`.
    """
    steps = [[step] if isinstance(step, Plan) else list(step) for step in rounds]
    rhos = [float(rho)] if isinstance(rho, int | float) else [float(value) for value in rho]
    if not steps or not all(steps) or not rhos:
        raise ValueError("admm: rounds or rho is empty, expected a plan a round and a rho at least")
    if beam < 1:
        raise ValueError(f"admm: beam is {beam}, expected at least 1")
    seed = seed_of(seed, "admm")

    def admm(model: nn.Module, plan: Plan, rho: float) -> ADMM:
        return ADMM(
            model, plan, rho=rho, rho_growth=rho_growth, epochs_per_update=epochs_per_update
        )

    choices = [list(itertools.product(range(len(step)), rhos)) for step in steps]
    for step, tried in zip(steps, choices, strict=True):
        for which, value in tried:
            admm(model, step[which], value)  # what it refuses, it refuses before all training
    folder = None
    if checkpoint is not None:
        decides = repr((steps, rhos, rho_growth, epochs_per_update, beam, seed))
        folder = Folder(Path(checkpoint), decides, model, "admm")
    candidates = _candidates([len(tried) for tried in choices], beam)
    run = _Run(train, validate, folder, seed, progress, len(steps), 2 * candidates)
    models = [(0, model)]
    every: list[Candidate] = []
    for number, (step, tried) in enumerate(zip(steps, choices, strict=True)):
        found: list[tuple[Candidate, nn.Module]] = []
        for (parent, start), (which, value) in itertools.product(models, tried):
            pruned = copy.deepcopy(start)
            worth = run.candidate(
                pruned, number, len(found), functools.partial(admm, plan=step[which], rho=value)
            )
            candidate = Candidate(number, len(found), parent, which, value, _nnz(pruned), worth)
            found.append((candidate, pruned))
        every += [candidate for candidate, _ in found]
        found.sort(key=lambda pair: -pair[0].value)  # stable: of equal values the first
        models = [(candidate.candidate, pruned) for candidate, pruned in found[:beam]]
    put_state(model, state_of(models[0][1]))
    return ProgressiveReport(tuple(every), found[0][0])


@dataclass(eq=False)
class _Run:
    """What all candidates share, and how many trainings are done."""

    train: Train
    validate: Validate
    folder: Folder | None
    seed: int
    progress: Progress | None
    rounds: int
    total: int
    done: int = 0

    def candidate(
        self, model: nn.Module, number: int, candidate: int, admm: Callable[[nn.Module], ADMM]
    ) -> float:
        """Prune a model and train what is left, as far as no checkpoint has it; return its value."""
        first, second = (self._stage(number, candidate, phase) for phase in PHASES)
        value = self._saved(second, model)
        if value is None:
            if self._saved(first, model) is None:
                method = admm(model)
                self.train(model, [method], first)
                method.prune()
                self._save(first, model)
            self._tell(first)
            self.train(model, [], second)
            value = float(self.validate(model))
            if not math.isfinite(value):
                raise ValueError(f"admm: validate gave {value}, expected a finite number")
            self._save(second, model, value)
        else:
            self._tell(first)
        self._tell(second)
        return value

    def _stage(self, number: int, candidate: int, phase: Phase) -> Stage:
        return stage_of(self.seed, number, candidate, phase)

    def _saved(self, stage: Stage, model: nn.Module) -> float | None:
        return self.folder.load(_name(stage), model) if self.folder else None

    def _save(self, stage: Stage, model: nn.Module, value: float = 0.0) -> None:
        if self.folder:
            self.folder.save(_name(stage), model, value)

    def _tell(self, stage: Stage) -> None:
        self.done += 1
        if self.progress is not None:
            what = f"pruning, round {stage.round + 1} of {self.rounds}"
            self.progress(what, self.done, self.total)


def _name(stage: Stage) -> str:
    return f"round-{stage.round}-candidate-{stage.candidate}-{stage.phase}"


def _nnz(model: nn.Module) -> int:
    found = (target.parametrization for target in parametrized(model))
    return sum(int(parametrization.mask.sum()) for parametrization in found if parametrization)


def _candidates(choices: list[int], beam: int) -> int:
    """Return how many candidates all rounds have together."""
    models, count = 1, 0
    for number in choices:
        models *= number
        count += models
        models = min(models, beam)
    return count
