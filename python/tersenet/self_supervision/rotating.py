"""The pretext task of rotations: by how many quarter turns an image was turned.

::

    class k:  the image turned counter-clockwise by k quarter turns, k in 0 … 3

Why this way: to tell how an image was turned, a network has to know what is usually upright in it.
The targets come from the images alone, and the loss is the cross-entropy of any classifier. All four
turns of an image in one batch, as published, cost four times the work of a batch; one turn of each,
drawn at random, gives as many images a second for as many different images.

Source: Gidaris, Singh and Komodakis 2018, "Unsupervised representation learning by predicting image
rotations" (RotNet).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from tersenet.training.loop import Batch, parts_of

TURNS = ("all", "random")


def rotated(images: Tensor, turns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return turned images and by how many quarter turns each is turned, counter-clockwise.

    Args:
        images: [batch, ..., side, side], of any type.
        turns: integers in [0, 4) [batch]. None returns all four turns, [4 * batch, ..., side, side],
            first all images as they are, then all after one quarter turn, and so on.

    Raises:
        ValueError: if the images are not square, or the turns do not fit them.

    Examples:
        >>> images, classes = rotated(torch.tensor([[[1, 2], [3, 4]]]))
        >>> images[1].tolist(), classes.tolist()
        ([[2, 4], [1, 3]], [0, 1, 2, 3])
    """
    if images.dim() < 3 or images.shape[-1] != images.shape[-2]:
        raise ValueError(
            f"rotated: images are {list(images.shape)}, expected square ones [batch, ..., n, n]"
        )
    every = [torch.rot90(images, k, (-2, -1)) for k in range(4)]
    if turns is None:
        classes = torch.arange(4, device=images.device).repeat_interleave(len(images))
        return torch.cat(every), classes
    if turns.shape != (len(images),) or turns.is_floating_point():
        found = f"{turns.dtype} {list(turns.shape)}"
        raise ValueError(f"rotated: turns are {found}, expected integers [{len(images)}]")
    if len(turns) and not 0 <= int(turns.min()) <= int(turns.max()) < 4:
        raise ValueError(
            f"rotated: turns are from {int(turns.min())} to {int(turns.max())}, expected 0 to 3"
        )
    turns = turns.to(images.device)
    chosen = images.clone()
    for k in range(1, 4):
        chosen[turns == k] = every[k][turns == k]
    return chosen, turns.long()


class RotatedBatches:
    """Batches of turned images and their classes, from batches of images and whatever targets.

    Examples:
        >>> batches = RotatedBatches([(torch.zeros(5, 3, 8, 8), None)])
        >>> [(list(images.shape), len(classes)) for images, classes in batches]
        [([20, 3, 8, 8], 20)]
    """

    def __init__(self, batches: Iterable[Batch], *, turns: str = "all", seed: int = 0) -> None:
        """Keep the batches.

        Args:
            batches: images, as `rotated` takes them, or (images, targets), whose targets are
                dropped.
            turns: "all" four of each image, or one at "random".
            seed: of these; a second iteration draws on, a new object draws the first again.

        Raises:
            ValueError: if `turns` is neither.
        """
        if turns not in TURNS:
            words = " or ".join(map(repr, TURNS))
            raise ValueError(f"rotated batches: turns is {turns!r}, expected {words}")
        self._batches, self._turns = batches, turns
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Return the number of batches, where these have one."""
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over (images, classes) of each batch."""
        for batch in self._batches:
            images, _ = parts_of(batch)
            turns = None
            if self._turns == "random":
                turns = torch.randint(0, 4, (len(images),), generator=self._generator)
            yield rotated(images, turns)
