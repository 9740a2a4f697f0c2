"""The pretext task of instances: every image is a class of its own (NPID).

::

    v      = the features of image i, of length 1
    memory = what each of the n images had last, of length 1
    P(i|v) = exp(memory[i] v / temperature) / sum_j exp(memory[j] v / temperature)
    loss   = mean of -log P(i|v)
    memory[i] = momentum * memory[i] + (1 - momentum) * v, of length 1 again

    with m negatives, j drawn from all n alike, the sum is a constant Z that the first batch estimates:
    h(j)   = P / (P + m / n)
    loss   = mean of -log h(i) - sum over the m of log(1 - h(j))

Why this way: with the features of all images at hand, "which image is it" needs neither a classifier
of n rows nor large batches. The exact sum costs n * features a row; negatives make it m * features.

Price: n * features floats of memory, and a copy of it a step.

Source: Wu, Xiong, Yu and Lin 2018, "Unsupervised feature learning via non-parametric instance
discrimination": temperature 0.07, momentum 0.5, 128 features, 4,096 negatives for ImageNet.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class InstanceMemory(nn.Module):
    """The loss of telling images apart, and the memory of their features.

    In `fit` it is the loss, of batches whose targets are the numbers of the images. The memory moves
    on while it is in training mode and gradients are computed. Its `state_dict()` has the memory and
    the state of the generator that negatives are drawn from, so that a training goes on to the same
    bits.

    Examples:
        >>> instances = InstanceMemory(100, 8)
        >>> loss = instances(torch.randn(4, 8, requires_grad=True), torch.tensor([0, 7, 3, 99]))
        >>> loss.shape, instances.memory.shape
        (torch.Size([]), torch.Size([100, 8]))
    """

    memory: Tensor
    constant: Tensor

    def __init__(
        self,
        count: int,
        features: int,
        *,
        temperature: float = 0.07,
        momentum: float = 0.5,
        negatives: int | None = None,
        seed: int = 0,
    ) -> None:
        """Fill the memory with random directions.

        Args:
            count: how many images there are, at least 1.
            features: how many a model gives of each, at least 1.
            temperature: what the cosines are divided by, above 0.
            momentum: what part of its features the memory of an image keeps, in [0, 1).
            negatives: how many to draw for each image, at least 1; None takes all.
            seed: of the first memory, and of what is drawn.

        Raises:
            ValueError: if an option is out of its range.
        """
        super().__init__()
        for name, number in (("count", count), ("features", features), ("negatives", negatives)):
            if number is not None and number < 1:
                raise ValueError(f"instances: {name} is {number}, expected at least 1")
        if not 0 < temperature < math.inf:
            raise ValueError(f"instances: temperature is {temperature}, expected a number above 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"instances: momentum is {momentum}, expected a number in [0, 1)")
        self._temperature, self._momentum, self._negatives = temperature, momentum, negatives
        self._generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(count, features, generator=self._generator)
        self.register_buffer("memory", F.normalize(drawn, dim=1))
        self.register_buffer("constant", torch.zeros(()))  # Z, once there is one

    def forward(self, features: Tensor, numbers: Tensor) -> Tensor:
        """Return the loss of features [batch, features] of the images of these numbers [batch].

        Raises:
            ValueError: if the shapes do not fit, or a number is not in [0, count).
        """
        count, width = self.memory.shape
        if features.dim() != 2 or features.shape[1] != width:
            shape = list(features.shape)
            raise ValueError(f"instances: features are {shape}, expected [batch, {width}]")
        if numbers.shape != features.shape[:1] or numbers.is_floating_point():
            found = f"{numbers.dtype} {list(numbers.shape)}"
            raise ValueError(f"instances: numbers are {found}, expected integers [{len(features)}]")
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < count:
            found = f"from {int(numbers.min())} to {int(numbers.max())}"
            raise ValueError(f"instances: numbers are {found}, expected 0 to {count - 1}")
        v = F.normalize(features, dim=1)
        if self._negatives is None:
            loss = F.cross_entropy(v @ self.memory.T / self._temperature, numbers)
        else:
            loss = self._estimated(v, numbers, self._negatives)
        if self.training and torch.is_grad_enabled():
            self._remember(v.detach(), numbers)
        return loss

    def get_extra_state(self) -> Tensor:
        """Return the state of the generator, for `state_dict`."""
        return self._generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Take the state of the generator, from `load_state_dict`."""
        self._generator.set_state(state.cpu())

    def _estimated(self, v: Tensor, numbers: Tensor, negatives: int) -> Tensor:
        count = len(self.memory)
        drawn = torch.randint(count, (len(v), negatives), generator=self._generator)
        rows = self.memory[torch.cat([numbers[:, None], drawn.to(v.device)], 1)]
        scores = torch.einsum("bmd,bd->bm", rows, v).div(self._temperature).exp()
        if self.constant == 0:
            self.constant = count * scores[:, 1:].detach().mean()
        p = scores / self.constant
        noise = negatives / count
        positive = -(p[:, 0] / (p[:, 0] + noise)).log()
        others = -(noise / (p[:, 1:] + noise)).log().sum(1)
        return (positive + others).mean()

    def _remember(self, v: Tensor, numbers: Tensor) -> None:
        moved = self._momentum * self.memory[numbers] + (1 - self._momentum) * v
        # Not in place: the gradient of this loss still needs the memory as it was.
        self.memory = self.memory.index_copy(0, numbers, F.normalize(moved, dim=1))
