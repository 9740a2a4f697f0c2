"""Batches of tensors that are in memory already, without workers or queues."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


class TensorBatches:
    """Batches of tensors in memory, in a new order each epoch, the same for the same seed.

    The last batch may be smaller. A second iteration gives the next order, a new object with the
    same seed gives the first again.

    Examples:
        >>> batches = TensorBatches(torch.arange(3), torch.arange(3), batch_size=2, shuffle=False)
        >>> [inputs.tolist() for inputs, targets in batches]
        [[0, 1], [2]]
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor | None = None,
        *,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        """Keep the tensors, whose first dimensions count the examples; targets may be None.

        Raises:
            ValueError: if these differ, or `batch_size` is under 1.
        """
        if targets is not None and len(inputs) != len(targets):
            raise ValueError(f"batches: {len(targets)} targets, expected {len(inputs)}, as inputs")
        if batch_size < 1:
            raise ValueError(f"batches: batch_size is {batch_size}, expected at least 1")
        self._inputs, self._targets = inputs, targets
        self._batch_size, self._shuffle = batch_size, shuffle
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Return the number of batches."""
        return math.ceil(len(self._inputs) / self._batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Iterate over (inputs, targets) of each batch; without targets these are None."""
        count = len(self._inputs)
        order = None
        if self._shuffle:
            order = torch.randperm(count, generator=self._generator).to(self._inputs.device)
        for start in range(0, count, self._batch_size):
            place = slice(start, start + self._batch_size)
            chosen = place if order is None else order[place]
            targets = None if self._targets is None else self._targets[chosen]
            yield self._inputs[chosen], targets
