"""A larger ResNet of CIFAR-10 teaches a smaller one: by its classes, and by what its stages give.

::

    loss + T^2 KL(softmax(teacher / T) || softmax(model / T))
         + sum over stages of mean (model's - teacher's)^2 / mean teacher's^2

Both see the same images. The teacher computes as it is, in evaluation mode, without gradients.

Source: Hinton et al. 2015, "Distilling the knowledge in a neural network" (arXiv 1503.02531), for the
classes; Romero et al. 2015, "FitNets" (arXiv 1412.6550), for the stages.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersenet.training import Callback, State

TEMPERATURE = 4.0


class Taught(Callback):
    """Adds the teacher's terms to the loss, until closed."""

    def __init__(self, model: nn.Module, teacher: nn.Module) -> None:
        """Watch the stages of both."""
        self._teacher = teacher
        self._stages: list[dict[int, Tensor]] = [{}, {}]
        self._hooks = [
            getattr(network, f"layer{stage}").register_forward_hook(partial(self._note, at, stage))
            for at, network in enumerate((model, teacher))
            for stage in (1, 2, 3)
        ]

    def _note(self, at: int, stage: int, _: nn.Module, __: object, output: Tensor) -> None:
        self._stages[at][stage] = output

    def loss_computed(self, state: State) -> None:
        """Add the terms."""
        with torch.no_grad():
            wanted = F.softmax(self._teacher(state.inputs) / TEMPERATURE, 1)
        found = F.log_softmax(state.outputs / TEMPERATURE, 1)
        state.loss = state.loss + TEMPERATURE**2 * F.kl_div(found, wanted, reduction="batchmean")
        mine, its = self._stages
        for stage, output in its.items():
            state.loss = state.loss + F.mse_loss(mine[stage], output) / output.square().mean()

    def close(self) -> None:
        """Watch no longer."""
        for hook in self._hooks:
            hook.remove()
