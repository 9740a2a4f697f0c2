"""Weights computed from something smaller: where they are, how that is attached and taken off.

::

    layer.weight  <-  layer.parametrizations.weight = [ParametrizationList]
                          original: the Parameter that trains (the dense weight, or a codebook)
                          [0]: a Parametrization, which holds `mask` and computes the weight

One weight may stand in several places (an embedding and the head tied to it). It is then one
`Target`, whose every place gets the same parametrization and the same original, so that what was
tied stays tied.

Why torch.nn.utils.parametrize: the weight is computed on each use, so no optimizer, whatever its
momentum or weight decay, can put a value where the mask has none. Three things it lacks are added
here, through its public functions: one original for many layers; pickling (torch gives each
parametrized module a class of its own, which no other process knows, so the plain class is pickled
and the parametrization registered again); and removal from a deep copy without damage to the
model it was copied from (a copy shares that class: it gets its own first).

Price: the weight is computed anew on each access; torch.nn.utils.parametrize.cached() avoids it
within a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from tersenet.plan import Plan, Rule

_KIND_OF: Mapping[type[nn.Module], str] = {
    nn.Linear: "fc",
    nn.Conv1d: "conv",
    nn.Conv2d: "conv",
    nn.Embedding: "embedding",
}

Place = tuple[nn.Module, str]


class Parametrization(nn.Module):
    """What computes a weight; every one of ours has a buffer `mask`, True where kept."""

    mask: Tensor


@dataclass(frozen=True, eq=False)
class Target:
    """One weight, every place that holds it, and the rule for it.

    `name` is the first layer's that holds it, `names` are all such layers'.
    """

    names: tuple[str, ...]
    kind: str
    rule: Rule
    places: tuple[Place, ...]

    @property
    def name(self) -> str:
        """The name of the first layer that holds the weight."""
        return self.names[0]

    @property
    def parametrization(self) -> Parametrization | None:
        """What computes the weight, or None for a plain parameter."""
        return parametrization_of(*self.places[0])

    @property
    def original(self) -> nn.Parameter:
        """The Parameter that trains."""
        return original_of(*self.places[0])

    def weight(self) -> Tensor:
        """Return the weight as the layer sees it, detached."""
        module, tensor_name = self.places[0]
        with torch.no_grad():
            weight: Tensor = getattr(module, tensor_name)
        return weight.detach()


def layers(model: nn.Module) -> dict[str, str]:
    """Return the name and the kind (fc, conv, embedding) of each layer that a plan can reach."""
    kinds = {}
    for name, module in model.named_modules():
        for layer_type, kind in _KIND_OF.items():
            if isinstance(module, layer_type):
                kinds[name] = kind
    return kinds


def targets(model: nn.Module, plan: Plan) -> list[Target]:
    """Return the weights that the plan reaches, in the model's order.

    Raises:
        TypeError: if the model is no module, or the plan no Plan.
        ValueError: as `Plan.resolve`, or if a weight is no plain parameter (weight_norm and other
            parametrizations, torch.nn.utils.prune, a lazy layer), has no values or complex ones, or
            tied layers get two rules.
    """
    for value, expected in ((model, nn.Module), (plan, Plan)):
        if not isinstance(value, expected):
            raise TypeError(f"plan: {type(value).__name__}, expected a {expected.__name__}")
    kinds = layers(model)
    rules = plan.resolve(list(kinds.items()))
    found = []
    for members, places in _weights(model):
        chosen = [name for name in members if name in rules]
        if not chosen:
            continue
        weight = original_of(*places[0])
        if weight.is_meta:
            raise ValueError(f"plan: weight of layer {chosen[0]!r} is on meta, expected values")
        if not weight.is_floating_point():
            raise ValueError(
                f"plan: weight of layer {chosen[0]!r} is {weight.dtype}, expected a real "
                "floating-point type"
            )
        for name in chosen[1:]:
            if rules[name] != rules[chosen[0]]:
                raise ValueError(
                    f"plan: layers {chosen[0]!r} and {name!r} share one weight, "
                    "found two rules for it, expected the same"
                )
        found.append(Target(tuple(members), kinds[chosen[0]], rules[chosen[0]], tuple(places)))
    reached = {name for target in found for name in target.names}
    for name in rules:
        if name not in reached:
            raise ValueError(
                f"plan: weight of layer {name!r} is no plain parameter, expected one "
                "(remove other parametrizations and hooks, and run a lazy layer once)"
            )
    return found


def parametrized(model: nn.Module) -> list[Target]:
    """Return every weight of the model that one of our parametrizations computes."""
    kinds = layers(model)
    return [
        Target(tuple(members), kinds.get(members[0], ""), Rule(), tuple(places))
        for members, places in _weights(model)
        if parametrization_of(*places[0]) is not None
    ]


def parametrization_of(module: nn.Module, tensor_name: str) -> Parametrization | None:
    """Return our parametrization of a tensor, or None if it has none or another's."""
    if not parametrize.is_parametrized(module, tensor_name):
        return None
    chain = list(_lists(module)[tensor_name].children())
    return chain[0] if len(chain) == 1 and isinstance(chain[0], Parametrization) else None


def original_of(module: nn.Module, tensor_name: str) -> nn.Parameter:
    """Return the Parameter that trains, whether parametrized or not."""
    holder = _lists(module)[tensor_name] if parametrize.is_parametrized(module) else module
    parameter = getattr(holder, "original" if holder is not module else tensor_name)
    assert isinstance(parameter, nn.Parameter)
    return parameter


def attach(target: Target, parametrization: Parametrization, original: nn.Parameter) -> None:
    """Let `parametrization` compute the weight from `original` wherever the weight stands."""
    if any(getattr(module, "sparse", False) for module, _ in target.places):
        parametrization.register_forward_hook(_with_dense_gradient)
    for module, tensor_name in target.places:
        _detach_one(module, tensor_name, nn.Parameter(torch.empty(0)))
        chain = _register(module, tensor_name)
        chain[0] = parametrization
        chain.original = original


def unparametrize(model: nn.Module) -> None:
    """Bake masks and shared weights into plain parameters, tied where they were tied.

    The parameters are new: make the optimizer anew. Weights that something other than tersenet
    parametrizes are left alone.
    """
    for target in parametrized(model):
        trains = target.original.requires_grad
        parameter = nn.Parameter(target.weight().clone(), requires_grad=trains)
        for module, tensor_name in target.places:
            _detach_one(module, tensor_name, parameter)


def masks(model: nn.Module) -> dict[str, Tensor]:
    """Return the mask of every pruned or quantized layer by layer name, True where kept."""
    found = {}
    for target in parametrized(model):
        for name in target.names:
            parametrization = target.parametrization
            assert parametrization is not None
            found[name] = parametrization.mask
    return found


def as_array(tensor: Tensor) -> npt.NDArray[np.floating[Any]]:
    """Return a float tensor as an array: float64 stays, everything else becomes float32."""
    tensor = tensor.detach().cpu()
    if tensor.dtype != torch.float64:
        tensor = tensor.float()
    array: npt.NDArray[np.floating[Any]] = tensor.numpy()
    return array


def _lists(module: nn.Module) -> nn.ModuleDict:
    lists = module.parametrizations
    assert isinstance(lists, nn.ModuleDict)
    return lists


def _weights(model: nn.Module) -> Iterator[tuple[list[str], list[Place]]]:
    """Yield each weight of a layer: the names of the layers and all places that hold it."""
    kinds = layers(model)
    places: dict[int, list[Place]] = {}
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue
        for tensor_name, identity in _tensors(module):
            places.setdefault(identity, []).append((module, tensor_name))
            if name in kinds and tensor_name == "weight":
                names.setdefault(identity, []).append(name)
    for identity, members in names.items():
        yield members, places[identity]


def _tensors(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the plain parameters of a module and those we compute, with what identifies each."""
    for tensor_name, parameter in module.named_parameters(recurse=False):
        if not isinstance(parameter, UninitializedParameter):
            yield tensor_name, id(parameter)
    if parametrize.is_parametrized(module):
        for tensor_name in _lists(module):
            parametrization = parametrization_of(module, tensor_name)
            if parametrization is not None:
                yield tensor_name, id(parametrization)


class _DenseGradient(torch.autograd.Function):
    """The identity, whose gradient is dense: that of an Embedding with sparse=True is not."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0].to_dense()


def _with_dense_gradient(_: nn.Module, __: object, weight: Tensor) -> Tensor:
    dense: Tensor = _DenseGradient.apply(weight)
    return dense


def _detach_one(module: nn.Module, tensor_name: str, parameter: nn.Parameter) -> None:
    """Make the tensor this plain parameter; the original it had elsewhere stays untouched."""
    if parametrize.is_parametrized(module):
        shared = type(module)
        module.__class__ = type(shared.__name__, shared.__bases__, dict(shared.__dict__))
    if parametrize.is_parametrized(module, tensor_name):
        parametrize.remove_parametrizations(module, tensor_name, leave_parametrized=False)
    module.register_parameter(tensor_name, parameter)


def _register(module: nn.Module, tensor_name: str) -> parametrize.ParametrizationList:
    """Let torch parametrize the tensor, by the identity for now, and make the module picklable."""
    parametrize.register_parametrization(module, tensor_name, nn.Identity(), unsafe=True)
    type(module).__reduce_ex__ = _reduce  # type: ignore[assignment]
    chain = _lists(module)[tensor_name]
    assert isinstance(chain, parametrize.ParametrizationList)
    return chain


def _reduce(module: nn.Module, protocol: object) -> tuple[Any, ...]:
    base = parametrize.type_before_parametrizations(module)
    state = base.__getstate__(module)  # type: ignore[call-arg]
    return _blank, (base,), state


def _blank(base: type[nn.Module]) -> nn.Module:
    """Return an empty module of the plain class that becomes parametrized with its state."""
    waiting: type[nn.Module] = type(base.__name__, (base,), {"__setstate__": _restore})
    return waiting.__new__(waiting)


def _restore(module: nn.Module, state: dict[str, Any]) -> None:
    module.__class__ = type(module).__bases__[0]
    own = {name: dict(state[name]) for name in ("_modules", "_parameters")}  # copy.copy shares them
    lists = own["_modules"].pop("parametrizations")
    module.__setstate__({**state, **own})  # type: ignore[no-untyped-call]
    for tensor_name, chain in lists.items():
        module.register_parameter(tensor_name, nn.Parameter(torch.empty(0)))
        _register(module, tensor_name)
        _lists(module)[tensor_name] = chain
