"""LeNet-5 on MNIST: dense training, and training what is left of it by what the dense one says.

The network is Caffe's: 430,500 weights, no activation after a convolution, so that the biases of
the convolutions fold into those of ip1. Inputs are pixels / 255.

The pruned networks train on the training images and slightly warped copies of them; the loss is
half the cross-entropy of the labels and half that of the dense network's softened scores (Hinton et
al. 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import mnist
import numpy as np
import torch
import torch.nn.functional as F
from networks import LeNet5
from torch import Tensor, nn

from tersenet.parametrization import original_of
from tersenet.pruning import Stage, taylor_scores
from tersenet.training import Callback, TensorBatches, evaluate, fit

DENSE_EPOCHS = 8
EPOCH = 13_760  # images between two updates of ADMM, a quarter of the training images

_BATCH_SIZE = 64
_SCORED = 5_000  # images
_TEMPERATURE = 3.0

Train = Callable[[nn.Module, Sequence[Callback], Stage], None]


def train_dense(net: LeNet5, data: mnist.Mnist, seed: int) -> None:
    """Train on warped images, then fold the convolutions' biases into ip1's."""
    batches = mnist.WarpedBatches(data.train, batch_size=_BATCH_SIZE, seed=seed)
    net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-3, total_steps=DENSE_EPOCHS * len(batches), pct_start=0.2
    )
    fit(
        net,
        batches,
        epochs=DENSE_EPOCHS,
        optimizer=optimizer,
        loss=F.cross_entropy,
        scheduler=scheduler,
        scheduler_unit="step",
        seed=seed,
    )


def fold_biases(net: LeNet5) -> None:
    """Move the biases of the convolutions, which no activation follows, into ip1's."""
    with torch.no_grad():
        through = net.conv2.weight.sum((2, 3)) @ net.conv1.bias + net.conv2.bias
        net.ip1.bias += net.ip1.weight @ through.repeat_interleave(16)
    net.conv1.bias = net.conv2.bias = None


class Batches:
    """An endless shuffled stream of examples, cut into epochs of one length."""

    def __init__(self, inputs: Tensor, targets: Tensor, batch_size: int, seed: int) -> None:
        """Keep the tensors, whose first dimensions count the examples."""
        self._inputs, self._targets = inputs, targets
        self._batch_size = batch_size
        self._generator = torch.Generator(inputs.device).manual_seed(seed)
        self._stream = self._endless()

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return EPOCH // self._batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over (inputs, targets) of the next epoch."""
        for _ in range(len(self)):
            chosen = next(self._stream)
            yield self._inputs[chosen], self._targets[chosen]

    def _endless(self) -> Iterator[Tensor]:
        while True:
            order = torch.randperm(
                len(self._inputs), generator=self._generator, device=self._inputs.device
            )
            yield from order[: len(order) // self._batch_size * self._batch_size].split(
                self._batch_size
            )


def distillation(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the cross-entropy of the labels, half that of the teacher's softened scores.

    Args:
        outputs: [batch, 10], of any type.
        targets: the teacher's scores and the label, [batch, 11].
    """
    outputs = outputs.float()
    scores, labels = targets[:, :10], targets[:, 10].long()
    soft = F.kl_div(
        F.log_softmax(outputs / _TEMPERATURE, 1),
        F.log_softmax(scores / _TEMPERATURE, 1),
        reduction="batchmean",
        log_target=True,
    )
    return (F.cross_entropy(outputs, labels) + _TEMPERATURE**2 * soft) / 2


class Trainer:
    """Trains a LeNet-5 by what a dense one says."""

    def __init__(self, data: mnist.Mnist, teacher: LeNet5, *, copies: int, seed: int) -> None:
        """Warp copies of the training images, and ask the teacher about all."""
        self.seed = seed
        self.validation = data.validation
        plain = TensorBatches(*data.train, batch_size=1000, shuffle=False)
        warped = mnist.WarpedBatches(
            data.train, batch_size=1000, seed=seed, degrees=4, scale=0.04, pixels=0.7
        )
        with torch.no_grad():
            pairs = [
                (x, torch.cat([teacher(x), y[:, None].float()], 1))
                for batches in (plain, *[warped] * copies)
                for x, y in batches
            ]
        self.inputs, self.targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))

    @property
    def steps(self) -> int:
        """The optimizer's steps of an epoch."""
        return EPOCH // _BATCH_SIZE

    def scores(self, net: LeNet5) -> dict[str, np.ndarray]:
        """Return the Taylor scores of a network's weights, on some of the images."""
        chosen = slice(_SCORED)
        batches = zip(self.inputs[chosen].split(500), self.targets[chosen].split(500), strict=True)
        return taylor_scores(net, list(batches), distillation)

    def train(self, epochs: dict[str, int], lr: dict[str, float], *, tidies: bool = True) -> Train:
        """Return what trains a network, for as many epochs in each phase."""

        def train(model: nn.Module, callbacks: Sequence[Callback], stage: Stage) -> None:
            batches = Batches(self.inputs, self.targets, _BATCH_SIZE, stage.seed)
            _train(model, batches, epochs[stage.phase], lr[stage.phase], callbacks, stage)
            if tidies:
                tidy(model)

        return train

    def validate(self, model: nn.Module) -> float:
        """Return minus the validation loss, which is finer than accuracy."""
        return -evaluate(model, [self.validation], F.cross_entropy)


def _train(
    model: nn.Module,
    batches: Batches,
    epochs: int,
    lr: float,
    callbacks: Sequence[Callback],
    stage: Stage,
) -> None:
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    if stage.phase in ("admm", "rate"):
        scheduler = None
    else:
        steps = epochs * len(batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, lr, total_steps=steps, pct_start=0.1
        )
    fit(
        model,
        batches,
        epochs=epochs,
        optimizer=optimizer,
        loss=distillation,
        scheduler=scheduler,
        scheduler_unit="step",
        callbacks=callbacks,
        seed=stage.seed,
    )


def tidy(model: nn.Module) -> None:
    """Set weights to zero that cannot matter, without a change to what is computed.

    A hidden unit that no score uses needs no inputs; one without inputs is a constant, which the
    biases of the scores take over.
    """
    ip1, ip2 = model.ip1, model.ip2
    with torch.no_grad():
        unused = (ip2.weight == 0).all(0)
        constant = (ip1.weight == 0).all(1)
        ip2.bias += ip2.weight[:, constant] @ ip1.bias[constant].relu()
        dead = unused | constant
        ip1.bias[dead] = 0
        for layer, place in ((ip1, (dead, slice(None))), (ip2, (slice(None), dead))):
            original_of(layer, "weight")[place] = 0
