"""A plain training loop that methods join by callbacks.

::

    seed torch's generators, for this loop only
    callback.fit_start
    for each epoch:                                     callback.epoch_start
        for each batch, inputs and targets:             callback.step_start
            loss = loss(model(inputs), targets)         callback.loss_computed        replaces it
            gradients of the loss                       callback.gradients_computed   changes them
            optimizer.step                              callback.step_end
        scheduler.step                                  callback.epoch_end            stops
    callback.fit_end
    put every module back into the mode it was in

Why this way: what pruning, sharing and distillation methods add to training is a term of the loss,
a change of the gradients, or work between two epochs. A callback has one method for each of these
places and shares one `State` with the loop, so a method is a class of its own and the loop knows
none of them. The step is a closure given to the optimizer, so that those which evaluate more than
once (LBFGS) work too.

Price: beside the model's own work, one number a step that is added up on the model's device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from tersenet.training.callback import Callback, State

Loss = Callable[[Any, Any], Tensor]
Batch = Any  # as `fit` takes them: (inputs, targets), or inputs alone


def fit(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    epochs: int,
    optimizer: Optimizer,
    loss: Loss,
    scheduler: LRScheduler | None = None,
    scheduler_unit: Literal["epoch", "step"] = "epoch",
    callbacks: Sequence[Callback | Callable[[State], None]] = (),
    seed: int | None = None,
) -> list[float]:
    """Train a model in place; return the mean loss of each epoch.

    It may be called under `torch.autocast`, whose copies of weights are made anew each step.

    Args:
        model: what trains; every module is afterwards in the mode it was in.
        batches: of each step, iterated anew each epoch, as a DataLoader gives them: (inputs,
            targets), or inputs alone, a tensor, a dict or [inputs], whose targets are then None. A
            tuple or list of inputs becomes the model's arguments, a dict its named ones.
        epochs: how often to go through the batches, at least 0.
        optimizer: of the model's parameters.
        loss: outputs and targets to a scalar, the mean over the batch.
        scheduler: steps after each epoch or optimizer step; one that watches a metric gets the
            epoch's mean loss.
        scheduler_unit: which of the two.
        callbacks: a `Callback`, or a function that joins after each epoch.
        seed: of what the model draws (dropout); the caller's generators are left as they were.
            None draws from them.

    Raises:
        ValueError: if `epochs` is negative, the scheduler's unit does not exist, there are no
            batches, or one has more than two parts.

    Examples:
        >>> model = nn.Linear(1, 1)
        >>> data = [(torch.ones(4, 1), torch.zeros(4, 1))]
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> first, last = fit(model, data, epochs=2, optimizer=sgd, loss=nn.functional.mse_loss)
        >>> last < first
        True
    """
    if epochs < 0:
        raise ValueError(f"fit: epochs is {epochs}, expected at least 0")
    if scheduler_unit not in ("epoch", "step"):
        raise ValueError(f"fit: scheduler_unit is {scheduler_unit!r}, expected 'epoch' or 'step'")
    joined = [c if isinstance(c, Callback) else _AtEpochEnd(c) for c in callbacks]
    state = State(model, optimizer, epochs)

    def call(place: str) -> None:
        for callback in joined:
            getattr(callback, place)(state)

    def closure() -> Tensor:
        optimizer.zero_grad()
        torch.clear_autocast_cache()  # of weights as they were before the last step
        state.outputs = outputs_of(model, state.inputs)
        state.loss = loss(state.outputs, state.targets)
        call("loss_computed")
        state.loss.backward()  # type: ignore[no-untyped-call]
        call("gradients_computed")
        return state.loss

    with seeded(model, seed), in_mode(model, training=True):
        call("fit_start")
        for state.epoch in range(epochs):
            if state.stop:
                break
            call("epoch_start")
            total: Tensor | float = 0.0
            count = 0
            for batch in batches:
                state.inputs, state.targets = parts_of(batch)
                call("step_start")
                optimizer.step(closure)  # type: ignore[arg-type]
                total = total + state.loss.detach()
                count += 1
                if scheduler is not None and scheduler_unit == "step":
                    _advance(scheduler, state.loss.detach())
                call("step_end")
                state.step += 1
            if count == 0:
                raise ValueError(f"fit: epoch {state.epoch} has no batches, expected at least one")
            state.losses.append(float(total) / count)
            if scheduler is not None and scheduler_unit == "epoch":
                _advance(scheduler, state.losses[-1])
            call("epoch_end")
        call("fit_end")
    return state.losses


def evaluate(
    model: nn.Module, batches: Iterable[Batch], measure: Callable[[Any, Any], Tensor | float]
) -> float:
    """Return the mean of a measure over all examples, without gradients, in evaluation mode.

    Args:
        model: every module is afterwards in the mode it was in.
        batches: (inputs, targets), or inputs alone, as for `fit`.
        measure: outputs and targets to the mean over a batch: `accuracy`, or a loss.

    Raises:
        ValueError: if there are no examples, or a batch has more than two parts.
    """
    total, count = 0.0, 0
    with in_mode(model, training=False), torch.no_grad():
        for batch in batches:
            inputs, targets = parts_of(batch)
            size = _size(inputs if targets is None else targets)
            total += float(measure(outputs_of(model, inputs), targets)) * size
            count += size
    if count == 0:
        raise ValueError("evaluate: no examples, expected at least one")
    return total / count


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the fraction of examples whose largest output is the target class.

    Args:
        outputs: [batch, classes].
        targets: integers [batch].
    """
    return float((outputs.argmax(1) == targets).float().mean())


def parts_of(batch: Batch) -> tuple[Any, Any]:
    """Return inputs and targets of a batch; the targets of inputs alone are None.

    Raises:
        ValueError: if it is a tuple or list of neither one nor two.
    """
    if not isinstance(batch, tuple | list):
        return batch, None
    if len(batch) not in (1, 2):
        raise ValueError(
            f"batch: {len(batch)} parts, expected (inputs, targets) or inputs alone; several inputs "
            "are one tuple"
        )
    return batch[0], batch[1] if len(batch) == 2 else None


def outputs_of(model: nn.Module, inputs: Any) -> Any:
    """Return what the model gives for the inputs of a batch.

    A tuple or list becomes its arguments, a dict its named ones.
    """
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put every module into a mode, and afterwards back into the one it was in."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before.items():
            module.training = was_training


class _AtEpochEnd(Callback):
    def __init__(self, function: Callable[[State], None]) -> None:
        self._function = function

    def epoch_end(self, state: State) -> None:
        self._function(state)


def _size(values: Any) -> int:
    """Return the number of examples of inputs or targets, those of the first of several."""
    while not isinstance(values, Tensor):
        values = next(iter(values.values())) if isinstance(values, Mapping) else values[0]
    return len(values)


def _advance(scheduler: LRScheduler, loss: Tensor | float) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(float(loss))
    else:
        scheduler.step()


@contextmanager
def seeded(model: nn.Module, seed: int | None) -> Iterator[None]:
    """Seed torch's generators, and afterwards put them back; None leaves them alone."""
    if seed is None:
        yield
        return
    found = {parameter.device for parameter in model.parameters()}
    with torch.random.fork_rng([device for device in found if device.type == "cuda"]):
        torch.manual_seed(seed)
        yield
