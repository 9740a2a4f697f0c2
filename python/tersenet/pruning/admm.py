"""Pruning by ADMM: training pulls the weights toward a sparse copy before anything is cut.

::

    minimize loss(W) where W = Z and Z has at most l values other than zero, in each layer
    Z = project(W), U = 0
    repeat:
        W = train with loss(W) + rho / 2 |W - Z + U|²        # an epoch of any optimizer
        Z = project(W + U)                                   # keeps the l largest magnitudes
        U = U + W - Z
    masks = the l largest |W|                                # then train what is left

Why this way: the constraint is not convex but its projection is exact and cheap, and the optimizer
only ever sees a smooth loss, so momentum and Adam work as they are. A magnitude that the loss needs
grows back against the pull, one that it does not need goes to zero before it is cut; magnitude
pruning cuts first and asks later.

`project` has exactly l entries: the pruner of the rule ranks them, and of equal magnitudes the
first in order stay. So Z is a nearest l-sparse point (any choice among ties is as near) and two
runs choose alike. A layer that is pruned already is only ranked within its mask; one whose mask has
no more than l is done: nothing pulls at it, and its kept weights train on.

A growing rho closes what gap is left between W and Z. U is the dual divided by rho, so it is divided
by what rho is multiplied by (Boyd et al. 2011, section 3.4.1).

Price: two copies of the weights; a pass over them a step, one projection an update.

Source: Zhang et al. 2018, "A systematic DNN weight pruning framework using alternating direction
method of multipliers"; `progressive` has the rounds of Ye et al. 2018.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tersenet.parametrization import Target, as_array
from tersenet.plan import Plan
from tersenet.pruning.masking import PruningReport, prune, ranked, sparsified
from tersenet.training.callback import Callback, State


class ADMM(Callback):
    """Pulls the weights of a plan toward the sparsity that it asks for, while they train.

    In `fit` it is a callback. In a loop of your own add `penalty()` to the loss of each step, and
    call `update()` after each epoch. At the end, `prune()` cuts. Biases and norms are left alone.

    Examples:
        >>> model = nn.Linear(10, 10)
        >>> admm = ADMM(model, Plan.of(sparsity=0.9))
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> for _ in range(20):
        ...     sgd.zero_grad()
        ...     (model(torch.eye(10)).square().mean() + admm.penalty()).backward()
        ...     sgd.step()
        ...     admm.update()
        >>> admm.prune().layers[0].nnz
        10
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        rho: float = 1.5e-3,
        rho_growth: float = 1.0,
        epochs_per_update: int = 1,
    ) -> None:
        """Project the present weights for the first time.

        Args:
            model: on the device where it trains.
            plan: a sparsity for each layer to prune; `Rule(sparsity=1 - l / size)` keeps exactly l.
            rho: how hard W is pulled, in units of the loss for a squared unit of the weights;
                the paper takes 1.5e-3 to 3e-3 for the mean cross-entropy.
            rho_growth: what rho is multiplied by at each update, at least 1.
            epochs_per_update: how long `fit` trains between two updates, over all calls of it.

        Raises:
            ValueError: if an option is out of its range, the plan prunes nothing or by a threshold,
                or as `prune`.
        """
        if not 0 < rho < math.inf:
            raise ValueError(f"admm: rho is {rho}, expected a number above 0")
        if not 1 <= rho_growth < math.inf:
            raise ValueError(f"admm: rho_growth is {rho_growth}, expected a number of at least 1")
        if epochs_per_update < 1:
            found = f"epochs_per_update is {epochs_per_update}"
            raise ValueError(f"admm: {found}, expected at least 1")
        self._model, self._plan = model, plan
        self._targets = sparsified(model, plan, "admm")
        self.rho = rho
        self._growth, self._epochs = rho_growth, epochs_per_update
        self._trained = 0  # epochs of `fit` since the last update
        self._parts: dict[str, _Part] = {}
        self._parts = {
            name: _Part(target, torch.where(mask, weight, 0), torch.zeros_like(weight))
            for name, (target, weight, mask) in self._projected().items()
            if not torch.equal(mask, _mask(target, mask.device))
        }

    def penalty(self) -> Tensor:
        """Return rho / 2 |W - Z + U|², a scalar, to be added to the loss."""
        total = torch.zeros((), device=self._targets[0].original.device)
        for part in self._parts.values():
            module, tensor_name = part.target.places[0]
            weight = getattr(module, tensor_name)
            total = total + (weight - part.z + part.u).square().sum()
        return self.rho / 2 * total

    def update(self) -> None:
        """Project W + U for the next Z, and add to U what W still lacks.

        Raises:
            ValueError: if a weight is NaN.
        """
        for name, (_, moved, mask) in self._projected().items():
            if name in self._parts:
                part = self._parts[name]
                part.z = torch.where(mask, moved, 0)
                part.u = (moved - part.z) / self._growth
        self.rho *= self._growth
        self._trained = 0

    def distances(self) -> dict[str, float]:
        """Return |W - Z| / |W| of each layer that is not done: what cutting would change."""
        found = {}
        for name, part in self._parts.items():
            weight = _weight(part.target)
            size = float(weight.norm())
            found[name] = float((weight - part.z).norm()) / size if size else 0.0
        return found

    def prune(self) -> PruningReport:
        """Mask all but the largest weights, exactly as many as the plan keeps."""
        return prune(self._model, self._plan)

    def state_dict(self) -> dict[str, Any]:
        """Return what training goes on from, beside the model.

        That is rho, the epochs since the last update, and Z and U by layer name.
        """
        return {
            "rho": self.rho,
            "epochs": self._trained,
            "z": {name: part.z.clone() for name, part in self._parts.items()},
            "u": {name: part.u.clone() for name, part in self._parts.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned for the same model and plan.

        Raises:
            ValueError: if it is of other layers or shapes.
        """
        parts = self._parts
        for key in ("z", "u"):
            expected = {name: tuple(part.z.shape) for name, part in parts.items()}
            found = {name: tuple(tensor.shape) for name, tensor in state[key].items()}
            if found != expected:
                raise ValueError(f"admm: {key} of the state is for {found}, expected {expected}")
        for name, part in parts.items():
            part.z = state["z"][name].to(part.z, copy=True)
            part.u = state["u"][name].to(part.u, copy=True)
        self.rho, self._trained = float(state["rho"]), int(state["epochs"])

    def loss_computed(self, state: State) -> None:
        """Add the penalty to the loss."""
        state.loss = state.loss + self.penalty()

    def epoch_end(self, state: State) -> None:
        """Update after as many epochs as were asked for."""
        self._trained += 1
        if self._trained == self._epochs:
            self.update()

    def _projected(self) -> dict[str, tuple[Target, Tensor, Tensor]]:
        """Return each target, its W + U, and the mask of the largest of them."""
        moved, arrays, within = {}, {}, {}
        for target in self._targets:
            name = target.name
            weight = _weight(target)
            moved[name] = weight + self._parts[name].u if name in self._parts else weight
            arrays[name] = as_array(moved[name])
            if target.parametrization is not None:
                within[name] = target.parametrization.mask.cpu().numpy()
        masks = ranked(self._targets, self._plan, arrays, within)
        return {
            target.name: (
                target,
                moved[target.name],
                torch.from_numpy(masks[target.name]).to(moved[target.name].device),
            )
            for target in self._targets
        }


@dataclass(eq=False)
class _Part:
    """The sparse copy and the scaled dual of one weight, in float32 or float64."""

    target: Target
    z: Tensor
    u: Tensor


def _weight(target: Target) -> Tensor:
    """Return the weight, detached, in a type that small steps do not vanish in."""
    weight = target.weight()
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _mask(target: Target, device: torch.device) -> Tensor:
    if target.parametrization is not None:
        return target.parametrization.mask
    return torch.ones(target.original.shape, dtype=torch.bool, device=device)
