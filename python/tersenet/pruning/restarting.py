"""Weights to start again from, under masks that stay: those of an early state, or fresh ones.

::

    early = copy.deepcopy(model.state_dict())       # before pruning, after a little training
    …                                               # train, prune
    rewind(model, early)                            # weight = where(mask, early weight, 0)
    reinitialize(model, seed=1)                     # weight = where(mask, a fresh weight, 0)

Why this way: a masked weight is computed from a dense original, so starting again is a copy into all
of the original, norms and biases and the last layer too. The bits under the mask are those that were
saved, and an optimizer still finds the same parameters. Fresh weights are drawn in a copy without
masks, because what a layer draws into a weight that is computed would be lost.

Price: one copy of the model for fresh weights; none for rewinding.

Source: rewinding: Frankle, Dziugaite, Roy and Carbin 2019, "Stabilizing the lottery ticket
hypothesis" (late resetting).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from tersenet.parametrization import unparametrize
from tersenet.training.loop import seeded

Draw = Callable[[nn.Module], object]

_COMPUTED = re.compile(r"((?:.*\.)?)parametrizations\.(\w+)\.(original|0\.mask)")


def rewind(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a model the tensors of an earlier state; its masks stay, its parameters the same objects.

    Args:
        model: pruned or not.
        state: a copy of its `state_dict()`, of before or after pruning: masks in it do not count.

    Raises:
        TypeError: if the state has something that is no tensor.
        ValueError: if names, shapes or types differ; the model is as it was.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> early = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        >>> _ = nn.init.zeros_(model.weight)
        >>> rewind(model, early)
        >>> torch.equal(model.weight, early["weight"])
        True
    """
    present, wanted = _dense(model.state_dict(keep_vars=True)), _dense(state)
    for name in [*present, *wanted]:
        if name not in wanted or name not in present:
            where, other = ("state", "model") if name not in wanted else ("model", "state")
            raise ValueError(f"rewind: the {where} has no {name!r}, expected it as in the {other}")
    for name, tensor in present.items():
        found, expected = _kind(wanted[name]), _kind(tensor)
        if found != expected:
            raise ValueError(f"rewind: {name!r} of the state is {found}, expected {expected}")
    with torch.no_grad():
        for name, tensor in present.items():
            tensor.copy_(wanted[name])


def reset_parameters(model: nn.Module) -> None:
    """Let every module draw its own parameters anew, and norms forget what they have seen.

    Raises:
        ValueError: if a module has parameters but no `reset_parameters()`.
    """
    for name, module in model.named_modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
        elif next(module.parameters(recurse=False), None) is not None:
            raise ValueError(
                f"reinitialize: module {name!r} ({type(module).__name__}) has parameters and no "
                "reset_parameters(), expected one, or a function that draws"
            )


def reinitialize(
    model: nn.Module, draw: Draw = reset_parameters, *, seed: int | None = None
) -> None:
    """Give a model fresh weights; its masks stay, its parameters the same objects.

    Args:
        model: pruned or not.
        draw: draws the parameters of a copy of the model without masks, in place.
        seed: of what is drawn; the caller's generators are left as they were. None draws from them.

    Raises:
        ValueError: as `reset_parameters`, or if `draw` changes what the model has; the model is as
            it was.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> reinitialize(model, seed=0)
        >>> again = model.weight.detach().clone()
        >>> reinitialize(model, seed=0)
        >>> torch.equal(model.weight, again)
        True
    """
    fresh = copy.deepcopy(model)
    unparametrize(fresh)
    with seeded(model, seed):
        draw(fresh)
    rewind(model, fresh.state_dict())


def _dense(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by the names that they have in a model without masks."""
    found = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"rewind: {name!r} is {type(tensor).__name__}, expected a tensor")
        computed = _COMPUTED.fullmatch(name)
        if computed is None:
            found[name] = tensor
        elif computed[3] == "original":
            found[computed[1] + computed[2]] = tensor
    return found


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
