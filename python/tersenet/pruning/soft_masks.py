"""Masks that are chosen again and again while the weights under them keep training.

::

    forward    where(mask, original, 0)
    backward   the gradient of the masked weight, to all of the original
    then       original *= 1 - fade, where it is pruned
    every `every` steps: masks chosen anew, among all weights
    after `steps` steps: the last choice, and hard from then on

Why this way: a mask that is chosen once can only be wrong later. The gradient of a pruned weight says
what it would do if it came back, so it goes on training at no cost and may return. At the end the masks
are as `prune` makes them, and no optimizer moves them.

Nothing answers what a pruned weight does, so without a bound it drifts: it goes on in whatever direction
its gradient points to, until it is large enough to return, and the masks are those of a random walk.
`fade` holds it back. The longer the training and the fewer weights are kept, the more it matters.

Price: a choice every `every` steps; for `fade` one pass over the weights a step.

Source: gradients straight through the mask: Lin et al. 2020, "Dynamic model pruning with feedback";
fading: Zhou et al. 2021, "Learning N:M fine-grained structured sparse neural networks from scratch"
(there by a term of the gradient).
"""

from __future__ import annotations

import abc
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tersenet.parametrization import Target
from tersenet.pruning.masking import Masked, PrunedLayer, PruningReport
from tersenet.training.callback import Callback, State


class SoftMasks(Callback, abc.ABC):
    """Soft masks for a number of steps, and hard ones then; what chooses them is in the classes below.

    They keep in `_sums` what they add up between two choices, by layer name.
    """

    def __init__(
        self, method: str, targets: list[Target], steps: int, every: int, fade: float
    ) -> None:
        """Check the options; the first choice is made by the class that is made.

        Raises:
            ValueError: if an option is out of its range.
        """
        for name, count in (("steps", steps), ("every", every)):
            if count < 1:
                raise ValueError(f"{method}: {name} is {count}, expected at least 1")
        if not 0 <= fade < 1:
            raise ValueError(f"{method}: fade is {fade}, expected a number in [0, 1)")
        self._method, self._targets = method, targets
        self._steps, self._every, self._fade = steps, every, fade
        self._sums: dict[str, Tensor] = {}  # since the step after the last choice
        self._is_used = False  # by the last choice
        self._taken = 0
        self._is_warned = False
        self.is_soft = True
        self._report: PruningReport

    @abc.abstractmethod
    def _add(self) -> None:
        """Add the gradients of a step to the sums."""

    @abc.abstractmethod
    def _check(self) -> None:
        """Raise ValueError if the sums do not suffice for a choice."""

    @abc.abstractmethod
    def _masked(self) -> PruningReport:
        """Put the masks of this step on the layers."""

    def step(self) -> None:
        """Count a step: take its gradients, and choose the masks when it is time."""
        self.gradients_computed(None)
        self.step_end(None)

    def finish(self) -> PruningReport:
        """Choose the masks for the last time, and make them hard; once for all.

        Raises:
            ValueError: if a layer has had no gradient to be chosen by.
        """
        if self.is_soft:
            self._check()
            self._taken = self._steps
            self.is_soft = False
            self._choose()
            self._sums.clear()
        return self._report

    def state_dict(self) -> dict[str, Any]:
        """Return what pruning goes on from, beside the model, whose own state has the masks.

        That is the steps taken, the sums since the masks were chosen, and how many weights the
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
        """Go on from what `state_dict` returned for the same model and options.

        The masks are part of the model's state, which is loaded by itself, before or after.

        Raises:
            ValueError: if it is of other layers, shapes or fewer steps; then nothing changes.
        """
        shapes = {target.name: tuple(target.original.shape) for target in self._targets}
        if set(state["kept"]) != set(shapes):
            raise ValueError(
                f"{self._method}: the state is of layers {sorted(state['kept'])}, "
                f"expected {sorted(shapes)}"
            )
        for name, total in state["scores"].items():
            expected = self._sum_shape(shapes.get(name, ()))
            if tuple(total.shape) != expected or name not in shapes:
                raise ValueError(
                    f"{self._method}: scores of layer {name!r} of the state are "
                    f"{list(total.shape)}, expected {list(expected)}"
                )
        if not 0 <= state["taken"] <= self._steps:
            found = f"the state has taken {state['taken']} steps"
            raise ValueError(f"{self._method}: {found}, expected at most {self._steps}")
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

    def gradients_computed(self, state: State | None) -> None:
        """Take the gradients of a step."""
        if not self.is_soft:
            return
        if self._is_used:
            self._sums.clear()
            self._is_used = False
        self._add()

    def step_end(self, state: State | None) -> None:
        """Choose the masks when it is time."""
        if not self.is_soft:
            return
        self._fade_out()
        self._taken += 1
        if self._taken == self._steps:
            self.finish()
        elif self._taken % self._every == 0:
            self._check()
            self._choose()

    def fit_end(self, state: State) -> None:
        """Warn, the first time, where masks are left soft: `fit` may be called again, or not."""
        if self.is_soft and not self._is_warned:
            self._is_warned = True
            warnings.warn(
                f"{self._method}: fit ended after {self._taken} of {self._steps} steps, so the masks "
                "are soft until the others are taken or finish() is called",
                stacklevel=4,  # whoever called fit
            )

    def _sum_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the sums of a layer, for that of its weight."""
        return shape

    def _gradient_is_missing(self, more: str = "") -> None:
        """Raise ValueError if a layer has no sum."""
        for target in self._targets:
            if target.name not in self._sums:
                raise ValueError(
                    f"{self._method}: layer {target.name!r} has had no gradient to score it by, "
                    f"expected one since the masks were chosen{more}"
                )

    def _fade_out(self) -> None:
        if self._fade == 0:
            return
        with torch.no_grad():
            for target in self._targets:
                assert isinstance(target.parametrization, Masked)
                mask, original = target.parametrization.mask, target.original
                original.copy_(torch.where(mask, original, original * (1 - self._fade)))

    def _choose(self) -> None:
        """Choose the masks anew, for this step."""
        self._set_soft()  # before what is fitted to the masks
        self._report = self._masked()
        self._set_soft()
        self._is_used = True

    def _set_soft(self) -> None:
        for target in self._targets:
            if isinstance(target.parametrization, Masked):
                target.parametrization.is_soft = self.is_soft
