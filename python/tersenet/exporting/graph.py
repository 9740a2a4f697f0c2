"""The graph that an exported file holds: values, nodes, weights, and their form for the core.

::

    inputs   x, ids, ...                          Value
    nodes    conv(x) ─▶ unary ─▶ binary ─▶ ...    Node: op, inputs, weights, ints, floats, activation
    outputs  some of the values

A dimension is its size; one that depends on the batch is −m for m times the batch. Operators that
end with an activation carry it apart, so that one can be put into a node later; for the core it
follows the other numbers of the node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from tersenet._core import CompressedMatrix

Shape = tuple[int, ...]
EncodedNode = tuple[str, list[int], list[str], list[int], list[float], str]
Encoded = tuple[list[tuple[str, str, list[int]]], list[EncodedNode], list[int], bool]

ACTIVATED = frozenset(
    {
        *("conv", "conv_transpose", "linear", "affine", "unary"),
        *("binary", "binary_scalar", "matmul"),
    }
)
ACTIVATIONS = {
    name: code
    for code, name in enumerate(
        (
            *("none", "relu", "relu6", "leaky_relu", "sigmoid", "tanh", "gelu", "gelu_tanh"),
            *("silu", "hardswish", "hardsigmoid", "clamp", "elu", "exp", "sqrt", "rsqrt"),
            *("neg", "abs", "log", "square", "softplus", "mish"),
        )
    )
}
BINARIES = {
    name: code
    for code, name in enumerate(("add", "sub", "mul", "div", "maximum", "minimum", "pow"))
}
REDUCTIONS = {name: code for code, name in enumerate(("mean", "amax", "sum", "amin"))}


class Activation(NamedTuple):
    """What is applied to each element of a node's result, with up to two parameters."""

    name: str
    p0: float = 0.0
    p1: float = 0.0


NO_ACTIVATION = Activation("none")


@dataclass(eq=False)
class Weight:
    """A stored tensor: dense values, or a compressed matrix with its logical shape."""

    name: str
    values: Tensor | CompressedMatrix
    shape: Shape
    is_matrix: bool = False

    @property
    def holds_ids(self) -> bool:
        """Whether its elements are integers."""
        return isinstance(self.values, Tensor) and self.values.dtype == torch.int64


@dataclass(eq=False)
class Value:
    """What a node or an input gives."""

    shape: Shape
    dtype: str = "float32"
    producer: Node | None = None

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)


@dataclass(eq=False)
class Node:
    """One operator; `weights` are in the operator's order, None where one is absent."""

    op: str
    inputs: list[Value]
    weights: list[Weight | None]
    ints: list[int]
    floats: list[float]
    name: str
    output: Value
    activation: Activation = NO_ACTIVATION

    def encoded(self, numbers: dict[int, int]) -> EncodedNode:
        """Return the node for the core, with the number of each value."""
        ints, floats = list(self.ints), list(self.floats)
        if self.op in ACTIVATED:
            name, p0, p1 = self.activation
            ints.append(ACTIVATIONS[name])
            floats += [p0, p1]
        inputs = [numbers[id(value)] for value in self.inputs]
        weights = [weight.name if weight is not None else "" for weight in self.weights]
        return self.op, inputs, weights, ints, floats, self.name


@dataclass(eq=False)
class Graph:
    """Inputs by name, nodes in the order of execution, outputs."""

    inputs: dict[str, Value] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    is_tuple: bool = False

    def add(
        self,
        op: str,
        inputs: Sequence[Value],
        shape: Shape,
        *,
        weights: Sequence[Weight | None] = (),
        ints: Sequence[int] = (),
        floats: Sequence[float] = (),
        activation: Activation = NO_ACTIVATION,
        name: str = "",
    ) -> Value:
        """Append a node and return its value."""
        dtype = inputs[0].dtype if inputs and op != "embedding" else "float32"
        if op == "constant" and weights[0] is not None and weights[0].holds_ids:
            dtype = "int64"
        output = Value(shape, dtype)
        node = Node(
            op, list(inputs), list(weights), list(ints), list(floats), name, output, activation
        )
        output.producer = node
        self.nodes.append(node)
        return output

    def weights(self) -> list[Weight]:
        """Return every weight that a node uses, once, in the order of first use."""
        found: dict[int, Weight] = {}
        for node in self.nodes:
            for weight in node.weights:
                if weight is not None:
                    found.setdefault(id(weight), weight)
        return list(found.values())

    def encoded(self) -> Encoded:
        """Return the graph for the core."""
        numbers: dict[int, int] = {}
        inputs = []
        for name, value in self.inputs.items():
            numbers[id(value)] = len(numbers)
            inputs.append((name, value.dtype, list(value.shape)))
        nodes = []
        for node in self.nodes:
            nodes.append(node.encoded(numbers))
            numbers[id(node.output)] = len(numbers)
        return inputs, nodes, [numbers[id(value)] for value in self.outputs], self.is_tuple
