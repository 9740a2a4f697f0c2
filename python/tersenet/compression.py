"""Compress a model: each layer's weight becomes one payload, and nothing dense stays.

::

    with a plan: prune, quantize                                  # on a copy, unless inplace
    for each weight of a Linear, Conv1d, Conv2d or Embedding layer:
        quantized: symbols and codebook as they are               # shared codebooks stay shared
        else:      the weight, with masks applied
        smaller than dense?  the layers that hold it get one payload
        else                 they stay, and `left_dense` says why
    decompress: the other way, to stock layers with the same bits

What a layer computes with is what is packed: masks, shared weights, other parametrizations and
torch.nn.utils.prune are evaluated once. A weight that stands in several places is compressed only
where all of them can be, and is one payload then; decompressed, it is one Parameter again.

Why a copy is cheap: without a plan the copy is made after compressing, with the compressed layers
already in the place of the dense ones, so that no second dense model ever exists.

Price: one or two dense float32 copies of one weight at a time, beside the model.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from tersenet._core import Codebook, CompressedMatrix
from tersenet.files import taps
from tersenet.nn import COMPRESSED, CompressedLayer, dense_values, hook_of, replace_layers
from tersenet.parametrization import layers as plan_layers
from tersenet.parametrization import masks, parametrization_of, unparametrize
from tersenet.payload import Payload
from tersenet.plan import Plan, Rule
from tersenet.pruning import prune
from tersenet.quantization import Quantized, quantize, quantized

if TYPE_CHECKING:
    from tersenet._core import Goal

_LEFT_DENSE = "tersenet_left_dense"


def compress(
    model: nn.Module,
    plan: Plan | None = None,
    *,
    goal: Goal = "size",
    layout: str = "auto",
    coder: str = "auto",
    inplace: bool = False,
) -> nn.Module:
    """Return the model with compressed layers, which compute the same from less.

    Without a plan this is lossless: what pruning and quantization left is packed as it is. With a
    plan the model is first pruned and quantized as it says. A layer is compressed only where that
    takes fewer bytes than its dense weight; `left_dense` tells of the others, and a warning of those
    that were pruned or quantized and yet have no compressed form.

    Args:
        model: a model on the CPU; as it was, unless `inplace`.
        plan: what to prune and quantize, and the layout and coder of a layer where a rule says.
        goal: "size" or "speed", for what is "auto"; the plan's own goal comes first.
        layout: of every layer for which the plan says nothing.
        coder: of every layer for which the plan says nothing.
        inplace: put the compressed layers into `model` itself, and free each dense weight.

    Raises:
        ValueError: if the plan does not fit the model, the layout or coder does not exist, or a
            weight is not on the CPU.

    Examples:
        >>> model = nn.Sequential(nn.Linear(100, 100), nn.ReLU())
        >>> compressed = compress(model, Plan.of(sparsity=0.9, quantizer="cws", k=16))
        >>> type(compressed[0]).__name__
        'CompressedLinear'
    """
    choice = _Choice(goal, layout, coder)
    if plan is not None:
        choice.take(plan, model)
        model = model if inplace else copy.deepcopy(model)
        prune(model, plan)
        quantize(model, plan)
    reduced = set(masks(model)) | set(quantized(model))
    made, left = _compressed_layers(model, choice)
    _warn(left, reduced)
    is_ours = inplace or plan is not None
    result = replace_layers(model, made) if is_ours else _copied(model, made)
    unparametrize(result)
    setattr(result, _LEFT_DENSE, left)
    return result


def _warn(left: Mapping[str, str], reduced: set[str]) -> None:
    """Say which layers were pruned or quantized for nothing, and why."""
    stayed = {n: why for n, why in left.items() if n.removesuffix(".weight") in reduced}
    for reason in dict.fromkeys(stayed.values()):
        if "bytes compressed" in reason or "the plan skips" in reason:
            continue
        names = ", ".join(name or "the model" for name, why in stayed.items() if why == reason)
        warnings.warn(
            f"compress: {names} stay dense, though pruned or quantized: {reason}",
            stacklevel=3,
        )


def decompress(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Return the model with stock layers, whose weights have the same bits.

    Layers that shared a payload share one Parameter. The model is as it was, unless `inplace`.
    """
    weights: dict[tuple[object, ...], nn.Parameter] = {}
    made: dict[nn.Module, nn.Module] = {}
    for layer in model.modules():
        if isinstance(layer, CompressedLayer):
            key = (layer.payload.data_ptr(), layer.weight_dtype, layer.weight_shape)
            dense = layer.to_dense(weights.get(key))
            weights[key] = dense.get_parameter("weight")
            made[layer] = dense
    own = {id(weight): weight for weight in weights.values()}
    result = replace_layers(model, made) if inplace else _copied(model, made, own)
    if hasattr(result, _LEFT_DENSE):
        delattr(result, _LEFT_DENSE)
    return result


def left_dense(model: nn.Module) -> dict[str, str]:
    """Return the layers that `compress` left as they were, by name, each with the reason."""
    return dict(getattr(model, _LEFT_DENSE, {}))


@dataclass
class _Choice:
    """The layout, coder and goal of each layer, and the layers that a plan skips."""

    goal: Goal
    layout: str
    coder: str
    rules: dict[str, Rule] = field(default_factory=dict)
    skipped: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self._check(self.layout, self.coder)

    def take(self, plan: Plan, model: nn.Module) -> None:
        """Let the plan's own words come first."""
        if plan.goal is not None:
            self.goal = "size" if plan.goal == "size" else "speed"
        names = list(plan_layers(model).items())
        self.rules = plan.resolve(names)
        reached = replace(plan, layers={pattern: Rule() for pattern in plan.layers}).resolve(names)
        self.skipped = frozenset(reached) - frozenset(self.rules)
        for name in self.rules:
            self._check(*self.of(name))

    def of(self, name: str) -> tuple[str, str]:
        """Return layout and coder of a layer."""
        return self.rules.get(name, Rule()).pair(self.layout, self.coder)

    def _check(self, layout: str, coder: str) -> None:
        """Let the core refuse names, pairs and goals that do not exist."""
        CompressedMatrix.compress(np.zeros((1, 1), np.float32), layout, coder, self.goal)


@dataclass
class _Weight:
    """One weight and every layer that holds it, under its first name; or why it stays dense."""

    layers: dict[str, nn.Module] = field(default_factory=dict)
    obstacle: str | None = None


def _compressed_layers(
    model: nn.Module, choice: _Choice
) -> tuple[dict[nn.Module, nn.Module], dict[str, str]]:
    """Return what replaces each layer, and the reason for each that stays."""
    made: dict[nn.Module, nn.Module] = {}
    left: dict[str, str] = {}
    shared = quantized(model)
    codebooks: dict[int, Codebook] = {}
    for weight in _weights(model):
        first = next(iter(weight.layers))
        reason = weight.obstacle
        if reason is None and (skipped := choice.skipped.intersection(weight.layers)):
            reason = f"the plan skips {min(skipped)}"
        payload = None
        if reason is None:
            layout = choice.of(first)
            module = weight.layers[first]
            payload, reason = _payload(
                first, module, shared.get(first), codebooks, layout, choice.goal
            )
        for name, module in weight.layers.items():
            if payload is None:
                left[name] = reason or ""
            else:
                base = parametrize.type_before_parametrizations(module)
                made[module] = COMPRESSED[base].from_dense(module, payload)
    order = [name for name, _ in model.named_modules()]
    return made, {name: left[name] for name in order if name in left}


def _payload(
    name: str,
    module: nn.Module,
    shared: Quantized | None,
    codebooks: dict[int, Codebook],
    layout: tuple[str, str],
    goal: Goal,
) -> tuple[Payload | None, str | None]:
    """Return the payload of a layer's weight, or the reason to leave it dense."""
    weight = _present_weight(module)
    if weight.device.type != "cpu":
        raise ValueError(
            f"compress: weight of layer {name!r} is on {weight.device}, expected the cpu, where "
            "compressed weights run: model.cpu() first"
        )
    if weight.dim() < 2 or weight.numel() == 0:
        return None, f"its weight of shape {list(weight.shape)} has nothing to compress"
    try:
        values = dense_values(weight, name)
        flat = values.reshape(values.shape[0], -1)
        # Of an embedding rows are taken, and no products.
        ntaps = 1 if isinstance(module, nn.Embedding) else taps(values.shape)
        if shared is not None and _same_bits(shared.values().reshape(flat.shape), flat):
            codebook = codebooks.get(id(shared.codebook))
            if codebook is None:
                codebook = codebooks[id(shared.codebook)] = Codebook(shared.codebook)
            symbols, mask = shared.symbols.reshape(flat.shape), shared.mask.reshape(flat.shape)
            matrix = CompressedMatrix.from_symbols(
                symbols, codebook, mask, *layout, goal, taps=ntaps
            )
        else:
            matrix = CompressedMatrix.compress(flat, *layout, goal, taps=ntaps)
    except ValueError as error:
        return None, str(error)
    payload = Payload.of(matrix)
    dense_nbytes = weight.numel() * min(weight.element_size(), 4)
    if len(payload.data) >= dense_nbytes:
        return None, f"it takes {len(payload.data):,} bytes compressed, {dense_nbytes:,} dense"
    return payload, None


def _present_weight(module: nn.Module) -> Tensor:
    """Return the weight that the layer would compute with now, detached."""
    hooks = module._forward_pre_hooks.values()
    with torch.no_grad():
        if any(isinstance(hook, BasePruningMethod) for hook in hooks):
            # not original * mask: that makes a pruned negative weight -0.0, which is a value
            kept = module.get_buffer("weight_mask") != 0
            return torch.where(kept, module.get_parameter("weight_orig"), 0).detach()
        weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _weights(model: nn.Module) -> Iterator[_Weight]:
    """Yield each weight with two dimensions or more, in the model's order."""
    found: dict[int, _Weight] = {}
    parents = {child: parent for parent in model.modules() for child in parent.children()}
    for name, module in model.named_modules():
        if isinstance(module, CompressedLayer) or "parametrizations" in name.split("."):
            continue
        base = parametrize.type_before_parametrizations(module)
        for tensor_name, identity in _matrices(module):
            weight = found.setdefault(identity, _Weight())
            weight.layers.setdefault(name, module)
            obstacle = _obstacle(module, base, tensor_name, parents.get(module))
            if obstacle is not None and weight.obstacle is None:
                weight.obstacle = obstacle
    for weight in found.values():
        if weight.obstacle is not None and len(weight.layers) > 1:
            names = ", ".join(weight.layers)
            weight.obstacle = f"{names} share it, and for one of them: {weight.obstacle}"
        yield weight


def _matrices(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the module's own tensors of two dimensions or more, with what identifies each."""
    is_layer = parametrize.type_before_parametrizations(module) in COMPRESSED
    if is_layer and (parametrize.is_parametrized(module) or "weight" not in module._parameters):
        ours = parametrization_of(module, "weight")
        yield "weight", id(ours if ours is not None else module)
    elif (ours := parametrization_of(module, "weight")) is not None:
        yield "weight", id(ours)  # of a subclass, which has no compressed form
    for name, parameter in module.named_parameters(recurse=False):
        if name == "weight_orig" and is_layer:  # of torch.nn.utils.prune
            continue
        if is_lazy(parameter):
            continue
        if parameter.dim() >= 2 or (is_layer and name == "weight"):
            yield name, id(parameter)


def _obstacle(
    module: nn.Module, base: type[nn.Module], tensor_name: str, parent: nn.Module | None
) -> str | None:
    """Return why this place of a weight cannot be compressed, or None."""
    if base not in COMPRESSED or tensor_name != "weight":
        return f"{base.__name__} has no compressed form"
    if (hook := hook_of(module)) is not None:
        return f"it has a hook ({hook}), which would be lost"
    if getattr(module, "max_norm", None) is not None:
        return "max_norm changes its weight on each use"
    if isinstance(parent, nn.TransformerEncoderLayer) and parent.self_attn.batch_first:
        return "TransformerEncoderLayer with batch_first reads its dense weight"
    return None


def _same_bits(a: Any, b: Any) -> bool:
    return np.array_equal(a.view(np.int32), b.view(np.int32))


def _copied(
    model: nn.Module,
    layers: Mapping[nn.Module, nn.Module],
    own: Mapping[int, nn.Parameter] | None = None,
) -> nn.Module:
    """Return a deep copy of the model, made with each value where its key was.

    The parameters `own`, by id, are nobody else's and need no copy.
    """
    memo: dict[int, Any] = dict(own or {})
    for old, new in layers.items():
        memo[id(old)] = copy.deepcopy(new, memo)
    return copy.deepcopy(model, memo)
