"""The pretext task of contrast: two views of one image among views of all others in the batch.

::

    z  = 2 * batch features, each of length 1
    s  = z zᵀ / temperature, without the diagonal
    loss = mean over all 2 * batch of  -s[i, j] + log sum_k exp(s[i, k])      j the other view of i

Why this way: no memory and no labels, only two augmented views of each image of a batch; the other
images are what the pair has to stand out from, so that large batches teach more.

Source: Chen, Kornblith, Norouzi and Hinton 2020, "A simple framework for contrastive learning of
visual representations" (SimCLR; NT-Xent).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(first: Tensor, second: Tensor, *, temperature: float = 0.5) -> Tensor:
    """Return the loss of telling which features are of two views of one image, a scalar.

    In `fit`, with both views stacked in one batch of inputs:
    `loss=lambda outputs, _: contrastive_loss(*outputs.chunk(2))`.

    Args:
        first: features of one view of each image, float [batch, features] of any length each.
        second: those of the other view, in the same order and shape.
        temperature: what the cosines are divided by, above 0.

    Raises:
        ValueError: if the shapes do not fit, there is no image, or the temperature is out of range.

    Examples:
        >>> same = torch.eye(2)
        >>> round(float(contrastive_loss(same, same, temperature=1.0)), 4)  # log(1 + 2 / e)
        0.5514
    """
    if first.dim() != 2 or first.shape != second.shape or len(first) < 1:
        found = f"{list(first.shape)} and {list(second.shape)}"
        raise ValueError(
            f"contrastive loss: features are {found}, expected [batch, features] twice"
        )
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"contrastive loss: temperature is {temperature}, expected a number above 0"
        )
    count = len(first)
    z = F.normalize(torch.cat([first, second]), dim=1)
    similar = z @ z.T / temperature
    itself = torch.eye(2 * count, dtype=torch.bool, device=z.device)
    others = torch.arange(2 * count, device=z.device).roll(count)
    return F.cross_entropy(similar.masked_fill(itself, -math.inf), others)
