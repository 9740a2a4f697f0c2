"""What a training method does at which place of the loop.

A method is a class that overrides the places it needs; a `State` tells it where the loop is, and
lets it replace the loss or stop. `loop` shows the order of the places.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass
class State:
    """What the loop and its callbacks share.

    `epoch` and `step` count from 0, steps over all epochs. In a step `inputs` and `targets` are
    those of the batch, `outputs` the model's and `loss` the tensor that is differentiated.
    `losses` has the mean loss of each finished epoch. `stop = True` ends after the present epoch.
    """

    model: nn.Module
    optimizer: Optimizer
    epochs: int
    epoch: int = 0
    step: int = 0
    inputs: Any = None
    targets: Any = None
    outputs: Any = None
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    losses: list[float] = field(default_factory=list)
    stop: bool = False


class Callback:
    """A method that joins the loop; each of its places does nothing unless overridden."""

    def fit_start(self, state: State) -> None:
        """Join before the first epoch."""

    def epoch_start(self, state: State) -> None:
        """Join before the first step of an epoch."""

    def step_start(self, state: State) -> None:
        """Join before the model sees a batch."""

    def loss_computed(self, state: State) -> None:
        """Join before the gradients are computed; `state.loss` may be replaced."""

    def gradients_computed(self, state: State) -> None:
        """Join before the optimizer uses the gradients, which may be changed."""

    def step_end(self, state: State) -> None:
        """Join after the optimizer's step."""

    def epoch_end(self, state: State) -> None:
        """Join after the last step of an epoch; `state.losses[-1]` is its mean loss."""

    def fit_end(self, state: State) -> None:
        """Join after the last epoch."""
