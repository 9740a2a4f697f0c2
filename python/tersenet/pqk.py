"""PQK: pruning with quantization-aware training, then distillation from what was pruned.

::

    student  weight = quantized(original) where mask, else 0
    teacher  weight = original                     # the unimportant weights are added back
                                                   # the same tensors, the same biases and norms
    phase 1  for `steps` steps                                           # soft masks, cubic schedule
             loss(student)
             at its end: original = as it was when it was pruned, where it is
    phase 2  from then on                                                # hard masks
             loss(student) + weight * T² KL(teacher ‖ student)           # no gradient to the teacher
             + loss(teacher)                                             # none to the quantizers

Why this way: what a pruned network lacks most is what its own pruned weights knew. They stand in
the same tensors, so a teacher costs no training of its own, and it is near its student from the
first step: they agree in every weight that is important. While the student learns from the teacher,
both go on learning from the labels. The student's loss moves no weight that its mask hides, the
teacher's moves all.

What phase 1 does to a pruned weight only serves to find out whether it should return: it moves by
gradients of a network in which it is zero, and may fade. So the teacher gets each weight as it was
when it was pruned. Of a ResNet-20 with 99.5 % on MNIST, pruned to 5 % and 4 bits, such a teacher began
with 99.0 %, one of what phase 1 had left in the tensors with 57 %, to learn again while it taught.

The teacher normalizes by the statistics of the batch and leaves the running ones to the student, so
that the student alone is what is left after training: `compress`, `export` and `unparametrize` see
nothing of the teacher.

Price: in phase 1 a copy of the weights that are pruned; in phase 2 a second forward and backward
pass a step, and no weights of its own.

Source: Kim, Chang and Kwak 2021, "PQK: Model compression via pruning, quantization, and knowledge
distillation" (arXiv 2106.14681); of the losses the terms above are what is followed here, and the
teacher is not quantized. Softened scores: Hinton, Vinyals and Dean 2015.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tersenet.plan import Plan
from tersenet.pruning import Masked, PruningReport, SoftPruning
from tersenet.pruning.masking import sparsified
from tersenet.quantization.learned import attach_all, prepared
from tersenet.training.callback import Callback, State
from tersenet.training.loop import Loss, outputs_of

Divergence = Callable[[Any, Any], Tensor]
Found = TypeVar("Found")


def softened_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T² KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over the batch.

    Args:
        student: scores before the softmax, [batch, classes] or [batch, classes, …].
        teacher: of the same shape.
        temperature: T, above 0.
    """
    size = student.numel() // student.shape[1]
    found = F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        reduction="sum",
        log_target=True,
    )
    return temperature**2 * found / size


class PQK(Callback):
    """Trains a pruned and quantized student, at last by a teacher that has all of its weights.

    In `fit` it is a callback. In a loop of your own take `pqk.loss(outputs, inputs, targets)` for
    the loss, and call `step()` after each `backward()`, before the optimizer's step. Phase 1 ends
    after `steps` steps, over all calls of `fit`, or by `finish()`. Make the optimizer after this:
    steps and codebooks are new parameters. All others stay the same objects.

    Examples:
        >>> import torch
        >>> model = nn.Linear(10, 10)
        >>> pqk = PQK(model, Plan.of(sparsity=0.9, quantizer="lsq", k=2**2), steps=10, every=5)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> x, y = torch.eye(10), torch.arange(10)
        >>> for _ in range(20):
        ...     sgd.zero_grad()
        ...     pqk.loss(model(x), x, y).backward()
        ...     pqk.step()
        ...     sgd.step()
        >>> int((model.weight != 0).sum()), len(model.weight.unique())
        (10, 3)
        >>> with pqk.teacher():
        ...     int((model.weight != 0).sum())
        100
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        steps: int,
        every: int = 100,
        initial: float = 0.0,
        criterion: str = "magnitude",
        by: str = "weight",
        fade: float = 0.0,
        loss: Loss = F.cross_entropy,
        temperature: float = 2.0,
        weight: float = 3.0,
        divergence: Divergence | None = None,
        normalize_gradient: bool = True,
    ) -> None:
        """Put soft masks and quantizers on the layers that the plan prunes and quantizes.

        Args:
            model: on the device where it trains.
            plan: a sparsity for each layer to prune, a quantizer and k for each to quantize, as
                `prepare_qat` takes them.
            steps: of phase 1, as `SoftPruning`.
            every: as `SoftPruning`.
            initial: as `SoftPruning`.
            criterion: as `SoftPruning`.
            by: as `SoftPruning`.
            fade: as `SoftPruning`; the teacher's weights do not.
            loss: outputs and targets to a scalar, for the teacher, and in `loss()` for the student;
                the one that is given to `fit`.
            temperature: T of the softened scores, above 0.
            weight: of the divergence in the loss, at least 0.
            divergence: outputs of student and teacher to a scalar, in place of T² KL, where outputs
                are no scores of classes.
            normalize_gradient: as `prepare_qat`.

        Raises:
            ValueError: if an option is out of its range, or as `SoftPruning` and `prepare_qat`; the
                model is as it was.
        """
        if not 0 < temperature < math.inf:
            raise ValueError(f"pqk: temperature is {temperature}, expected a number above 0")
        if not 0 <= weight < math.inf:
            raise ValueError(f"pqk: weight is {weight}, expected a number of at least 0")
        sparsified(model, plan, "pqk")
        ready = prepared(model, plan, normalize_gradient=normalize_gradient)
        self._soft = SoftPruning(
            model,
            plan,
            steps=steps,
            every=every,
            initial=initial,
            criterion=criterion,
            by=by,
            fade=fade,
        )
        attach_all(ready)
        chosen = {target.name: target for target, _ in ready}
        self._pruned = sparsified(model, plan, "pqk")
        chosen |= {target.name: target for target in self._pruned}
        self._targets = list(chosen.values())
        # Of phase 1: each weight as it was when it was kept for the last time.
        self._kept = {target.name: target.original.detach().clone() for target in self._pruned}
        self._model, self._loss, self._weight = model, loss, weight
        self._divergence = divergence or (lambda a, b: softened_divergence(a, b, temperature))

    @property
    def is_distilling(self) -> bool:
        """Whether phase 2 has begun: the masks are final, and the teacher teaches."""
        return not self._soft.is_soft

    @contextmanager
    def teacher(self) -> Iterator[None]:
        """Let the model be the teacher, in this block; its running statistics stay as they are.

        Raises:
            RuntimeError: within `torch.nn.utils.parametrize.cached`, which would hold the student's
                weights.
        """
        if getattr(parametrize, "_cache_enabled", 0):
            raise RuntimeError(
                "pqk: teacher() within parametrize.cached(), expected none around it, since one "
                "weight has two values"
            )
        views = [target.parametrization for target in self._targets]
        norms: list[Any] = [
            module
            for module in self._model.modules()
            if getattr(module, "track_running_stats", False)
        ]
        try:
            for view in views:
                assert isinstance(view, Masked)
                view.is_whole = True
            for norm in norms:
                norm.track_running_stats = False
            yield
        finally:
            for view in views:
                assert isinstance(view, Masked)
                view.is_whole = False
            for norm in norms:
                norm.track_running_stats = True

    def loss(self, outputs: Any, inputs: Any, targets: Any) -> Tensor:
        """Return the loss of a step of the present phase, for the student's outputs of a batch.

        Args:
            outputs: `model(inputs)`.
            inputs: of the batch; a tuple becomes the model's arguments.
            targets: of the batch.
        """
        return self._joint(self._loss(outputs, targets), outputs, inputs, targets)

    def step(self) -> None:
        """Count a step, and in phase 1 choose the masks when it is time."""
        self._in_phase(self._soft.step)

    def finish(self) -> PruningReport:
        """End phase 1, if it has not ended: the masks are those of the plan's own sparsity."""
        return self._in_phase(self._soft.finish)

    def state_dict(self) -> dict[str, Any]:
        """Return what training goes on from, beside the state_dict of model and optimizer.

        That is what `SoftPruning` returns, and in phase 1 what the teacher will begin with, by
        layer name.
        """
        teacher = {name: weight.clone() for name, weight in self._kept.items()}
        return self._soft.state_dict() | {"teacher": teacher}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, for the same plan and a model with its tensors.

        Raises:
            ValueError: if it is of other layers or shapes.
        """
        originals = {target.name: target.original for target in self._pruned}
        teacher = state["teacher"]
        for name in teacher:
            expected = list(originals[name].shape) if name in originals else None
            if list(teacher[name].shape) != expected:
                raise ValueError(
                    f"pqk: the teacher's weights of layer {name!r} of the state are "
                    f"{list(teacher[name].shape)}, expected {expected or 'none'}"
                )
        names = sorted(originals) if state["is_soft"] else []
        if sorted(teacher) != names and set(state["kept"]) == set(originals):
            raise ValueError(
                f"pqk: the state has the teacher's weights of {sorted(teacher)}, expected {names}"
            )
        self._soft.load_state_dict(state)
        self._kept = {
            name: weight.to(originals[name].device, copy=True) for name, weight in teacher.items()
        }

    def loss_computed(self, state: State) -> None:
        """Add the teacher's part to the loss in phase 2."""
        state.loss = self._joint(state.loss, state.outputs, state.inputs, state.targets)

    def gradients_computed(self, state: State) -> None:
        """Add the gradients to the scores, where these are what is ranked."""
        self._soft.gradients_computed(state)

    def step_end(self, state: State) -> None:
        """Choose the masks when it is time."""
        self._in_phase(lambda: self._soft.step_end(state))

    def fit_end(self, state: State) -> None:
        """Warn, the first time, where phase 1 has not ended."""
        self._soft.fit_end(state)

    def _in_phase(self, act: Callable[[], Found]) -> Found:
        """Do what may end phase 1; remember before what is kept, and bring it back at the end."""
        if self.is_distilling:
            return act()
        with torch.no_grad():
            for mask, original, kept in self._weights():
                kept.copy_(torch.where(mask, original, kept))
        found = act()
        if self.is_distilling:
            with torch.no_grad():
                for mask, original, kept in self._weights():
                    original.copy_(torch.where(mask, original, kept))
            self._kept.clear()
        return found

    def _weights(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give mask and original of each layer, and what is remembered of it."""
        for target in self._pruned:
            assert isinstance(target.parametrization, Masked)
            yield target.parametrization.mask, target.original, self._kept[target.name]

    def _joint(self, loss: Tensor, outputs: Any, inputs: Any, targets: Any) -> Tensor:
        if not self.is_distilling:
            return loss
        with self.teacher():
            taught = outputs_of(self._model, inputs)
        loss = loss + self._loss(taught, targets)
        if self._weight == 0:
            return loss
        return loss + self._weight * self._divergence(outputs, _detached(taught))


def _detached(outputs: Any) -> Any:
    """Return outputs without their history: a tensor, or a tuple, list or dict of them."""
    if isinstance(outputs, Tensor):
        return outputs.detach()
    if isinstance(outputs, Mapping):
        return {name: _detached(value) for name, value in outputs.items()}
    if isinstance(outputs, tuple | list):
        return [_detached(value) for value in outputs]
    return outputs
