"""Pruning to a number of bytes: of two weights that the loss would miss alike, the cheaper one stays.

::

    bits(i)    = log2((1 - p_i) / p_i) + symbol_bits    # what weight i costs kept, over what it costs pruned
    p_i        = d · prod over j of d_j(i) / d          # d: density of the layer; d_j: of i's output, of its
                                                        # input, of its place in the kernel, in the last masks
    loss(i)    = w_i² · F                               # F: mean squared gradient of the layer's kept weights
    masks      = loss(i) / bits(i) > t                  # one t for all layers, the least that meets the bytes;
                                                        # a layer's best weight stays
    bytes      = sum over kept (symbol_bits - log2 p_i) / 8 - sum over pruned log2(1 - p_i) / 8

    bytes asked for at step t of `steps`: from all weights, falling as its logarithm's square to `nbytes`
    at 0.8 of the steps; then it stays

Why this way: a small file is what is wanted, and a number of weights is not a number of bytes. A weight in
a row and a column that keep many costs three or four bits, one alone in its row costs ten, so pruning by
magnitude spends the most bits on weights of the least use; and how many weights each layer keeps, which
otherwise a plan has to say, follows from one threshold. F makes layers comparable: w² F / 2 is what the
loss gains without the weight, where the Hessian is the Fisher matrix and F its diagonal's mean. Its own F
for each weight is too noisy to rank by. Kept weights gather in rows and columns as training goes on, since
soft masks let what is cheap return.

Positions cost most where half of the weights are kept, and nothing where all are. So the first choice
prunes about half at once, which the rest of a training makes good.

The bytes are an estimate from densities. What `goal="size"` makes of the layer depends on how many values
are shared and how they lie; measure a first file, and ask for more or less.

Price: some thirty passes over the weights at each choice.

Source: this module. The Lagrangian of rate and distortion: Shoham and Gersho 1988, "Efficient bit
allocation for an arbitrary set of quantizers"; w² times the Hessian's diagonal: LeCun, Denker and Solla
1989, "Optimal brain damage". Masks: see `soft_masks`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tersenet.parametrization import Target
from tersenet.plan import Plan, Rule
from tersenet.pruning.masking import Masked, PrunedLayer, PruningReport, put, sparsified
from tersenet.pruning.soft_masks import SoftMasks

_METHOD = "rate pruning"
_HELD = 0.2  # of the steps, at the end: the bytes are those asked for
_PRIOR = 2.0  # positions of the layer's own density, added to each output, input and place
_RAREST, _SUREST = 2e-4, 0.98  # of p
_LEAST_BITS = 0.5
_HALVINGS = 40  # of the interval of log t


class RatePruning(SoftMasks):
    """Prunes by soft masks to a number of bytes while a model trains, and by hard ones at the end.

    In `fit` it is a callback. In a loop of your own call `step()` after each `backward()`, before the
    optimizer's step. After `steps` of them the masks are final, and training may go on; `finish()`
    ends it earlier. The parameters stay the same objects.

    To go on with an interrupted run, make the model, its optimizer and this anew with the same
    arguments, and load the state of each.

    Examples:
        >>> model = nn.Linear(40, 40)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> rate = RatePruning(model, nbytes=100, steps=20, every=5)
        >>> for _ in range(20):
        ...     sgd.zero_grad()
        ...     model(torch.eye(40)).square().mean().backward()
        ...     rate.step()
        ...     sgd.step()
        >>> 80 < rate.nbytes <= 100, rate.is_soft
        (True, False)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        nbytes: float,
        steps: int,
        every: int = 100,
        layers: Sequence[str] = ("*",),
        symbol_bits: float = 2.0,
        fade: float = 0.0,
    ) -> None:
        """Put masks that keep all on the layers, which may be pruned already and regrow.

        Args:
            model: on the device where it trains.
            nbytes: of positions and symbols of all these layers, estimated; above 0.
            steps: after how many steps the masks are final, at least 1.
            every: after how many steps they are chosen again, at least 1.
            layers: patterns of layer names, as of a plan; a layer without weights is left alone.
            symbol_bits: what a kept weight's value takes: about log2 k where k values are shared; at
                least 0.
            fade: the part of itself that a pruned weight loses in each step, in [0, 1); a few
                ten-thousandths where thousands of steps are made.

        Raises:
            ValueError: if an option is out of its range, a pattern matches nothing, or as `prune`.
            TypeError: if `layers` is one string.
        """
        for name, number, least in (("nbytes", nbytes, "above"), ("symbol_bits", symbol_bits, "")):
            if not (0 < number < math.inf or (number == 0 and not least)):
                words = f"a number {least or 'of at least'} 0"
                raise ValueError(f"{_METHOD}: {name} is {number}, expected {words}")
        if isinstance(layers, str):
            raise TypeError(f"{_METHOD}: layers is {layers!r}, expected a list of patterns")
        plan = Plan({pattern: Rule(sparsity=0.0) for pattern in layers})
        targets = [each for each in sparsified(model, plan, _METHOD) if each.original.numel()]
        super().__init__(_METHOD, targets, steps, every, fade)
        self._wanted, self._symbol_bits = nbytes, symbol_bits
        for target in self._targets:
            mask = torch.ones(target.original.shape, dtype=torch.bool)
            put(target, mask)
        self._first = self.nbytes
        self._report = self._counted()
        self._set_soft()

    @property
    def nbytes(self) -> float:
        """The estimated bytes of the present masks."""
        return self._nbytes_of([_mask(target) for target in self._targets])

    def _add(self) -> None:
        for target in self._targets:
            gradient = target.original.grad
            if gradient is None:
                continue
            mask = _mask(target)
            with torch.no_grad():
                squares = torch.where(mask, gradient.to_dense(), 0).float().square().sum()
                mean = squares / max(int(mask.sum()), 1)
            self._sums[target.name] = self._sums.get(target.name, 0) + mean

    def _check(self) -> None:
        self._gradient_is_missing()

    def _sum_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return ()

    def _masked(self) -> PruningReport:
        with torch.no_grad():
            ratios = [self._ratios(target) for target in self._targets]
            largest = max(max(float(ratio.max()) for ratio in ratios), 1e-30)
            # Under the low end all weights stay that matter at all, above the high end one a layer.
            low, high = math.log(largest) - 70, math.log(largest) + 1
            wanted = self._nbytes_now()
            if self._nbytes_of([ratio > 0 for ratio in ratios]) <= wanted:
                high = -math.inf
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                fits = self._nbytes_of([_above(middle, ratio) for ratio in ratios]) <= wanted
                low, high = (low, middle) if fits else (middle, high)
            for target, ratio in zip(self._targets, ratios, strict=True):
                put(target, _above(high, ratio))
                parametrization = target.parametrization
                assert isinstance(parametrization, Masked)
                parametrization.refit(target.original)
        return self._counted()

    def _ratios(self, target: Target) -> Tensor:
        """Return loss over bits of each weight; what the present masks say of the bits."""
        likely = _likely(_mask(target))
        bits = ((1 - likely) / likely).log2() + self._symbol_bits
        loss = target.original.detach().float().square() * self._sums[target.name]
        if not bool(loss.isfinite().all()):
            raise ValueError(
                f"{_METHOD}: layer {target.name!r} has a weight or a gradient that is not finite or "
                "whose square is not, expected finite ones"
            )
        return loss / bits.clamp_min(_LEAST_BITS)

    def _nbytes_now(self) -> float:
        left = max(1 - self._taken / self._steps / (1 - _HELD), 0) ** 2
        return float(self._wanted * max(self._first / self._wanted, 1) ** left)

    def _nbytes_of(self, masks: Sequence[Tensor]) -> float:
        return sum(_bits(mask, self._symbol_bits) for mask in masks) / 8

    def _counted(self) -> PruningReport:
        layers = [(target.name, _mask(target)) for target in self._targets]
        return PruningReport(
            tuple(PrunedLayer(name, tuple(mask.shape), int(mask.sum())) for name, mask in layers)
        )


def _mask(target: Target) -> Tensor:
    assert isinstance(target.parametrization, Masked)
    return target.parametrization.mask


def _above(log_threshold: float, ratio: Tensor) -> Tensor:
    """Return which weights stay: a layer's best one always, or the network would be cut through."""
    stays = ratio > math.exp(log_threshold)
    stays[torch.unravel_index(ratio.argmax(), ratio.shape)] = True
    return stays


def _likely(mask: Tensor) -> Tensor:
    """Return p of each position, float32 in the shape of the mask."""
    kept = mask.reshape(*mask.shape[:2], -1).float()
    density = kept.mean().clamp(_RAREST, _SUREST)
    likely = density
    for dimension in range(3):
        others = [other for other in range(3) if other != dimension]
        count = math.prod(kept.shape[other] for other in others)
        marginal = kept.sum(others, keepdim=True) + _PRIOR * density
        likely = likely * (marginal / (count + _PRIOR) / density)
    return likely.clamp(_RAREST, _SUREST).reshape(mask.shape)


def _bits(mask: Tensor, symbol_bits: float) -> float:
    """Return the bits of a mask's positions and of what is kept."""
    likely = _likely(mask)
    each = torch.where(mask, symbol_bits - likely.log2(), -(1 - likely).log2())
    return float(each.sum(dtype=torch.float64))
