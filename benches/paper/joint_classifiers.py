"""Classifiers pruned by two scores, and pruned and quantized into a number of bytes.

::

    scores      LeNet-5, MNIST: pruning in rounds by Taylor scores, and by magnitude, three seeds
    resnet20    ResNet-20, CIFAR-10: the same, and one-shot magnitude pruning, three seeds of the batches
    budgets     ResNet-20, CIFAR-10: into a file of so many bytes by pruning alone, by quantizing
                alone, and by both, after as many steps of training, three seeds of the batches

In rounds a Taylor score is taken of what the last round has trained: it says what the loss would lose
next, and at once from a dense network to few weights it would leave some layer with next to none.

What is compared trains alike: images, steps, rate and optimizer, and after so short a training the
norms get their statistics anew. Choices are made on images that nothing is reported of: the last
5,000 training images of MNIST, and, since the ResNet has seen all training images of CIFAR-10, its
first test images.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import mnist
import torch
import torch.nn.functional as F
import trained
from cache import Cache
from cifar10 import Shifted
from networks import LeNet5
from stepwise import Advance, Shown, train
from torch import nn

import tersenet
from tersenet import Plan, fit_budget
from tersenet.parametrization import unparametrize
from tersenet.pipeline import prune_and_quantize
from tersenet.pruning import SoftPruning, prune, taylor_scores
from tersenet.quantization import quantize
from tersenet.training import Callback, TensorBatches, accuracy, evaluate, recalibrate

SEEDS = (0, 1, 2)
CRITERIA = ("magnitude", "taylor")
ROUNDS = (0.5, 0.8, 0.9, 0.95, 0.975, 0.99, 0.995)
SPARSITIES = (0.95, 0.975, 0.99, 0.995)  # those of them that are rows
RESNET_ROUNDS = (0.6, 0.8, 0.9)
BUDGETS = (44_500, 69_500)  # just above a file of 2, and of 4, values a layer and nothing pruned
JOINT = {"sparsities": (0.5, 0.6, 0.7, 0.8, 0.85, 0.9), "ks": (4, 8, 16)}
QUANTIZED = {"sparsities": (0.0,), "ks": (2, 3, 4, 5, 6)}
FOR_TRAINING = 600  # bytes of a budget that the search leaves: training changes what coders find

# In so few steps there is no time for a schedule: masks begin at the sparsity they end at.
_SOFT: dict[str, Any] = {"every": 4, "criterion": "magnitude"}

_LENET_BATCH, _RESNET_BATCH = 64, 128
_SCORED = {"mnist": 4_096, "cifar10": 1_024}  # training images for the Taylor scores of a round
_LENET_LR = 1e-3
_RESNET_LR = 0.01
_CODEBOOK_LR = 2e-3
_NORMED = 1_000  # training images of CIFAR-10, for the statistics of a candidate's norms
_DECIDING, _REPORTED = 1_000, 4_000  # test images of CIFAR-10; the search takes half of the first


@dataclass(frozen=True)
class Steps:
    """Of training, in each stage; all for 128 images, LeNet-5 for 64."""

    lenet_dense: int = 960
    lenet_round: int = 120
    resnet_pruned: int = 96
    resnet_budget: int = 96


@dataclass(frozen=True)
class ScoreRow:
    """LeNet-5 pruned by one criterion, after the training of a round."""

    seed: int
    sparsity: float
    criterion: str
    nnz: int
    validation: float
    test: float


@dataclass(frozen=True)
class ResNetRow:
    """ResNet-20 pruned in one way and trained on, as plain float32; dense as it is, by no seed."""

    seed: int | None
    method: str
    sparsity: float
    validation: float
    test: float


@dataclass(frozen=True)
class BytesRow:
    """ResNet-20 in a file of at most so many bytes; `searched`: minus the loss before training."""

    seed: int
    budget: int
    method: str
    sparsity: float
    k: int | None
    file_nbytes: int
    searched: float
    validation: float
    test: float


class Classifiers:
    """The stages of classifiers, on data that are read when they are needed."""

    def __init__(self, cache: Cache, advance: Advance, steps: Steps) -> None:
        """Keep where results go, and how much is trained."""
        self.cache, self.advance, self.steps = cache, advance, steps

    @cached_property
    def mnist(self) -> mnist.Mnist:
        """The images of MNIST."""
        return mnist.load()

    @cached_property
    def cifar(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As many training images of CIFAR-10 as one stage takes steps for."""
        count = _RESNET_BATCH * max(self.steps.resnet_pruned, self.steps.resnet_budget)
        images, classes = trained.cifar10(min(count, 50_000), "train")
        return trained.normalized(images), torch.from_numpy(classes).long()

    @cached_property
    def judged(self) -> tuple[TensorBatches, TensorBatches, TensorBatches]:
        """Test images of CIFAR-10 that decide the search, that decide, and that are reported."""
        images, classes = trained.cifar10(_DECIDING + _REPORTED)
        data = trained.normalized(images), torch.from_numpy(classes).long()
        parts = (slice(_DECIDING // 2), slice(_DECIDING), slice(_DECIDING, None))
        first, second, third = (
            TensorBatches(*(tensor[part] for tensor in data), batch_size=250, shuffle=False)
            for part in parts
        )
        return first, second, third

    def scores(self) -> list[dict[str, Any]]:
        """Compare the two criteria on LeNet-5, for each seed."""
        return [
            row
            for seed in SEEDS
            for row in self.cache.rows(f"scores-{seed}", lambda seed=seed: self._scores(seed))
        ]

    def resnet20(self) -> list[dict[str, Any]]:
        """Prune ResNet-20, for each seed."""
        ways = ("magnitude at once", "magnitude in rounds", "taylor in rounds")
        every = [(None, "dense"), *((seed, way) for seed in SEEDS for way in ways)]
        return [
            row
            for seed, method in every
            for row in self.cache.rows(
                f"resnet20-{seed}-{method.replace(' ', '-')}",
                lambda which=(seed, method): [self._pruned(*which)],
            )
        ]

    def budgets(self) -> list[dict[str, Any]]:
        """Compress ResNet-20 into each budget in three ways, for each seed."""
        ways = {"pruned": self._prune_only, "quantized": self._quantize_only, "joint": self._joint}
        return [
            row
            for seed in SEEDS
            for budget in BUDGETS
            for method, way in ways.items()
            for row in self.cache.rows(
                f"budgets-{seed}-{budget}-{method}",
                partial(self._within, seed, budget, method, way),
            )
        ]

    def _scores(self, seed: int) -> list[dict[str, Any]]:
        torch.manual_seed(seed)
        dense = LeNet5().to(memory_format=torch.channels_last)
        self._train_lenet(dense, self.steps.lenet_dense, f"LeNet-5, seed {seed}", seed)
        rows = [self._score_row(seed, 0.0, "none", dense)]
        for criterion in CRITERIA:
            net = copy.deepcopy(dense)
            for number, sparsity in enumerate(ROUNDS, 1):
                images = _some(self.mnist.train, "mnist", seed + number)
                _prune_round(net, sparsity, criterion, images)
                name = f"LeNet-5, seed {seed}, {sparsity:.1%}, {criterion}"
                self._train_lenet(net, self.steps.lenet_round, name, seed + number)
                if sparsity in SPARSITIES:
                    rows.append(self._score_row(seed, sparsity, criterion, net))
        return [asdict(row) for row in rows]

    def _score_row(self, seed: int, sparsity: float, criterion: str, net: nn.Module) -> ScoreRow:
        nnz = sum(int(module.weight.count_nonzero()) for module in net.children())
        values = (
            evaluate(net, TensorBatches(*images, batch_size=500, shuffle=False), accuracy)
            for images in (self.mnist.validation, self.mnist.test)
        )
        return ScoreRow(seed, sparsity, criterion, nnz, *values)

    def _train_lenet(self, net: nn.Module, steps: int, name: str, seed: int) -> None:
        train(
            net,
            TensorBatches(*self.mnist.train, batch_size=_LENET_BATCH, seed=seed),
            steps=steps,
            optimizer=torch.optim.Adam(net.parameters(), _LENET_LR, fused=True),
            lr=_LENET_LR,
            loss=F.cross_entropy,
            seed=seed,
            callbacks=[Shown(self.advance, name, steps)],
        )

    def _pruned(self, seed: int | None, method: str) -> dict[str, Any]:
        model = _resnet()
        criterion, _, way = method.partition(" ")
        rounds = {"dense": (), "in rounds": RESNET_ROUNDS, "at once": RESNET_ROUNDS[-1:]}
        found = rounds[way or method]
        for number, sparsity in enumerate(found):
            scored = _some(self.cifar, "cifar10", (seed or 0) + number)
            _prune_round(model, sparsity, criterion, scored)
            steps = self.steps.resnet_pruned // len(found)
            name = f"ResNet-20, {method}, {sparsity:.0%}, seed {seed}"
            self._train_resnet(model, steps, name, _RESNET_LR, seed=seed or 0)
        if found:
            unparametrize(model)
            self._recalibrate(model)
        return asdict(ResNetRow(seed, method, _sparsity(model), *self._judge(model)))

    def _train_resnet(
        self,
        model: nn.Module,
        steps: int,
        name: str,
        lr: float,
        callbacks: Sequence[Callback] = (),
        seed: int = 0,
    ) -> None:
        train(
            model,
            Shifted(*self.cifar, batch_size=_RESNET_BATCH, seed=seed),
            steps=steps,
            optimizer=torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True),
            lr=lr,
            loss=F.cross_entropy,
            seed=seed,
            callbacks=[*callbacks, Shown(self.advance, name, steps)],
        )

    def _judge(self, model: nn.Module) -> tuple[float, float]:
        _, deciding, reported = self.judged
        return evaluate(model, deciding, accuracy), evaluate(model, reported, accuracy)

    def _searched(self, model: nn.Module) -> float:
        """Return minus the loss, finer than accuracy, once the norms know the compressed layers."""
        self._recalibrate(model)
        return -evaluate(model, self.judged[0], F.cross_entropy)

    def _recalibrate(self, model: nn.Module) -> None:
        images = self.cifar[0][:_NORMED].split(250)
        recalibrate(model, [(part, None) for part in images])

    def _within(self, seed: int, budget: int, method: str, way: Callable) -> list[dict[str, Any]]:
        """Search, train, and check the bytes of the file that is written at the end."""
        model = _resnet()
        name = f"{budget:,} bytes, {method}, seed {seed}"
        sparsity, k, searched = way(model, budget - FOR_TRAINING, name, seed)
        unparametrize(model)
        self._recalibrate(model)
        nbytes = _file_nbytes(model)
        if nbytes > budget:
            raise RuntimeError(f"{method}: the file takes {nbytes:,} bytes, expected {budget:,}")
        judged = self._judge(model)
        return [asdict(BytesRow(seed, budget, method, sparsity, k, nbytes, searched, *judged))]

    def _prune_only(
        self, model: nn.Module, nbytes: int, name: str, seed: int
    ) -> tuple[float, None, float]:
        """Prune as few as the bytes allow, in steps of half a percent, and train."""
        least, most = 100, 199  # in halves of a percent
        while least < most:
            middle = (least + most) // 2
            found = _file_nbytes(model, Plan.of(sparsity=middle / 200))
            least, most = (least, middle) if found <= nbytes else (middle + 1, most)
        sparsity, steps = least / 200, self.steps.resnet_budget
        plan = Plan.of(sparsity=sparsity)
        searched = self._searched(tersenet.compress(model, plan))
        soft_steps = max(steps // 2, 1)
        soft = SoftPruning(model, plan, steps=soft_steps, initial=sparsity, **_SOFT)
        self._train_resnet(model, steps, name, _RESNET_LR, [soft], seed)
        return sparsity, None, searched

    def _quantize_only(
        self, model: nn.Module, nbytes: int, name: str, seed: int
    ) -> tuple[float, int, float]:
        """Share as many values as do best within the bytes, and train."""
        fit = fit_budget(model, nbytes, self._searched, **QUANTIZED)
        plan = fit.plan
        quantize(model, plan)
        self._train_resnet(model, self.steps.resnet_budget, name, _CODEBOOK_LR, seed=seed)
        return 0.0, plan.layers["*"].k or 0, fit.value

    def _joint(
        self, model: nn.Module, nbytes: int, name: str, seed: int
    ) -> tuple[float, int, float]:
        """Search the sparsity and the number of values together, and train in both stages."""
        fit = fit_budget(model, nbytes, self._searched, **JOINT)
        rule = fit.plan.layers["*"]
        quantizing = self.steps.resnet_budget // 3
        steps = {
            "pruning": self.steps.resnet_budget - quantizing,
            "quantization": quantizing,
        }
        lr = {"pruning": _RESNET_LR, "quantization": _CODEBOOK_LR}

        def train_stage(model: nn.Module, callbacks: Sequence[Callback], stage: str) -> None:
            self._train_resnet(model, steps[stage], f"{name}, {stage}", lr[stage], callbacks, seed)

        soft_steps = max(2 * steps["pruning"] // 3, 1)
        sparsity = rule.sparsity or 0.0
        prune_and_quantize(
            model, fit.plan, train_stage, steps=soft_steps, initial=sparsity, **_SOFT
        )
        return sparsity, rule.k or 0, fit.value


def _some(images: mnist.Images, data: str, seed: int) -> TensorBatches:
    """Return the training images that a round is scored by."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images[0]), generator=generator)[: _SCORED[data]]
    parts = (tensor[chosen] for tensor in images)
    return TensorBatches(*parts, batch_size=_LENET_BATCH, shuffle=False)


def _prune_round(net: nn.Module, sparsity: float, criterion: str, images: TensorBatches) -> None:
    """Prune all layers together to a sparsity."""
    scores = taylor_scores(net, images, F.cross_entropy) if criterion == "taylor" else None
    prune(net, Plan.of(sparsity=sparsity, pruning_scope="global"), scores=scores)


def _resnet() -> nn.Module:
    return trained.resnet(20).to(memory_format=torch.channels_last)


def _weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter for parameter in model.parameters() if parameter.dim() > 1]


def _sparsity(model: nn.Module) -> float:
    weights = _weights(model)
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


def _file_nbytes(model: nn.Module, plan: Plan | None = None) -> int:
    """Return the bytes of the file for size of a plain model, as it is or as a plan makes it."""
    with tempfile.TemporaryDirectory() as folder:
        small = tersenet.compress(model, plan)
        return tersenet.save(small, Path(folder, "model.terse"), goal="size")
