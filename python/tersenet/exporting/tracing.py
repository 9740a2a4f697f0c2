"""A model as a list of ATen operators, with the batch left open.

::

    model, example ──checks──▶ torch.export, dimension 0 of every input dynamic
                   ──▶ operators that we lower stay; others are decomposed ──▶ Program

An example of batch 1 is doubled first, or torch would take 1 for a constant. Decomposition also
makes in-place operators functional. The model is in evaluation mode while it is traced and as it
was afterwards.

Why from there: `linear`, `layer_norm` or attention are one node each in torch's own vocabulary,
and what a user writes beyond it comes apart into the same few operators.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

from tersenet.exporting.graph import Shape
from tersenet.parametrization import parametrized

_IDS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)  # traced as the first


@dataclass(frozen=True, eq=False)
class Program:
    """A traced model.

    `nodes` are the calls that the result needs, in order; `tensors` are the parameters, buffers and constants, by the placeholder that stands for each,
    with their names in the model; `inputs` the placeholders of the user's inputs; `outputs` the
    nodes of the result.
    """

    nodes: list[fx.Node]
    tensors: dict[fx.Node, tuple[str, Tensor]]
    inputs: list[fx.Node]
    outputs: list[fx.Node]
    is_tuple: bool
    batch_symbols: frozenset[sympy.Symbol]

    def shape_of(self, tensor: Any) -> Shape | None:
        """Return a traced tensor's shape, −m for m times the batch; None if it is none of both."""
        dims = [self._dim(size) for size in tensor.shape]
        return None if None in dims else tuple(dim for dim in dims if dim is not None)

    def _dim(self, size: Any) -> int | None:
        if isinstance(size, int):
            return size
        expression = size.node.expr
        if not set(expression.free_symbols) <= self.batch_symbols:
            return None
        # Quotients may hide that it is a multiple, so it is tried out.
        multiples = set()
        for batch in (1, 2, 3, 5, 7, 64):
            found = expression.subs(dict.fromkeys(self.batch_symbols, batch))
            multiples.add(sympy.Rational(found, batch))
        if len(multiples) != 1:
            return None
        (multiple,) = multiples
        return -int(multiple) if multiple.is_Integer and multiple > 0 else None


def traced(
    model: nn.Module, example: Tensor | tuple[Tensor, ...], kept: Collection[str]
) -> Program:
    """Trace a model.

    Args:
        model: on the CPU, in float32.
        example: an input of it, or all of them; dimension 0 is the batch.
        kept: the operators that are not decomposed, as "aten.relu.default".

    Raises:
        ValueError: if the model or the example is of another type or elsewhere, or torch cannot
            trace it with an open batch.
    """
    _check_model(model)
    inputs = _inputs(example)
    sizes = [{0: torch.export.Dim("batch", min=1)} for _ in inputs]
    try:
        with _evaluating(model):
            program = torch.export.export(
                model, inputs, dynamic_shapes=_by_argument(model, sizes), strict=False
            )
            if not _is_covered(program, kept):
                table = torch.export.default_decompositions()
                for operator in list(table):
                    if str(operator) in kept:
                        del table[operator]
                program = program.run_decompositions(table)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2])
        raise ValueError(
            "export: torch cannot trace the model for a batch of any size: "
            f"{type(error).__name__}: {reason}"
        ) from error
    return _program(program, model)


def _check_model(model: nn.Module) -> None:
    is_module = isinstance(model, nn.Module)
    if not is_module:
        raise ValueError(f"export: model is {type(model).__name__}, expected a torch module")
    if training := parametrized(model):
        raise ValueError(
            f"export: layer {training[0].name!r} is pruned or quantized but not compressed, "
            "expected compress(model)"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise ValueError(f"export: {name} is on {tensor.device}, expected the cpu: model.cpu()")
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            raise ValueError(
                f"export: {name} is {tensor.dtype}, expected torch.float32: model.float()"
            )


def _inputs(example: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the example as a tuple of inputs with a batch of at least 2."""
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    if not inputs:
        raise ValueError(
            "export: the example is an empty tuple, expected a tensor or a tuple of them"
        )
    for number, x in enumerate(inputs):
        where = f"export: input {number} of the example"
        is_tensor = isinstance(x, Tensor)
        if not is_tensor:
            raise ValueError(f"{where} is {type(x).__name__}, expected a tensor")
        if x.dtype not in (torch.float32, *_IDS) or x.device.type != "cpu":
            expected = "expected torch.float32, or integers, on the cpu"
            raise ValueError(f"{where} is {x.dtype} on {x.device}, {expected}")
        if x.dim() == 0 or x.shape[0] != inputs[0].shape[0] or x.shape[0] == 0:
            found = [list(x.shape) for x in inputs]
            raise ValueError(
                f"{where}: the shapes are {found}, expected one batch ≥ 1 in dimension 0"
            )
    inputs = tuple(x.detach().long() if x.dtype in _IDS else x.detach() for x in inputs)
    if inputs[0].shape[0] == 1:
        return tuple(torch.cat([x, x]) for x in inputs)
    return inputs


def _by_argument(model: nn.Module, sizes: list[dict[int, Any]]) -> tuple[Any, ...]:
    """Return the dynamic sizes in the structure of the forward method's arguments."""
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        return (*sizes[:first], tuple(sizes[first:]))
    return tuple(sizes)


def _is_covered(program: torch.export.ExportedProgram, kept: Collection[str]) -> bool:
    """Tell whether nothing must be decomposed, which takes most of an export's time.

    In-place operators are never among those that are kept.
    """
    return all(
        not isinstance(node.target, torch._ops.OpOverload)
        or str(node.target) in kept
        or not isinstance(node.meta.get("val"), (Tensor, list, tuple))
        for node in program.graph.nodes
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode, without torch's fused attention, and back."""
    modes = {module: module.training for module in model.modules()}
    is_fast = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)
        for module, mode in modes.items():
            module.training = mode


def _program(program: torch.export.ExportedProgram, model: nn.Module) -> Program:
    signature = program.graph_signature
    names = _first_names(model)
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    tensors: dict[fx.Node, tuple[str, Tensor]] = {}
    inputs = []
    for node, spec in zip(placeholders, signature.input_specs, strict=True):
        if spec.kind == InputKind.USER_INPUT:
            is_tensor = isinstance(spec.arg, TensorArgument)
            if not is_tensor:
                raise ValueError(f"export: input {node.name} is no tensor, expected tensors alone")
            inputs.append(node)
            continue
        name = spec.target or node.name
        tensor = program.constants.get(name)
        if tensor is None:
            tensor = program.state_dict[name]
        assert isinstance(tensor, Tensor), name
        tensors[node] = names.get(identity_of(tensor), name), tensor.detach()
    (result,) = (node for node in program.graph.nodes if node.op == "output")
    outputs: list[fx.Node] = []
    for spec, node in zip(signature.output_specs, result.args[0], strict=True):
        if spec.kind == OutputKind.USER_INPUT_MUTATION:  # the first layer works in place
            continue
        if spec.kind != OutputKind.USER_OUTPUT:
            changed = spec.target or spec.kind.name
            raise ValueError(
                f"export: the model changes {changed}, expected one that only computes"
            )
        if isinstance(node, fx.Node):
            outputs.append(node)
        elif node is not None:
            raise ValueError(f"export: the model returns {node!r}, expected tensors")
    assert program.call_spec.out_spec is not None
    is_tuple = _is_tuple(program.call_spec.out_spec)
    symbols = frozenset(
        symbol for node in inputs for symbol in node.meta["val"].shape[0].node.expr.free_symbols
    )
    needed = set(outputs)
    calls = []
    for node in reversed(program.graph.nodes):
        if node.op == "call_function" and node in needed:
            calls.append(node)
            needed.update(node.all_input_nodes)
    calls.reverse()
    return Program(calls, tensors, inputs, outputs, is_tuple, symbols)


def _is_tuple(structure: pytree.TreeSpec) -> bool:
    if structure.is_leaf():
        return False
    children = structure.children() if callable(structure.children) else structure.children_specs
    if structure.type not in (tuple, list) or not all(child.is_leaf() for child in children):
        raise ValueError(
            f"export: the model returns {structure}, expected a tensor or a tuple of them"
        )
    return True


def _first_names(model: nn.Module) -> dict[object, str]:
    """Return the first name in the model of each tensor, by its identity."""
    names: dict[object, str] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.numel():
            names.setdefault(identity_of(tensor), name)
    return names


def identity_of(tensor: Tensor) -> object:
    """Return what two views of the same numbers in the same order have in common."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
