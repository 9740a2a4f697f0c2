"""Soft pruning: to the sparsities of a plan, while the weights under the masks keep training.

::

    at step t of `steps`, every `every` steps:
        s      = final - (final - initial) * (1 - t / steps)³     # of each rule's sparsity
        scores = sum over these steps of |original * gradient|    # the Taylor score; or |original|
        mask   = the largest scores, among all weights
    at t = steps: the masks of the plan's own sparsity, and hard from then on

Why this way: as of `soft_masks`; and the cubic schedule prunes fast while there is much to choose from,
and slowly when what is left matters.

Price: for the Taylor score one float32 a weight and one pass over the weights a step; a ranking every
`every` steps.

Source: schedule: Zhu and Gupta 2018, "To prune, or not to prune"; score: see `taylor`; masks: see
`soft_masks`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from tersenet.parametrization import as_array
from tersenet.plan import Plan
from tersenet.pruning.magnitude import Weights
from tersenet.pruning.masking import PruningReport, prune, sparsified
from tersenet.pruning.scores import GROUPS, grouped
from tersenet.pruning.soft_masks import SoftMasks

CRITERIA = ("taylor", "magnitude")

_METHOD = "soft pruning"


class SoftPruning(SoftMasks):
    """Prunes by soft masks while a model trains, and by hard ones at the end.

    In `fit` it is a callback. In a loop of your own call `step()` after each `backward()`, before the
    optimizer's step. After `steps` of them the masks are final, and training may go on; `finish()`
    ends it earlier. The parameters stay the same objects. Layers may be in quantization-aware training
    (`prepare_qat`): what is ranked is the weights under the rounding.

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
        for name, choice, choices in (("criterion", criterion, CRITERIA), ("by", by, GROUPS)):
            if choice not in choices:
                words = ", ".join(choices)
                raise ValueError(f"{_METHOD}: {name} is {choice!r}, expected one of {words}")
        super().__init__(_METHOD, sparsified(model, plan, _METHOD), steps, every, fade)
        for target in self._targets:
            sparsity = target.rule.sparsity
            assert sparsity is not None
            if not 0 <= initial <= sparsity:
                found = f"initial is {initial}, the sparsity of layer {target.name!r} {sparsity}"
                raise ValueError(f"{_METHOD}: {found}, expected at least 0 and no more than it")
        self._model, self._plan, self._initial = model, plan, initial
        self._by = by
        self._criterion = "magnitude"
        self._choose()
        self._criterion = criterion

    def _add(self) -> None:
        if self._criterion != "taylor":
            return
        for target in self._targets:
            original = target.original
            if original.grad is None:
                continue
            with torch.no_grad():
                score = (original * original.grad.to_dense()).abs()
            score = score.to(torch.promote_types(score.dtype, torch.float32))
            before = self._sums.get(target.name)
            self._sums[target.name] = score if before is None else before.add_(score)

    def _check(self) -> None:
        if self._criterion == "taylor":
            self._gradient_is_missing(" (criterion 'magnitude' needs none)")

    def _masked(self) -> PruningReport:
        return prune(self._model, self._plan_now(), regrow=True, scores=self._scores())

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

    def _scores(self) -> dict[str, Weights]:
        if self._criterion == "magnitude":
            return {t.name: grouped(np.abs(as_array(t.original)), self._by) for t in self._targets}
        return {name: grouped(as_array(total), self._by) for name, total in self._sums.items()}
