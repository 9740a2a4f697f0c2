"""Products: linear layers, matrix products, embeddings, attention.

A product with a constant on the right is a linear layer, whose matrix is the constant transposed;
where that is a model's weight seen through a transposition, it is stored under its name.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from tersenet.exporting.graph import Shape, Value, Weight
from tersenet.exporting.lowering import Arguments, Constant, Expanded, Operand, Step, lowers
from tersenet.exporting.operators.elementwise import binary, scalar


@lowers("aten.linear.default")
def linear(step: Step, a: Arguments) -> Value:
    """Lower a linear layer."""
    if not isinstance(a["weight"], Constant):
        weight = step.value(a["weight"])
        product = matmul_of(step, a["input"], step.permute(weight, [1, 0]))
        return product if a["bias"] is None else binary(step, "add", product, a["bias"])
    bias = step.vector(a["bias"], "bias")
    return _linear(step, step.value(a["input"]), step.matrix(a["weight"]), bias)


@lowers("tersenet.matmul.default")
def compressed_matmul(step: Step, a: Arguments) -> Value:
    """Lower a compressed linear layer."""
    return _linear(step, step.value(a["x"]), step.matrix(a["payload"]), None)


@lowers("aten.matmul.default", "aten.mm.default", "aten.bmm.default", "aten.mv.default")
def matmul(step: Step, a: Arguments) -> Value:
    """Lower a product of two operands."""
    first, second = list(a.values())[:2]
    return step.reshape(matmul_of(step, first, second), step.shape)


@lowers("aten.addmm.default", "aten.baddbmm.default")
def addmm(step: Step, a: Arguments) -> Value:
    """Lower beta addend + alpha product."""
    first, second = [x for name, x in a.items() if name in ("mat1", "mat2", "batch1", "batch2")]
    addend = a["self"]
    is_bias = isinstance(addend, Constant) and addend.tensor.dim() == 1 and a["beta"] == 1
    if is_bias and isinstance(second, Constant) and a["alpha"] == 1:
        matrix = step.matrix(_transposed(second))
        if addend.tensor.shape[0] == matrix.shape[0]:
            return _linear(step, step.value(first), matrix, step.vector(addend, "bias"))
    product = matmul_of(step, first, second)
    if a["alpha"] != 1:
        product = scalar(step, "mul", product, float(a["alpha"]))
    if a["beta"] != 1:
        addend = scalar(step, "mul", step.value(addend), float(a["beta"]))
    return binary(step, "add", product, addend)


@lowers("aten.embedding.default", takes_integers=True)
def embedding(step: Step, a: Arguments) -> Operand:
    """Lower a look-up of rows; of constant ids it is a constant, repeated over the batch."""
    ids, weight = a["indices"], a["weight"]
    if isinstance(ids, Expanded) and isinstance(weight, Constant):
        rows = weight.tensor[ids.constant.tensor]
        return Expanded(Constant(rows, f"{weight.name}.{step.node.name}"), step.shape)
    return step.emit("embedding", [ids], weights=[step.matrix(weight)])


_LEAST = 2.0**-149  # of float32


@lowers("aten.scaled_dot_product_attention.default")
def attention(step: Step, a: Arguments) -> Value:
    """Lower torch's attention; a bool mask becomes 0 and -inf."""
    query, mask, scale = step.value(a["query"]), a["attn_mask"], a["scale"]
    inputs: list[Any] = [query, a["key"], a["value"]]
    if isinstance(mask, Constant) and mask.tensor.dtype == torch.bool:
        added = torch.zeros(mask.tensor.shape).masked_fill(~mask.tensor, -math.inf)
        mask = Constant(added, f"{step.path}.mask")
    if mask is not None:
        inputs.append(mask)
    if not isinstance(scale, float):
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    # 0 stands for the default in a file; by the least number above it all scores are equal too.
    scale = scale if abs(scale) >= _LEAST else _LEAST
    ints = [int(a["is_causal"]), int(a["enable_gqa"])]
    return step.emit("attention", inputs, ints=ints, floats=[scale])


def matmul_of(step: Step, a: Any, b: Any) -> Value:
    """Append a product by NumPy's rules, but for vectors, which stay columns or rows."""
    if isinstance(b, Constant) and b.tensor.dim() == 2 and isinstance(a, Value):
        return _linear(step, a, step.matrix(_transposed(b)), None)
    x, y = step.value(a), step.value(b)
    x = step.reshape(x, (1, *x.shape)) if x.ndim == 1 else x
    y = step.reshape(y, (*y.shape, 1)) if y.ndim == 1 else y
    batch: Shape = step.broadcast(x.shape[:-2], y.shape[:-2])
    return step.emit("matmul", [x, y], (*batch, x.shape[-2], y.shape[-1]))


def _linear(step: Step, x: Value, weight: Weight, bias: Weight | None) -> Value:
    shape = (*x.shape[:-1], weight.shape[0])
    return step.emit("linear", [x], shape, weights=[weight, bias, None, None])


def _transposed(constant: Constant) -> Constant:
    return Constant(constant.tensor.t(), f"{constant.name}.transposed")
