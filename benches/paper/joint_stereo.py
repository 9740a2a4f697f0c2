"""A stereo network compressed to a fiftieth: disparities of stereograms, and of two real pairs.

::

    early       trained on generated stereograms
    dense       the early one trained on
    longer      the dense one trained on for as many steps as the compressed one, for a fair measure
    compressed  the dense one: soft pruning by Taylor scores, then shared weights, both while training
    each        the end-point error: mean distance of disparities where they are valid, in pixels
    compressed  exported; its errors are those of `Network`, from the compressed weights

Three seeds, of the first weights, of the order and the turns of the stereograms, and of the plan; all
train on the same stereograms. The real pairs are photographs, which no network has trained on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from cache import Cache
from stepwise import Advance, Shown, train
from stereo_net import StereoNet, disparity_loss, end_point_error
from stereograms import PAIRS, Stereograms, middlebury
from torch import Tensor, nn

import tersenet
from tersenet import Plan
from tersenet.parametrization import unparametrize
from tersenet.pipeline import prune_and_quantize
from tersenet.training import Callback, TensorBatches

SEEDS = (0, 1, 2)
TOLERANCE = 1e-3  # pixels between torch and Network

_BATCH = 8
_LR = {"early": 2e-3, "dense": 2e-3, "pruning": 2e-3, "quantization": 8e-4}
_IMAGE_SEEDS = {"training": 1, "validation": 2, "test": 3}
_TOGETHER = 16


@dataclass(frozen=True)
class Steps:
    """Of training, each of 8 stereograms, and how many of these there are."""

    early: int = 3_000
    dense: int = 2_000
    soft: int = 500  # of those of pruning: what is pruned may still return
    pruning: int = 1_400
    quantization: int = 600
    stereograms: int = 2_048
    judged: int = 128


@dataclass(frozen=True)
class StereoRow:
    """One network: weights that are not zero, bytes of all weights, end-point errors in pixels."""

    seed: int
    network: str
    weights: int
    nnz: int
    nbytes: int
    validation: float
    test: float
    teddy: float
    cones: float


class Flipped:
    """Shuffled stereograms, each batch upside down or not."""

    def __init__(self, images: Tensor, targets: Tensor, seed: int) -> None:
        """Keep the stereograms."""
        self._batches = TensorBatches(images, targets, batch_size=_BATCH, seed=seed)
        self._generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over (images, targets) of each batch."""
        for images, targets in self._batches:
            is_flipped = bool(torch.rand(1, generator=self._generator) < 0.5)
            yield tuple(part.flip(2) if is_flipped else part for part in (images, targets))


class Stereo:
    """The stages of stereo."""

    def __init__(self, cache: Cache, advance: Advance, steps: Steps) -> None:
        """Keep where results go, and how much is trained."""
        self.cache, self.advance, self.steps = cache, advance, steps

    @cached_property
    def training(self) -> tuple[Tensor, Tensor]:
        """The stereograms of training."""
        count = self.steps.stereograms // _TOGETHER
        found = []
        for number, batch in enumerate(self._stereograms("training", count)):
            found.append(batch)
            self.advance("stereograms", number + 1, count)
        images, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
        return images, targets

    def rows(self) -> list[dict[str, Any]]:
        """Train the three networks of each seed and measure them."""
        return [row for seed in SEEDS for row in self.rows_of(seed)]

    def rows_of(self, seed: int) -> list[dict[str, Any]]:
        """Train the networks of a seed and measure them."""
        torch.manual_seed(seed)
        net = StereoNet().to(memory_format=torch.channels_last)
        nets = {}

        def trained(name: str, work: Callable[[], None]) -> None:
            self.cache.stage(f"stereo-{seed}-{name}", net, work)
            nets[name] = copy.deepcopy(net)

        steps = self.steps
        trained("early", lambda: self._train(net, "early", steps.early, [], seed))
        trained("dense", lambda: self._train(net, "dense", steps.dense, [], seed))
        more = steps.pruning + steps.quantization
        trained("longer", lambda: self._train(net, "dense", more, [], seed))
        net = copy.deepcopy(nets["dense"])
        trained("compressed", lambda: self._compress(net, seed))
        return [
            row
            for name, made in nets.items()
            for row in self.cache.rows(
                f"stereo-{seed}-{name}",
                lambda name=name, made=made: [asdict(self._row(seed, name, made))],
            )
        ]

    def constant(self) -> float:
        """Return the error on the test stereograms of the one disparity that does best there."""
        targets = torch.cat([batch[1] for batch in self._stereograms("test", self._judged)])
        disparity = targets[:, 0][targets[:, 1] > 0]
        return float((disparity - disparity.median()).abs().mean())

    @property
    def _judged(self) -> int:
        return max(self.steps.judged // _TOGETHER, 1)

    def _stereograms(self, part: str, batches: int) -> Stereograms:
        return Stereograms(batches, batch_size=_TOGETHER, seed=_IMAGE_SEEDS[part])

    def _train(
        self, net: nn.Module, stage: str, steps: int, callbacks: Sequence[Callback], seed: int
    ) -> None:
        train(
            net,
            Flipped(*self.training, seed=len(_LR) * seed + list(_LR).index(stage)),
            steps=steps,
            optimizer=torch.optim.Adam(net.parameters(), _LR[stage], fused=True),
            lr=_LR[stage],
            loss=disparity_loss,
            seed=seed,
            callbacks=[*callbacks, Shown(self.advance, f"stereo {seed}, {stage}", steps)],
        )

    def _compress(self, net: nn.Module, seed: int) -> None:
        steps = {"pruning": self.steps.pruning, "quantization": self.steps.quantization}

        def train_stage(model: nn.Module, callbacks: Sequence[Callback], stage: str) -> None:
            self._train(model, stage, steps[stage], callbacks, seed)

        plan = Plan.of(sparsity=0.88, pruning_scope="global", quantizer="cws", k=16, seed=seed)
        prune_and_quantize(net, plan, train_stage, steps=self.steps.soft, every=20)
        unparametrize(net)

    def _row(self, seed: int, name: str, net: nn.Module) -> StereoRow:
        """Measure a network; the compressed one as it runs from its file."""
        weights = [p for p in net.parameters() if p.dim() > 1]
        count = sum(w.numel() for w in weights)
        nnz = sum(int(w.count_nonzero()) for w in weights)
        data: dict[str, Any] = {
            part: list(self._stereograms(part, self._judged)) for part in ("validation", "test")
        }
        data |= {pair: [middlebury(pair)] for pair in PAIRS}
        if name != "compressed":
            errors = {part: end_point_error(net, batches) for part, batches in data.items()}
            return StereoRow(seed, name, count, nnz, 4 * count, **errors)
        nbytes, errors = 0, {}
        for part, batches in data.items():
            kind = "real" if part in PAIRS else "generated"
            path = self.cache.folder / f"stereo-{seed}-{kind}.terse"
            if part in ("validation", PAIRS[0]):  # one file for each size of images
                plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format).eval()
                size = tersenet.export(plain, batches[0][0], path, goal="size")
                nbytes = max(nbytes, size)
            errors[part] = end_point_error(_FromFile(net, tersenet.Network.load(path)), batches)
        return StereoRow(seed, name, count, nnz, nbytes, **errors)


class _FromFile(nn.Module):
    """A network that runs from its compressed weights, beside the torch one that it has to match."""

    def __init__(self, net: nn.Module, network: tersenet.Network) -> None:
        super().__init__()
        self._net, self._network = net, network

    def forward(self, images: Tensor) -> Tensor:
        found = self._network.run(images.numpy(), threads=1)
        distance = float(np.abs(found - self._net(images).numpy()).max())
        if distance > TOLERANCE:
            raise RuntimeError(
                f"stereo: Network's disparities are {distance:.2g} pixels from torch's, "
                f"expected at most {TOLERANCE}"
            )
        return torch.from_numpy(found)
