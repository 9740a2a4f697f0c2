"""What follows a node goes into it, where nobody else sees the value between.

::

    conv ─▶ + bias ─▶ affine ─▶ relu          one conv with bias, scale, shift and activation
    reshape ─▶ reshape                        one reshape, or none
    permute ─▶ permute                        one permutation, or none

One sweep in the order of execution. A scale is never multiplied into a weight: a quantized weight
would have as many values as channels times its codebook. A compressed convolution over a length
comes as reshape, conv, + bias, reshape; the bias moves before the reshape first.

Price: linear in the number of nodes.
"""

from __future__ import annotations

from collections import Counter
from math import prod

from torch import Tensor

from tersenet.exporting.graph import (
    ACTIVATED,
    BINARIES,
    NO_ACTIVATION,
    Graph,
    Node,
    Value,
)
from tersenet.exporting.lowering import Weights

_WEIGHTED = ("conv", "conv_transpose", "linear")


def fuse(graph: Graph, weights: Weights) -> None:
    """Fuse the nodes of a graph in place, and drop those that nobody needs."""
    _drop_unused(graph)
    sweep = _Sweep(graph, weights)
    for node in graph.nodes:
        sweep.take(node)
    graph.nodes = sweep.nodes
    graph.outputs = [sweep.now(value) for value in graph.outputs]
    _drop_unused(graph)


class _Sweep:
    """The nodes so far, how often each value is used, and what stands for values that are gone."""

    def __init__(self, graph: Graph, weights: Weights) -> None:
        self._weights = weights
        self.nodes: list[Node] = []
        self._uses = Counter(id(value) for node in graph.nodes for value in node.inputs)
        self._uses.update(id(value) for value in graph.outputs)
        self._replaced: dict[int, Value] = {}

    def now(self, value: Value) -> Value:
        """Return what stands for a value."""
        return self._replaced.get(id(value), value)

    def take(self, node: Node) -> None:
        """Put a node into one before it, or append it."""
        node.inputs = [self.now(value) for value in node.inputs]
        for rule in (self._reshape, self._permute, self._vector, self._affine, self._activation):
            target = rule(node)
            if target is not None:
                self._uses[id(target)] += self._uses[id(node.output)] - 1
                self._replaced[id(node.output)] = target
                return
        self.nodes.append(node)

    def _sole(self, value: Value) -> Node | None:
        """Return the node that makes a value, if the value is used once."""
        return value.producer if self._uses[id(value)] == 1 else None

    def _bypass(self, node: Node, source: Value) -> None:
        """Let a node take its input from further back."""
        passed = node.inputs[0]
        self._uses[id(source)] += 1
        self._uses[id(passed)] -= 1
        if self._uses[id(passed)] == 0 and passed.producer is not None:
            self._uses.subtract(id(value) for value in passed.producer.inputs)
        node.inputs[0] = source

    def _reshape(self, node: Node) -> Value | None:
        if node.op != "reshape":
            return None
        before = node.inputs[0].producer
        if before is not None and before.op == "reshape":
            self._bypass(node, before.inputs[0])
        source = node.inputs[0]
        return source if source.shape == node.output.shape else None

    def _permute(self, node: Node) -> Value | None:
        if node.op != "permute":
            return None
        before = node.inputs[0].producer
        if before is not None and before.op == "permute":
            node.ints = [before.ints[dim] for dim in node.ints]
            self._bypass(node, before.inputs[0])
        return node.inputs[0] if node.ints == sorted(node.ints) else None

    def _vector(self, node: Node) -> Value | None:
        """Make a bias of an addend, or a scale of a factor, that is constant for each channel."""
        kinds = {BINARIES["add"]: 1, BINARIES["mul"]: 2}
        if node.op != "binary" or node.ints[0] not in kinds or node.activation != NO_ACTIVATION:
            return None
        slot = kinds[node.ints[0]]
        for value, other in (node.inputs, node.inputs[::-1]):
            if other.producer is None or other.producer.op != "constant":
                continue
            target = value
            if (between := self._sole(value)) is not None and between.op == "reshape":
                source = between.inputs[0]
                if source.shape[:2] != value.shape[:2]:
                    continue
                target = source
            producer = self._sole(target)
            if producer is None or producer.op not in _WEIGHTED:
                continue
            is_through = target is not value
            if is_through and producer.op == "linear":
                continue
            vector, name = _by_channel(other.producer, value, producer.op)
            is_free = all(w is None for w in producer.weights[slot:])
            if vector is None or not is_free or producer.activation != NO_ACTIVATION:
                continue
            producer.weights[slot] = self._weights.of(vector, name)
            return value
        return None

    def _affine(self, node: Node) -> Value | None:
        if node.op != "affine":
            return None
        producer = self._sole(node.inputs[0])
        if producer is None or producer.op not in _WEIGHTED:
            return None
        if producer.op == "linear" and producer.output.ndim != 2:
            return None
        if producer.activation != NO_ACTIVATION or producer.weights[2] or producer.weights[3]:
            return None
        producer.weights[2:] = node.weights
        producer.activation = node.activation
        return node.inputs[0]

    def _activation(self, node: Node) -> Value | None:
        if node.op != "unary":
            return None
        value = node.inputs[0]
        producer = self._sole(value)
        if producer is not None and producer.op == "reshape":
            producer = self._sole(producer.inputs[0])
        if producer is None or producer.op not in ACTIVATED:
            return None
        if producer.activation != NO_ACTIVATION:
            return None
        producer.activation = node.activation
        return value


def _by_channel(constant: Node, value: Value, op: str) -> tuple[Tensor | None, str]:
    """Return a constant as one number for each channel of a value, if it is that; its name."""
    weight = constant.weights[0]
    assert weight is not None
    if not isinstance(weight.values, Tensor):
        return None, weight.name
    channel = value.ndim - 1 if op == "linear" else 1
    at = len(weight.shape) - value.ndim + channel
    if at < 0 or weight.shape[at] != value.shape[channel] or prod(weight.shape) != weight.shape[at]:
        return None, weight.name
    return weight.values.reshape(-1), weight.name


def _drop_unused(graph: Graph) -> None:
    needed = {id(value) for value in graph.outputs}
    kept = []
    for node in reversed(graph.nodes):
        if id(node.output) in needed:
            kept.append(node)
            needed.update(id(value) for value in node.inputs)
    graph.nodes = kept[::-1]
