"""A traced program as a graph of the core's operators.

::

    for each ATen node, in order:
        all arguments known?   compute the result now: a Constant        (weights' views, masks)
        its operator listed?   its function emits nodes for it           (module `operators`)
        else                   an error with its place in the model

A Constant becomes a weight where an operator wants one, and a node where it meets other values.
An Expanded is a constant repeated over the batch. What nobody uses is dropped at the end.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, fx, nn

from tersenet.exporting.graph import NO_ACTIVATION, Activation, Graph, Shape, Value, Weight
from tersenet.exporting.tracing import Program, identity_of
from tersenet.nn import CompressedLayer
from tersenet.payload import matrix_of


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that is known now; `payload` where it is a compressed layer's whole weight."""

    tensor: Tensor
    name: str
    payload: Constant | None = None


@dataclass(frozen=True, eq=False)
class Expanded:
    """A constant repeated to a shape that depends on the batch."""

    constant: Constant
    shape: Shape


Operand = Value | Constant | Expanded
Arguments = dict[str, Any]
Lowering = Callable[["Step", Arguments], "Operand | Sequence[Operand]"]
LOWERINGS: dict[str, Lowering] = {}
_Function = TypeVar("_Function", bound=Lowering)
_INTEGERS: set[str] = set()


def lowers(*operators: str, takes_integers: bool = False) -> Callable[[_Function], _Function]:
    """Register the function that lowers these operators, named as torch does."""

    def register(function: _Function) -> _Function:
        for name in operators:
            assert name not in LOWERINGS, name
            LOWERINGS[name] = function
            if takes_integers:
                _INTEGERS.add(name)
        return function

    return register


class Weights:
    """The weights of a graph, each once, under its name in the model."""

    def __init__(self, model: nn.Module, program: Program) -> None:
        """Take the names from the traced model."""
        self._names = {identity_of(tensor): name for name, tensor in program.tensors.values()}
        self._shapes = {
            module.payload.data_ptr(): module.weight_shape
            for module in model.modules()
            if isinstance(module, CompressedLayer)
        }
        self._known: dict[object, Weight] = {}
        self._taken: set[str] = set()

    def of(self, tensor: Tensor, name: str, *, is_matrix: bool = False) -> Weight:
        """Return the weight of a tensor of float32 or int64; its name in the model goes before `name`."""
        key = (identity_of(tensor), is_matrix) if tensor.numel() else object()
        if key not in self._known:
            name = self._names.get(identity_of(tensor), name)
            self._known[key] = Weight(self._free(name), tensor, tuple(tensor.shape), is_matrix)
        return self._known[key]

    def of_payload(self, payload: Constant) -> Weight:
        """Return the weight of a compressed layer."""
        key = ("payload", payload.tensor.data_ptr())
        if key not in self._known:
            matrix = matrix_of(payload.tensor)
            shape = self._shapes.get(payload.tensor.data_ptr(), matrix.shape)
            name = payload.name.removesuffix("payload") + "weight"
            self._known[key] = Weight(self._free(name), matrix, shape, is_matrix=True)
        return self._known[key]

    def _free(self, name: str) -> str:
        candidate, number = name, 1
        while candidate in self._taken:
            candidate, number = f"{name}.{number}", number + 1
        self._taken.add(candidate)
        return candidate


class Step:
    """One ATen node on its way: what its function may know and do."""

    def __init__(self, graph: Graph, program: Program, weights: Weights, node: fx.Node) -> None:
        """Stand at a node."""
        self.graph = graph
        self.weights = weights
        self.node = node
        self._program = program

    @property
    def shape(self) -> Shape:
        """The shape of the node's result."""
        return self.shape_of(self.node.meta["val"])

    def shape_of(self, tensor: Any) -> Shape:
        """Return the shape of a traced tensor."""
        if isinstance(tensor, (tuple, list)):
            tensor = tensor[0]
        shape = self._program.shape_of(tensor)
        if shape is None:
            found = [str(size) for size in tensor.shape]
            self.refuse(
                f"its result has shape {found}, expected sizes that are fixed or a multiple "
                "of the batch"
            )
        return shape

    @property
    def path(self) -> str:
        """The name of the module that the node is in."""
        return place_of(self.node)[0] or self.node.name

    def emit(
        self,
        op: str,
        inputs: Sequence[Operand],
        shape: Shape | None = None,
        *,
        weights: Sequence[Weight | None] = (),
        ints: Sequence[int] = (),
        floats: Sequence[float] = (),
        activation: Activation = NO_ACTIVATION,
    ) -> Value:
        """Append a node; its shape is that of the ATen node unless given."""
        values = [self.value(x) for x in inputs]
        return self.graph.add(
            op,
            values,
            self.shape if shape is None else shape,
            weights=weights,
            ints=ints,
            floats=floats,
            activation=activation,
            name=self.path,
        )

    def value(self, operand: Any) -> Value:
        """Return an operand as a value of the graph."""
        if isinstance(operand, Value):
            return operand
        if isinstance(operand, Expanded):
            base = self.value(operand.constant)
            ndim = len(operand.shape)
            if base.ndim < ndim:
                base = self.reshape(base, (1,) * (ndim - base.ndim) + base.shape)
            ints = operand.shape
            return self.graph.add("expand", [base], operand.shape, ints=ints, name=self.path)
        if not isinstance(operand, Constant):
            self.refuse(f"an argument is {operand!r}, expected a tensor")
        weight = self.weights.of(self._stored(operand), operand.name)
        return self.graph.add("constant", [], weight.shape, weights=[weight], name=self.path)

    def _stored(self, constant: Constant) -> Tensor:
        """Return a constant's elements: ids where the node gives ids, else numbers."""
        given = self.node.meta["val"]
        first = given[0] if isinstance(given, (tuple, list)) else given
        if first.dtype == torch.int64:
            return constant.tensor.to(torch.int64)
        return self.floats(constant)

    def floats(self, constant: Constant) -> Tensor:
        """Return a constant's numbers as float32."""
        if constant.tensor.dtype == torch.float64 and constant.tensor.dim() > 0:
            self.refuse(f"{constant.name} is torch.float64, expected torch.float32")
        return constant.tensor.to(torch.float32)

    def reshape(self, x: Value, shape: Shape) -> Value:
        """Append a reshape, unless the shape is that of x."""
        if shape == x.shape:
            return x
        return self.graph.add("reshape", [x], shape, ints=shape, name=self.path)

    def permute(self, x: Value, order: Sequence[int]) -> Value:
        """Append a permutation."""
        shape = tuple(x.shape[dim] for dim in order)
        return self.graph.add("permute", [x], shape, ints=list(order), name=self.path)

    def slice(self, x: Value, dim: int, start: int, end: int, step: int = 1) -> Value:
        """Append a slice of a dimension that does not depend on the batch."""
        size = x.shape[dim]
        if (start, step) == (0, 1) and (end == size or (size < 0 and end >= 1 << 62)):
            return x
        if size < 0:
            self.refuse("it takes a part of the batch, expected all of it")
        count = max(0, -(-(end - start) // step))
        shape = (*x.shape[:dim], count, *x.shape[dim + 1 :])
        return self.graph.add("slice", [x], shape, ints=[dim, start, end, step], name=self.path)

    def broadcast(self, a: Shape, b: Shape) -> Shape:
        """Return the shape of two operands by NumPy's rules."""
        rank = max(len(a), len(b))
        pairs = zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True)
        return tuple(m if n == 1 else n for m, n in pairs)

    def vector(self, constant: Any, what: str) -> Weight | None:
        """Return the weight of a constant [n], such as a bias; None stays None."""
        if constant is None:
            return None
        if not isinstance(constant, Constant):
            self.refuse(f"its {what} is computed from the input, expected a constant")
        return self.weights.of(self.floats(constant), constant.name)

    def matrix(self, operand: Any) -> Weight:
        """Return the weight of a constant in the role of a matrix."""
        if not isinstance(operand, Constant):
            self.refuse("its weight is computed from the input, expected a constant")
        if operand.payload is not None:
            return self.weights.of_payload(operand.payload)
        if operand.tensor.dtype == torch.uint8:
            return self.weights.of_payload(operand)
        return self.weights.of(self.floats(operand), operand.name, is_matrix=True)

    def refuse(self, reason: str | None = None) -> NoReturn:
        """Raise the error that says what is not supported, and where."""
        raise ValueError(_refusal(self.node, reason))


def place_of(node: fx.Node) -> tuple[str, str]:
    """Return the name and the class of the innermost module that a node is in."""
    for path, kind in reversed(list(node.meta.get("nn_module_stack", {}).values())):
        if not path.startswith("_empty_nn_module"):
            name = kind if isinstance(kind, str) else kind.__qualname__
            return path, name.rpartition(".")[2]
    return "", ""


def lower(model: nn.Module, program: Program) -> tuple[Graph, Weights]:
    """Return the graph of a traced model, and its weights.

    Raises:
        ValueError: if it has an operator without a counterpart, saying which and where.
    """
    graph = Graph(is_tuple=program.is_tuple)
    weights = Weights(model, program)
    known: dict[fx.Node, Any] = {}
    for node, (name, tensor) in program.tensors.items():
        known[node] = Constant(tensor, name)
    for node in program.inputs:
        fake = node.meta["val"]
        shape = program.shape_of(fake)
        assert shape is not None
        dtype = str(fake.dtype).removeprefix("torch.")
        known[node] = graph.inputs[node.name] = Value(shape, dtype)
    for node in program.nodes:
        result = _lowered(Step(graph, program, weights, node), known)
        if result is not None:
            known[node] = result
    for node in program.outputs:
        step = Step(graph, program, weights, node)
        value = step.value(known[node])
        if value.dtype != "float32":
            raise ValueError(f"export: an output is {value.dtype}, expected float32")
        graph.outputs.append(value)
    return graph, weights


def _lowered(step: Step, known: dict[fx.Node, Any]) -> Operand | Sequence[Operand] | None:
    """Return what stands for a node; None for one without a tensor, such as a size or a check."""
    node = step.node
    if node.target is operator.getitem:
        source, index = node.args
        assert isinstance(source, fx.Node)
        assert isinstance(index, int)
        if isinstance(known.get(source), list):
            if index >= len(known[source]):
                raise ValueError(_refusal(source, f"its result {index} is not computed"))
            found: Operand = known[source][index]
            return found
    value = node.meta.get("val")
    if value is None or isinstance(value, (torch.SymInt, torch.SymBool, torch.SymFloat, int)):
        return None
    assert isinstance(node.target, torch._ops.OpOverload), node.target
    arguments = _arguments(step, known)
    if (constant := _folded(step, arguments)) is not None:
        return constant
    function = LOWERINGS.get(str(node.target))
    if function is None:
        step.refuse()
    _check_dtypes(step, arguments)
    return function(step, arguments)


def _arguments(step: Step, known: dict[fx.Node, Any]) -> Arguments:
    """Return all arguments by their names in torch's schema, defaults too."""

    def resolved(node: fx.Node) -> Any:
        return known[node] if node in known else node.meta.get("val")

    target = step.node.target
    assert isinstance(target, torch._ops.OpOverload)
    given = fx.node.map_arg((step.node.args, step.node.kwargs), resolved)
    positional, named = given
    arguments: Arguments = {}
    for position, argument in enumerate(target._schema.arguments):
        if position < len(positional) and not argument.kwarg_only:
            arguments[argument.name] = positional[position]
        elif argument.name in named:
            arguments[argument.name] = named[argument.name]
        else:
            arguments[argument.name] = argument.default_value
    return arguments


def _leaves(arguments: Arguments) -> list[Any]:
    found: list[Any] = []
    for argument in arguments.values():
        found += argument if isinstance(argument, (list, tuple)) else [argument]
    return found


_NUMBER_FREE = (Value, Expanded, torch.SymInt, torch.SymFloat, torch.SymBool)


def _folded(step: Step, arguments: Arguments) -> Operand | list[Operand] | None:
    """Return the result of a node whose arguments are all known; None if they are not."""
    target = step.node.target
    assert isinstance(target, torch._ops.OpOverload)
    if any(isinstance(leaf, _NUMBER_FREE) for leaf in _leaves(arguments)):
        return None
    if torch.Tag.nondeterministic_seeded in target.tags:
        step.refuse("its numbers are random")

    def tensor(argument: Any) -> Any:
        if isinstance(argument, Constant):
            return argument.tensor
        return [tensor(each) for each in argument] if isinstance(argument, list) else argument

    positional, named = [], {}
    for argument in target._schema.arguments:
        if argument.kwarg_only:
            named[argument.name] = tensor(arguments[argument.name])
        else:
            positional.append(tensor(arguments[argument.name]))
    with torch.no_grad():
        result = target(*positional, **named)
    sources = [leaf for leaf in _leaves(arguments) if isinstance(leaf, Constant)]
    base = sources[0].name if len(sources) == 1 else place_of(step.node)[0]
    name = f"{base}.{step.node.name}" if base else step.node.name
    payload = _whole_payload(target, arguments, sources, result)
    if isinstance(result, Tensor):
        return Constant(result, name, payload)
    return [Constant(part, f"{name}.{number}") for number, part in enumerate(result)]


def _whole_payload(
    target: torch._ops.OpOverload, arguments: Arguments, sources: list[Constant], result: Any
) -> Constant | None:
    """Return the payload whose decompressed weight a folded result is, number by number."""
    if str(target) == "tersenet.rows.default":
        payload, ids = arguments["payload"], arguments["ids"].tensor
        nrows = matrix_of(payload.tensor).shape[0]
        is_whole = ids.dim() == 1 and torch.equal(ids, torch.arange(nrows))
        return payload if is_whole else None
    if len(sources) != 1 or sources[0].payload is None or not isinstance(result, Tensor):
        return None
    source = sources[0].tensor
    is_same = result.dtype == source.dtype and result.shape[:1] == source.shape[:1]
    flat_is_same = is_same and torch.equal(result.reshape(-1), source.reshape(-1))
    return sources[0].payload if flat_is_same else None


def _check_dtypes(step: Step, arguments: Arguments) -> None:
    allowed = ("float32", "int64") if str(step.node.target) in _INTEGERS else ("float32",)
    for leaf in _leaves(arguments):
        if isinstance(leaf, Value) and leaf.dtype not in allowed:
            step.refuse(f"an argument is {leaf.dtype}, expected {' or '.join(allowed)}")
    value = step.node.meta["val"]
    first = value[0] if isinstance(value, (tuple, list)) else value
    if (dtype := str(first.dtype).removeprefix("torch.")) not in allowed:
        step.refuse(f"its result is {dtype}, expected {' or '.join(allowed)}")


def _refusal(node: fx.Node, reason: str | None) -> str:
    path, kind = place_of(node)
    where = f"in {path} ({kind})" if path else f"in the model ({kind or 'its forward'})"
    frames = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    if len(frames) >= 2:
        line = frames[-2].partition(", ")[2]
        where += f", {line}: {frames[-1]}"
    name = str(node.target).rpartition(".")[0] or str(node.target)
    if reason is not None:
        return f"export: {name} {where}: {reason}"
    supported = sorted({name.split(".")[1] for name in LOWERINGS if "._" not in name})
    return f"export: {name} {where} has no counterpart, expected one of: {', '.join(supported)}"
