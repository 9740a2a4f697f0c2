"""Soft pruning: masks that are chosen again while the weights under them keep training.

::

    at step t of `steps`, every `every` steps:
        s      = final - (final - initial) * (1 - t / steps)³     # of each rule's sparsity
        scores = sum over these steps of |original * gradient|    # the Taylor score; or |original|
        mask   = the largest scores, among all weights
    forward    where(mask, original, 0)
    backward   the gradient of the masked weight, to all of the original
    then       original *= 1 - fade, where it is pruned
    at t = steps: the masks of the plan's own sparsity, and hard from then on

Why this way: a mask that is chosen once can only be wrong later. The gradient of a pruned weight says
what it would do if it came back, so it goes on training at no cost and returns when its score is
among the largest. The cubic schedule prunes fast while there is much to choose from, and slowly when
what is left matters. At the end the masks are as `prune` makes them, and no optimizer moves them.

Nothing answers what a pruned weight does, so without a bound it drifts: it goes on in whatever direction
its gradient points to, until it is large enough to return, and the masks are those of a random walk.
`fade` holds it back. The longer the training and the fewer weights are kept, the more it matters.

Price: for the Taylor score one float32 a weight and one pass over the weights a step; a ranking every
`every` steps; for `fade` another pass.

Source: schedule: Zhu and Gupta 2018, "To prune, or not to prune"; gradients straight through the
mask: Lin et al. 2020, "Dynamic model pruning with feedback"; fading: Zhou et al. 2021, "Learning N:M
fine-grained structured sparse neural networks from scratch" (there by a term of the gradient); score: see
`taylor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tersenet.parametrization import as_array
from tersenet.plan import Plan
from tersenet.pruning.magnitude import Weights
from tersenet.pruning.masking import Masked, PrunedLayer, PruningReport, prune, sparsified
from tersenet.pruning.scores import GROUPS, grouped
from tersenet.training.callback import Callback, State

CRITERIA = ("taylor", "magnitude")


class SoftPruning(Callback):
    """Prunes by soft masks while a model trains, and by hard ones at the end.

    In `fit` it is a callback. In a loop of your own call `step()` after each `backward()`, before the
    optimizer's step. After `steps` of them the masks are final, and training may go on; `finish()`
    ends it earlier, and so does the end of `fit`. The parameters stay the same objects. Layers may be
    in quantization-aware training (`prepare_qat`): what is ranked is the weights under the rounding.

    To go on with an interrupted run, make the model, its optimizer and this anew with the same
    arguments, and load the state of each.

    Examples:
        >>> model = nn.Linear(10, 10)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> soft = SoftPruning(model, Plan.of(sparsity=0.9), steps=20, every=5)
        >>> for _ in range(20):
        ...     sgd.zero_grad()
        ...     model(torch.eye(10)).square().mean().backward()
        ...     soft.step()
        ...     sgd.step()
        >>> int((model.weight != 0).sum()), soft.is_soft
        (10, False)
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        steps: int,
        every: int = 100,
        initial: float = 0.0,
        criterion: str = "taylor",
        by: str = "weight",
        fade: float = 0.0,
    ) -> None:
        """Put soft masks on the layers that the plan prunes, by magnitude at first.

        Args:
            model: on the device where it trains; masks that it has may regrow.
            plan: a sparsity for each layer to prune, its rules' pruner and its scope.
            steps: after how many steps the masks are final, at least 1.
            every: after how many steps they are chosen again, at least 1.
            initial: the sparsity to begin with, in [0, 1), at most that of any rule.
            criterion: what is ranked, "taylor" or "magnitude".
            by: what stays or goes whole: "weight", "kernel" or "filter".
            fade: the part of itself that a pruned weight loses in each step, in [0, 1); a few
                thousandths where training is long.

        Raises:
            ValueError: if an option is out of its range, the plan prunes nothing or by a threshold,
                or as `prune`.
        """
        for name, count in (("steps", steps), ("every", every)):
            if count < 1:
                raise ValueError(f"soft pruning: {name} is {count}, expected at least 1")
        for name, choice, choices in (("criterion", criterion, CRITERIA), ("by", by, GROUPS)):
            if choice not in choices:
                words = ", ".join(choices)
                raise ValueError(f"soft pruning: {name} is {choice!r}, expected one of {words}")
        if not 0 <= fade < 1:
            raise ValueError(f"soft pruning: fade is {fade}, expected a number in [0, 1)")
        self._targets = sparsified(model, plan, "soft pruning")
        for target in self._targets:
            sparsity = target.rule.sparsity
            assert sparsity is not None
            if not 0 <= initial <= sparsity:
                found = f"initial is {initial}, the sparsity of layer {target.name!r} {sparsity}"
                raise ValueError(f"soft pruning: {found}, expected at least 0 and no more than it")
        self._model, self._plan = model, plan
        self._steps, self._every, self._initial = steps, every, initial
        self._criterion, self._by, self._fade = criterion, by, fade
        self._sums: dict[str, Tensor] = {}  # since the step after the last choice
        self._is_used = False  # by the last choice
        self._taken = 0
        self.is_soft = True
        self._report: PruningReport
        self._choose(self._magnitudes())

    def step(self) -> None:
        """Count a step: add its gradients to the scores, and choose the masks when it is time."""
        self._add()
        self._advance()

    def finish(self) -> PruningReport:
        """Choose the masks of the plan's own sparsity, and make them hard; once for all.

        Raises:
            ValueError: if a layer has had no gradient to be scored by.
        """
        if self.is_soft:
            scores = self._scores()
            self._taken = self._steps
            self.is_soft = False
            self._choose(scores)
            self._sums.clear()
        return self._report

    def state_dict(self) -> dict[str, Any]:
        """Return what pruning goes on from, beside the model, whose own state has the masks.

        That is the steps taken, the scores since the masks were chosen, and how many weights the
        last choice kept, both by layer name.
        """
        return {
            "taken": self._taken,
            "is_soft": self.is_soft,
            "is_used": self._is_used,
            "scores": {name: total.clone() for name, total in self._sums.items()},
            "kept": {layer.name: layer.nnz for layer in self._report.layers},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned for the same model, plan and options.

        The masks are part of the model's state, which is loaded by itself, before or after.

        Raises:
            ValueError: if it is of other layers, shapes or fewer steps; then nothing changes.
        """
        shapes = {target.name: tuple(target.original.shape) for target in self._targets}
        if set(state["kept"]) != set(shapes):
            raise ValueError(
                f"soft pruning: the state is of layers {sorted(state['kept'])}, "
                f"expected {sorted(shapes)}"
            )
        for name, total in state["scores"].items():
            if tuple(total.shape) != shapes.get(name):
                raise ValueError(
                    f"soft pruning: scores of layer {name!r} of the state are "
                    f"{list(total.shape)}, expected {list(shapes.get(name, ()))}"
                )
        if not 0 <= state["taken"] <= self._steps:
            found = f"the state has taken {state['taken']} steps"
            raise ValueError(f"soft pruning: {found}, expected at most {self._steps}")
        self._taken, self._is_used = int(state["taken"]), bool(state["is_used"])
        self._sums = {
            target.name: state["scores"][target.name].to(target.original.device, copy=True)
            for target in self._targets
            if target.name in state["scores"]
        }
        self._report = PruningReport(
            tuple(PrunedLayer(n, shape, int(state["kept"][n])) for n, shape in shapes.items())
        )
        self.is_soft = bool(state["is_soft"])
        self._set_soft()

    def gradients_computed(self, state: State) -> None:
        """Add the gradients to the scores."""
        self._add()

    def step_end(self, state: State) -> None:
        """Choose the masks when it is time."""
        self._advance()

    def fit_end(self, state: State) -> None:
        """Make the masks hard, if they are not yet."""
        self.finish()

    def _add(self) -> None:
        if not self.is_soft or self._criterion != "taylor":
            return
        if self._is_used:
            self._sums.clear()
            self._is_used = False
        for target in self._targets:
            original = target.original
            if original.grad is None:
                continue
            with torch.no_grad():
                score = (original * original.grad.to_dense()).abs()
            score = score.to(torch.promote_types(score.dtype, torch.float32))
            before = self._sums.get(target.name)
            self._sums[target.name] = score if before is None else before.add_(score)

    def _advance(self) -> None:
        if not self.is_soft:
            return
        self._fade_out()
        self._taken += 1
        if self._taken == self._steps:
            self.finish()
        elif self._taken % self._every == 0:
            self._choose(self._scores())

    def _fade_out(self) -> None:
        if self._fade == 0:
            return
        with torch.no_grad():
            for target in self._targets:
                assert isinstance(target.parametrization, Masked)
                mask, original = target.parametrization.mask, target.original
                original.copy_(torch.where(mask, original, original * (1 - self._fade)))

    def _choose(self, scores: dict[str, Weights]) -> None:
        """Choose the masks anew, for the sparsity of this step."""
        self._set_soft()  # before what is fitted to the masks
        self._report = prune(self._model, self._plan_now(), regrow=True, scores=scores)
        self._set_soft()
        self._is_used = True

    def _plan_now(self) -> Plan:
        left = (1 - self._taken / self._steps) ** 3
        if left == 0:
            return self._plan
        rules = {
            pattern: rule
            if rule.sparsity is None
            else replace(rule, sparsity=rule.sparsity - (rule.sparsity - self._initial) * left)
            for pattern, rule in self._plan.layers.items()
        }
        return replace(self._plan, layers=rules)

    def _set_soft(self) -> None:
        for target in self._targets:
            if isinstance(target.parametrization, Masked):
                target.parametrization.is_soft = self.is_soft

    def _scores(self) -> dict[str, Weights]:
        if self._criterion == "magnitude":
            return self._magnitudes()
        for target in self._targets:
            if target.name not in self._sums:
                raise ValueError(
                    f"soft pruning: layer {target.name!r} has had no gradient to score it by, "
                    "expected one since the masks were chosen (criterion 'magnitude' needs none)"
                )
        return {name: grouped(as_array(total), self._by) for name, total in self._sums.items()}

    def _magnitudes(self) -> dict[str, Weights]:
        return {t.name: grouped(np.abs(as_array(t.original)), self._by) for t in self._targets}
