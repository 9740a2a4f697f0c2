"""A model as named tensors, and named tensors into a model.

::

    of(model)      state_dict, but "fc.payload" becomes the matrix "fc.weight" in its logical shape
    load_into      slots of the model ◀─compare─▶ names of the file      any difference: an error
                   read every tensor, make every compressed layer        any damage: an error
                   put them in                                           cannot fail

A slot is a name and the place for it: the weight of a layer that can be compressed, or a plain
tensor. A matrix in the place of a plain tensor (of an LSTM, say) is decompressed; a plain weight in
the place of a compressed layer makes it a stock layer again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tersenet import dtypes, files
from tersenet._core import CompressedMatrix
from tersenet.files import File, Typed, Value, typed
from tersenet.nn import COMPRESSED, CompressedLayer, hook_of, replace_layers
from tersenet.parametrization import parametrization_of, parametrized
from tersenet.payload import Payload

if TYPE_CHECKING:
    from tersenet._core import Goal


def of(model: nn.Module) -> dict[str, Typed]:
    """Return the tensors that a model computes with, by the names they have in a stock model.

    Raises:
        ValueError: if the model is parametrized by prune or quantize, or its state_dict holds
            something that is no tensor.
    """
    training = parametrized(model)
    if training:
        raise ValueError(
            f"save: layer {training[0].name!r} is pruned or quantized but not compressed, "
            "expected compress(model) (or its state_dict, to go on training)"
        )
    layers = {
        _join(path, "payload"): (_join(path, "weight"), module)
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, CompressedLayer)
    }
    tensors = {}
    for key, value in model.state_dict(keep_vars=True).items():
        if key in layers:
            name, layer = layers[key]
            tensors[name] = _matrix(layer)
        elif isinstance(value, Tensor):
            tensors[key] = typed(value, key)
        else:
            raise ValueError(f"save: {key} is {type(value).__name__}, expected a tensor")
    return tensors


def load_into(file: File, model: nn.Module, goal: Goal | None = None) -> nn.Module:
    """Put the tensors of a file into a model; see `tersenet.io.load`.

    Raises:
        FormatError: if the file is damaged.
        ValueError: if names, shapes or types do not match; the model is as it was.
    """
    slots = dict(_slots(model, file))
    problems = _differences(slots, file)
    if problems:
        raise ValueError(f"load: {file.path} does not fit the model:\n  " + "\n  ".join(problems))
    roots = _roots(slots, file)
    for_layers = {roots[name] for name, slot in slots.items() if slot.layer is not None}
    values: dict[str, Value | Payload] = {}
    for root in roots.values():
        if root not in values:
            stored = files.value(file, root, goal)
            if isinstance(stored, CompressedMatrix) and root in for_layers:
                if stored.layout == "archive":  # For files: it holds what it multiplies beside it.
                    ntaps = files.taps(file.info(root)["shape"])
                    stored = stored.to(coder="tans", taps=ntaps)
                values[root] = Payload.of(stored)
            else:
                values[root] = stored
    _tie(slots, roots, values)
    made: dict[nn.Module, nn.Module] = {}
    tensors: list[tuple[_Slot, Tensor]] = []
    payloads: list[tuple[CompressedLayer, Payload]] = []
    for name, slot in slots.items():
        value = values[roots[name]]
        if isinstance(value, Payload) and slot.layer is not None:
            if isinstance(slot.layer, CompressedLayer):
                payloads.append((slot.layer, value))
            elif slot.layer not in made:
                base = parametrize.type_before_parametrizations(slot.layer)
                made[slot.layer] = COMPRESSED[base].from_dense(slot.layer, value)
            continue
        tensor = _tensor(value, file.info(roots[name])["dtype"], slot.shape)
        if isinstance(slot.layer, CompressedLayer):
            weight = nn.Parameter(tensor.to(slot.dtype))
            made[slot.layer] = slot.layer.to_dense(weight)
        else:
            tensors.append((slot, tensor))
    for layer, payload in payloads:
        layer.replace_payload(payload)
    for slot, tensor in tensors:
        slot.put(tensor, made)
    return replace_layers(model, made)


@dataclass(frozen=True, eq=False)
class _Slot:
    """A place for a tensor: `name` of `owner`; `layer` is the owner if it can be compressed."""

    owner: nn.Module
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    layer: nn.Module | None = None

    @property
    def identity(self) -> object:
        """What is the same for two slots that are one tensor."""
        if isinstance(self.owner, CompressedLayer) and self.layer is not None:
            return self.owner.payload.data_ptr(), self.shape
        parameter = {**self.owner._parameters, **self.owner._buffers}.get(self.name)
        if parameter is not None:
            return id(parameter)
        return id(parametrization_of(self.owner, self.name) or self.owner)

    def put(self, tensor: Tensor, made: dict[nn.Module, nn.Module]) -> None:
        """Copy a tensor in, or put it there if the place holds no numbers yet."""
        target = getattr(self.owner, self.name)
        if not target.is_meta:
            with torch.no_grad():
                target.copy_(tensor)
            return
        owner = made.get(self.owner, self.owner)
        tensor = tensor.to(self.dtype)
        if isinstance(target, nn.Parameter):
            owner._parameters[self.name] = nn.Parameter(tensor, target.requires_grad)
        else:
            owner._buffers[self.name] = tensor


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _matrix(layer: CompressedLayer) -> Typed:
    """Return the weight of a compressed layer; float64 is stored as float32, which is exact."""
    name = dtypes.name_of(layer.weight_dtype)
    name = name if name in dtypes.MATRIX_NAMES else "float32"
    identity = ("payload", layer.payload.data_ptr(), name, layer.weight_shape)
    return Typed(layer.matrix, name, layer.weight_shape, identity)


def _slots(model: nn.Module, file: File) -> Iterator[tuple[str, _Slot]]:
    """Yield the name and the slot of every tensor that a stock model would have."""
    computed: list[str] = []
    for path, module in model.named_modules(remove_duplicate=False):
        if any(path == prefix or path.startswith(prefix + ".") for prefix in computed):
            continue
        name = _join(path, "weight")
        base = parametrize.type_before_parametrizations(module)
        skipped: set[str] = set()
        is_plain = "weight" in module._parameters
        if isinstance(module, CompressedLayer):
            skipped.add("payload")
            cpu = torch.device("cpu")
            yield (
                name,
                _Slot(module, "weight", module.weight_shape, module.weight_dtype, cpu, module),
            )
        elif base in COMPRESSED and (is_plain or name in file):
            skipped |= {"weight", "weight_orig", "weight_mask"}
            weight = module.weight
            assert isinstance(weight, Tensor)
            shape = tuple(weight.shape)
            yield name, _Slot(module, "weight", shape, weight.dtype, weight.device, module)
            if parametrize.is_parametrized(module, "weight"):
                computed.append(_join(path, "parametrizations"))
        yield from _tensors(path, module, skipped)


def _tensors(path: str, module: nn.Module, skipped: set[str]) -> Iterator[tuple[str, _Slot]]:
    buffers = {
        name: buffer
        for name, buffer in module._buffers.items()
        if name not in module._non_persistent_buffers_set
    }
    for name, tensor in {**module._parameters, **buffers}.items():
        if tensor is not None and name not in skipped:
            shape = tuple(tensor.shape)
            yield _join(path, name), _Slot(module, name, shape, tensor.dtype, tensor.device)


def _differences(slots: dict[str, _Slot], file: File) -> list[str]:
    """Return everything that keeps the file from fitting, one line each."""
    present = {slot.identity for name, slot in slots.items() if name in file}
    problems = [
        f"missing in the file: {name}"
        for name, slot in slots.items()
        if name not in file and slot.identity not in present
    ]
    problems += [f"unexpected in the file: {name}" for name in file if name not in slots]
    for name, slot in slots.items():
        problem = _difference(slot, file.info(name)) if name in file else None
        if problem is not None:
            problems.append(f"{name}: {problem}")
    return problems


def _roots(slots: dict[str, _Slot], file: File) -> dict[str, str]:
    """Return under which name the file stores the tensor of each slot.

    A name that the file lacks is tied in the model to one that it has.
    """
    roots: dict[str, str] = {}
    for name in slots:
        if name in file:
            roots[name] = file.info(name).get("alias_of", name)
    tied = {slots[name].identity: root for name, root in reversed(roots.items())}
    return {name: roots.get(name) or tied[slot.identity] for name, slot in slots.items()}


def _tie(
    slots: dict[str, _Slot], roots: dict[str, str], values: dict[str, Value | Payload]
) -> None:
    """Give slots that are one tensor in the model one tensor of the file.

    Raises:
        ValueError: if the file has different tensors for them.
    """
    first: dict[object, str] = {}
    for name, slot in slots.items():
        other = first.setdefault(slot.identity, name)
        if roots[name] == roots[other]:
            continue
        if not _are_same(values[roots[name]], values[roots[other]]):
            raise ValueError(
                f"load: {other} and {name} are one tensor in the model, "
                "found different ones in the file, expected the same"
            )
        roots[name] = roots[other]


def _are_same(a: Value | Payload, b: Value | Payload) -> bool:
    if isinstance(a, Payload) and isinstance(b, Payload):
        return a.data == b.data
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return False


def _difference(slot: _Slot, info: dict[str, Any]) -> str | None:
    found = dtypes.name_of(slot.dtype)
    flat = (slot.shape[0], prod(slot.shape[1:])) if slot.shape else ()
    if info["shape"] != slot.shape and (info["kind"] != "matrix" or info["shape"] != flat):
        return f"found shape {list(info['shape'])}, expected {list(slot.shape)}"
    if info["dtype"] != found and found not in dtypes.WIDER.get(info["dtype"], ()):
        return f"found {info['dtype']}, expected {found}"
    if slot.layer is None or isinstance(slot.layer, CompressedLayer):
        return None
    if info["kind"] == "matrix":
        if slot.device.type not in ("cpu", "meta"):
            return f"the layer is on {slot.device}, expected the cpu, where compressed weights run"
        if (hook := hook_of(slot.layer)) is not None:
            return f"the layer has a hook ({hook}), which would be lost, expected none"
        if getattr(slot.layer, "max_norm", None) is not None:
            return "the layer has a max_norm, expected none"
    elif "weight" not in slot.layer._parameters:
        return "found a plain weight, expected a compressed one for a layer that computes its own"
    return None


def _tensor(value: Value | Payload, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Return a value as a tensor of the file's type."""
    if isinstance(value, Payload):
        value = value.matrix
    if isinstance(value, CompressedMatrix):
        value = dtypes.narrowed(value.decompress(), dtype)
    return dtypes.to_tensor(value.reshape(shape), dtype)
