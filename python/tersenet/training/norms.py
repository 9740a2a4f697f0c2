"""Batch norms get the statistics of the network as it now is: no labels, no training.

::

    every module but the batch norms in evaluation mode
    for each batch of inputs:
        each batch norm normalizes by the batch, and adds up   n, the mean of x, the squares about it
    running_mean, running_var = mean and unbiased variance of all that it saw

    with a reference, the network before compression:           # inputs not as in training
        running_var  *= variance here / variance there          # r² times
        running_mean  = mean here - r * (mean there - running_mean)

Why this way: pruned or shared weights shift what every later layer sees, and the running statistics
in its batch norm are still those of the dense network. What is lost by that costs a pass over a few
hundred inputs to get back. Statistics of batches are pooled (Chan, Golub and LeVeque 1983) and not
averaged as the momentum of training does, so that neither the last batches nor a small one weighs
more than its inputs, and the size of the batches hardly matters.

Where inputs are not distributed as those of training (other speakers, no augmentation), their
statistics would be wrong for the dense network already. With it as the reference what a norm gives for
them has the mean and the variance that it had before compression: only what that changed is taken over.

Price: a pass over the inputs (two with a reference), and two float64 a channel.

Source: Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm" (arXiv 2105.07576: precise statistics);
of pruned networks Li, Wu, Su and Wang 2020, "EagleEye" (arXiv 2007.02491: adaptive batch norm). What
a reference is for is our own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tersenet.training.loop import Batch, in_mode, outputs_of, parts_of


def recalibrate(
    model: nn.Module, batches: Iterable[Batch], *, reference: nn.Module | None = None
) -> None:
    """Set the running statistics of all batch norms to those of the inputs, in place.

    After `compress`, `prune` or a training under masks: what is measured is what the layers give
    now. A norm without running statistics, or one that sees no input, stays as it is.

    Args:
        model: with batch norms; every module is afterwards in the mode it was in.
        batches: inputs, or (inputs, targets), as for `fit`, some hundred inputs in all; each norm
            has to see at least two values a channel in a batch. Targets are not looked at.
        reference: the network before compression, where the inputs are not distributed as those of
            training; it has each of these batch norms by its name, and may have more, of layers that
            were removed. It is left as it was.

    Raises:
        ValueError: if there are no batches, no batch norm has running statistics or sees an input,
            one sees a single value a channel, statistics are not finite, or a batch norm is not in
            the reference, or sees nothing there. The model is as it was.

    Examples:
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)).requires_grad_(False)
        >>> model[0].weight.fill_(2.0), model[0].bias.fill_(0.0)
        (Parameter containing:
        tensor([[2.]]), Parameter containing:
        tensor([0.]))
        >>> recalibrate(model, [torch.tensor([[1.0], [2.0], [3.0]])])
        >>> model[1].running_mean, model[1].running_var
        (tensor([4.]), tensor([4.]))
    """
    norms = _norms(model)
    if not norms:
        raise ValueError(
            "recalibrate: no batch norm with running statistics, expected at least one"
        )
    if reference is not None:
        _check_same(norms, _norms(reference))
        batches = list(batches)  # both networks see the same, in the same order
    after = _measured(model, norms, batches)
    if reference is None:
        found = after
    else:
        before = _measured(reference, _norms(reference), batches)
        unseen = sorted(after.keys() - before.keys())
        if unseen:
            raise ValueError(
                f"recalibrate: batch norm {unseen[0]!r} sees no input in the reference, expected the "
                "inputs of the model"
            )
        found = {name: _moved(norms[name], before[name], after[name]) for name in after}
    for name, (mean, variance) in found.items():
        if not (mean.isfinite().all() and variance.isfinite().all()):
            raise ValueError(
                f"recalibrate: the statistics of batch norm {name!r} hold non-finite values, "
                "expected finite ones"
            )
    for name, (mean, variance) in found.items():
        _buffer(norms[name], "running_mean").copy_(mean)
        _buffer(norms[name], "running_var").copy_(variance)


Statistics = tuple[Tensor, Tensor]


class _Moments:
    """The number of values a channel, their mean, and the sum of squares about it; float64."""

    def __init__(self, name: str) -> None:
        self._name, self._count = name, 0
        self._mean: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def __call__(self, norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Add what the norm sees: [batch, channels, …]."""
        x = inputs[0].detach()
        count = x.numel() // x.shape[1]
        if count < 2:
            raise ValueError(
                f"recalibrate: batch norm {self._name!r} sees {count} value a channel in a batch, "
                "expected at least 2"
            )
        dims = [d for d in range(x.dim()) if d != 1]
        x = x if x.dtype == torch.float64 else x.float()
        variance, mean = (s.double() for s in torch.var_mean(x, dims, correction=0))
        total = self._count + count
        apart = mean - self._mean
        self._mean = self._mean + apart * (count / total)
        share = self._count * count / total
        self._squares = self._squares + variance * count + apart**2 * share
        self._count = total

    def statistics(self) -> Statistics | None:
        """Return mean and unbiased variance; None if the norm saw nothing."""
        if not isinstance(self._mean, Tensor) or not isinstance(self._squares, Tensor):
            return None
        return self._mean, self._squares / (self._count - 1)


def _measured(
    model: nn.Module, norms: dict[str, _BatchNorm], batches: Iterable[Batch]
) -> dict[str, Statistics]:
    """Return the statistics of the norms that see inputs, by name."""
    moments = {name: _Moments(name) for name in norms}
    count = 0
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(in_mode(model, training=False))
        stack.enter_context(_by_batch(norms.values()))
        for name, norm in norms.items():
            stack.enter_context(norm.register_forward_pre_hook(moments[name]))
        for batch in batches:
            outputs_of(model, parts_of(batch)[0])
            count += 1
    if count == 0:
        raise ValueError("recalibrate: no batches, expected at least one")
    found = {name: moment.statistics() for name, moment in moments.items()}
    seen = {name: statistics for name, statistics in found.items() if statistics is not None}
    if not seen:
        raise ValueError("recalibrate: no batch norm sees an input, expected at least one")
    return seen


@contextmanager
def _by_batch(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Let norms normalize by the batch; their running statistics stay as they are."""
    norms = list(norms)
    try:
        for norm in norms:
            norm.train()
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _norms(model: nn.Module) -> dict[str, _BatchNorm]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.track_running_stats
        and module.running_mean is not None
    }


def _check_same(norms: dict[str, _BatchNorm], reference: dict[str, _BatchNorm]) -> None:
    here = {name: norm.num_features for name, norm in norms.items()}
    there = {name: norm.num_features for name, norm in reference.items()}
    for name in sorted(here):
        if here[name] != there.get(name):
            raise ValueError(
                f"recalibrate: batch norm {name!r} has {here[name]} channels in the model, "
                f"expected {there.get(name, 'none')}, as in the reference"
            )


def _moved(norm: _BatchNorm, before: Statistics, after: Statistics) -> Statistics:
    """Return the norm's statistics, changed as those of the inputs did."""
    old = _buffer(norm, "running_var").double() + norm.eps
    new = (old * (after[1] + norm.eps) / (before[1] + norm.eps)).clamp(min=norm.eps)
    off = before[0] - _buffer(norm, "running_mean").double()
    return after[0] - off * (new / old).sqrt(), new - norm.eps


def _buffer(norm: _BatchNorm, name: str) -> Tensor:
    found = getattr(norm, name)
    assert isinstance(found, Tensor)
    return found
