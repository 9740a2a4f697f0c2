"""Training for a number of steps, whatever the number of examples, with its progress shown."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice, repeat

import torch
from torch import nn
from torch.optim import Optimizer

from tersenet.training import Batch, Callback, Loss, State, fit

Advance = Callable[[str, int, int], None]

_SAID_EVERY_S = 20.0  # seconds, where there is no terminal


class Shown(Callback):
    """Shows the steps of a training."""

    def __init__(self, advance: Advance, what: str, steps: int) -> None:
        """Say what is trained, and for how long."""
        self._advance, self._what, self._steps = advance, what, steps

    def step_end(self, state: State) -> None:
        """Show a step."""
        self._advance(self._what, state.step + 1, self._steps)


def said(advance: Advance) -> Advance:
    """Return what shows bars on a terminal, and elsewhere prints a line now and then."""
    last = [0.0]

    def both(what: str, done: int, total: int) -> None:
        advance(what, done, total)
        now = time.monotonic()
        if not sys.stderr.isatty() and (done == total or now - last[0] > _SAID_EVERY_S):
            last[0] = now
            print(f"{time.strftime('%X')} {what}: {done} of {total}", file=sys.stderr)

    return both


def train(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    steps: int,
    optimizer: Optimizer,
    lr: float,
    loss: Loss,
    seed: int,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train for so many steps, over the batches again and again; the rate rises, then falls to 0."""
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.15)
    fit(
        model,
        islice(chain.from_iterable(repeat(batches)), steps),
        epochs=1,
        optimizer=optimizer,
        loss=loss,
        scheduler=schedule,
        scheduler_unit="step",
        callbacks=list(callbacks),
        seed=seed,
    )
