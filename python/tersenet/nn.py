"""Layers that hold only compressed weights and compute from them.

::

    Linear       y = matmul(x)                                       x [..., in]
    Conv         y = conv(x)                                         x [N, in, height, width]
    Embedding    y = rows(ids)

A layer has one tensor for its weight, `payload`, a uint8 buffer with the bytes of one compressed
matrix, in the memory that the products read. It is never written to: copies of a layer share it,
`load_state_dict` replaces it, `half()` and the like leave it alone (`weight_dtype` remembers what
a stock layer's weight would be by then). These are layers for inference: no gradient reaches the
weight, but gradients flow to the input and to the bias.

Sums are in float32 and rounded to the type of x once; then the bias is added in that type.
`COMPRESSED` is the one place to add a layer.

Price: a convolution copies its input once, with its padding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from tersenet import dtypes, ops
from tersenet._core import CompressedMatrix
from tersenet.errors import FormatError
from tersenet.files import taps
from tersenet.payload import Payload, matrix_of

if TYPE_CHECKING:
    from tersenet._core import Goal


class CompressedLayer(nn.Module):
    """A layer with a compressed weight: what Linear, convolutions and Embedding have in common.

    Tensors: `payload` uint8 [nbytes], the weight as a matrix [shape[0], prod(shape[1:])]; `bias`
    [shape[0]] or None. `weight_shape` is the shape of the stock layer's weight, `weight_dtype`
    its type.
    """

    payload: Tensor
    bias: nn.Parameter | None
    stock: ClassVar[type[nn.Module]]
    takes_bias: ClassVar[bool] = True

    def __init__(self, settings: nn.Module, payload: Payload, bias: nn.Parameter | None) -> None:
        """Take over a payload, and the settings of a stock layer."""
        super().__init__()
        for name in self.settings():
            setattr(self, name, getattr(settings, name))
        weight = settings.weight
        assert isinstance(weight, Tensor)
        self.weight_dtype = weight.dtype
        self.weight_shape = tuple(weight.shape)
        self._check_shape(payload.matrix, "payload")
        self._stored = payload
        self.register_buffer("payload", payload.tensor)
        self.register_parameter("bias", bias)
        self.training = settings.training

    @classmethod
    @abstractmethod
    def settings(cls) -> tuple[str, ...]:
        """Return the names of the attributes that the stock layer has too."""

    @classmethod
    def from_dense(
        cls,
        module: nn.Module,
        payload: Payload | None = None,
        *,
        layout: str = "auto",
        coder: str = "auto",
        goal: Goal = "size",
    ) -> Self:
        """Return a compressed layer that computes what a stock layer computes.

        The bias is the same Parameter. A `payload` that is made already is taken as it is.

        Raises:
            ValueError: if the module is no such layer, its weight is not on the CPU, float32
                cannot hold it exactly, or the layout cannot hold it.
        """
        if cls.stock not in type(module).__mro__:
            found, expected = type(module).__name__, cls.stock.__name__
            raise ValueError(f"{cls.__name__}: module is {found}, expected {expected}")
        if payload is None:
            weight = module.weight
            assert isinstance(weight, Tensor)
            values = dense_values(weight.detach(), cls.__name__)
            flat = values.reshape(values.shape[0], prod(values.shape[1:]))
            matrix = CompressedMatrix.compress(flat, layout, coder, goal, taps=taps(values.shape))
            payload = Payload.of(matrix)
        return cls(module, payload, getattr(module, "bias", None))

    def to_dense(self, weight: nn.Parameter | None = None) -> nn.Module:
        """Return the stock layer with the same weight, bit by bit, and the same bias.

        After `half()` and the like the weight is rounded as a stock layer's would have been. A
        `weight` that is made already (of a layer tied to this one) is taken as it is.
        """
        arguments = {name: getattr(self, name) for name in self.settings()}
        if self.takes_bias:
            arguments["bias"] = False
        dense = self.stock(**arguments, device="meta", dtype=self.weight_dtype)
        dense.weight = nn.Parameter(self.dense_weight()) if weight is None else weight
        if self.bias is not None:
            dense.bias = self.bias
        return dense.train(self.training)

    def dense_weight(self) -> Tensor:
        """Return the decompressed weight, `weight_shape` in `weight_dtype`."""
        name = dtypes.name_of(self.weight_dtype)
        array = dtypes.narrowed(self.matrix.decompress(), name)
        return dtypes.to_tensor(array.reshape(self.weight_shape), name)

    @property
    def matrix(self) -> CompressedMatrix:
        """The compressed matrix [shape[0], prod(shape[1:])]."""
        return matrix_of(self.payload)

    @property
    def weight(self) -> Tensor:
        """The dense weight, decompressed at each access, for code that reads it; no gradient."""
        every = torch.arange(self.weight_shape[0], device="cpu")
        dense = ops.rows(self.payload, every, prod(self.weight_shape[1:]))
        return dense.reshape(self.weight_shape).to(self.weight_dtype)

    def replace_payload(self, payload: Payload) -> None:
        """Compute from another matrix of the same shape from now on.

        Raises:
            ValueError: if its shape is another.
        """
        self._check_shape(payload.matrix, "payload")
        self._stored = payload
        self._buffers["payload"] = payload.tensor

    def stored(self) -> Payload:
        """Return the payload as an object that copies and pickles share."""
        if self._stored.tensor is not self.payload or self.payload._version != 0:
            self._stored = Payload.of(self.payload)
            self._buffers["payload"] = self._stored.tensor
        return self._stored

    def extra_repr(self) -> str:
        """Describe the settings and the matrix."""
        settings = [f"{name}={getattr(self, name)}" for name in self.settings()]
        matrix = self.matrix
        described = f"{matrix.layout}, {matrix.coder}, {matrix.nbytes:,} bytes"
        return ", ".join([*settings, f"bias={self.bias is not None}", described])

    def _check_shape(self, matrix: CompressedMatrix, what: str) -> None:
        expected = (self.weight_shape[0], prod(self.weight_shape[1:]))
        if matrix.shape != expected:
            found = f"{what} is a matrix {list(matrix.shape)}"
            raise ValueError(f"{type(self).__name__}: {found}, expected {list(expected)}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        probe = fn(torch.empty(0, dtype=self.weight_dtype, device="cpu"))
        if probe.device.type != "cpu":
            raise ValueError(
                f"{type(self).__name__}: moved to {probe.device}, expected the cpu, where compressed "
                "weights run: tersenet.decompress(model) makes a model that can move"
            )
        payload = self._buffers.pop("payload")
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            self._buffers["payload"] = payload
        if probe.is_floating_point():
            self.weight_dtype = probe.dtype
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "payload"
        others = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(
            others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if key not in state_dict:
            return
        if key in missing_keys:
            missing_keys.remove(key)
        try:
            self.replace_payload(Payload.of(state_dict[key]))
        except (FormatError, ValueError) as error:
            error_msgs.append(f"{key}: {error}")

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes, with the payload as an object that copies share."""
        stored = self.stored()
        state = self.__dict__ | {"_stored": stored}
        state["_buffers"] = {n: b for n, b in self._buffers.items() if n != "payload"}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what `__getstate__` returned."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._buffers = {"payload": self._stored.tensor, **self._buffers}


class CompressedLinear(CompressedLayer):
    """torch.nn.Linear from a compressed weight.

    Tensors: `payload` uint8 [nbytes], a matrix [out_features, in_features]; `bias` [out_features]
    or None. Input [..., in_features], output [..., out_features].
    """

    stock = nn.Linear
    in_features: int
    out_features: int

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """Return the names of the attributes that nn.Linear has too."""
        return ("in_features", "out_features")

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + bias.

        Raises:
            ValueError: if the last dimension of x is not in_features.
        """
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"compressed linear: x has shape {list(x.shape)}, expected [..., {self.in_features}]"
            )
        return _biased(ops.matmul(x, self.payload, self.out_features), self.bias)


class _CompressedConv(CompressedLayer):
    """A convolution of any number of dimensions: windows of x times the compressed kernels."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """Return the names of the attributes that the stock layer has too."""
        return (
            *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
            *("groups", "padding_mode"),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x [N, in_channels, ...] or [in_channels, ...].

        Raises:
            ValueError: if the shape of x does not fit.
        """
        ndim = len(self.kernel_size)
        if x.dim() not in (ndim + 1, ndim + 2) or x.shape[-ndim - 1] != self.in_channels:
            sizes = ", ".join(["size"] * ndim)
            raise ValueError(
                f"compressed convolution: x has shape {list(x.shape)}, "
                f"expected [N, {self.in_channels}, {sizes}] or [{self.in_channels}, {sizes}]"
            )
        batch = x if x.dim() == ndim + 2 else x.unsqueeze(0)
        flat = batch if ndim == 2 else batch.unsqueeze(2)
        pads = self._pads()
        if self.padding_mode != "zeros" and any(pads):
            batch = F.pad(batch, pads, mode=self.padding_mode)
            flat, pads = (batch if ndim == 2 else batch.unsqueeze(2)), [0] * len(pads)
        left, right, top, bottom = pads if ndim == 2 else (*pads, 0, 0)
        geometry = ops.Geometry(
            _both(self.kernel_size, 1),
            _both(self.stride, 1),
            (top, bottom, left, right),
            _both(self.dilation, 1),
            self.groups,
        )
        y = ops.conv(flat, self.payload, self.out_channels, geometry)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)[:, None, None]
        y = y if ndim == 2 else y.squeeze(2)
        return y if x.dim() == ndim + 2 else y.squeeze(0)

    def _pads(self) -> list[int]:
        """Return (before, after) of each dimension, the last dimension first, as F.pad wants."""
        pads: list[int] = []
        for dim in reversed(range(len(self.kernel_size))):
            if self.padding == "same":
                total = self.dilation[dim] * (self.kernel_size[dim] - 1)
                pads += [total // 2, total - total // 2]
            elif isinstance(self.padding, str):
                pads += [0, 0]
            else:
                pads += [self.padding[dim]] * 2
        return pads


def _both(values: tuple[int, ...], height: int) -> tuple[int, int]:
    """Return (height's, width's) of a conv1d or conv2d setting."""
    return (values[0], values[1]) if len(values) == 2 else (height, values[0])


class CompressedConv1d(_CompressedConv):
    """torch.nn.Conv1d from a compressed weight, with stride, padding, dilation and groups.

    Tensors: `payload` uint8 [nbytes], a matrix [out_channels, in_channels / groups * kernel];
    `bias` [out_channels] or None. Input [N, in_channels, length] or without N.
    """

    stock = nn.Conv1d


class CompressedConv2d(_CompressedConv):
    """torch.nn.Conv2d from a compressed weight, with stride, padding, dilation and groups.

    Tensors: `payload` uint8 [nbytes], a matrix [out_channels, in_channels / groups * kh * kw];
    `bias` [out_channels] or None. Input [N, in_channels, height, width] or without N.
    """

    stock = nn.Conv2d


class CompressedEmbedding(CompressedLayer):
    """torch.nn.Embedding from a compressed weight; `max_norm`, which changes it, is refused.

    Tensors: `payload` uint8 [nbytes], a matrix [num_embeddings, embedding_dim]. Input integers of
    any shape, output [*shape, embedding_dim] in `weight_dtype`.
    """

    stock = nn.Embedding
    takes_bias = False
    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None

    def __init__(self, settings: nn.Module, payload: Payload, bias: nn.Parameter | None) -> None:
        """Take over a payload, and the settings of a stock layer.

        Raises:
            ValueError: if the layer has a `max_norm`.
        """
        norm = getattr(settings, "max_norm", None)
        if norm is not None:
            raise ValueError(f"compressed embedding: max_norm is {norm}, expected None")
        super().__init__(settings, payload, bias)

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """Return the names of the attributes that nn.Embedding has too."""
        return (
            *("num_embeddings", "embedding_dim", "padding_idx", "norm_type"),
            *("scale_grad_by_freq", "sparse"),
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows `ids`.

        Raises:
            ValueError: if an id is no integer in [0, num_embeddings).
        """
        return ops.rows(self.payload, ids, self.embedding_dim).to(self.weight_dtype)


COMPRESSED: dict[type[nn.Module], type[CompressedLayer]] = {
    layer.stock: layer
    for layer in (CompressedLinear, CompressedConv1d, CompressedConv2d, CompressedEmbedding)
}


def _biased(y: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return y
    return y + (bias if bias.dtype == y.dtype else bias.to(y.dtype))


def dense_values(weight: Tensor, what: str) -> dtypes.F32:
    """Return a weight as float32 with the same values, to the bit.

    Raises:
        ValueError: if it is not on the CPU, no float tensor, or float32 cannot hold it exactly.
    """
    if weight.device.type != "cpu":
        raise ValueError(f"{what}: weight is on {weight.device}, expected the cpu: model.cpu()")
    name, array = dtypes.from_tensor(weight)
    values = dtypes.widened(array, name)
    if values is None:
        raise ValueError(f"{what}: weight is {name}, expected values that float32 holds exactly")
    return np.ascontiguousarray(values)


def hook_of(module: nn.Module) -> str | None:
    """Return the name of a hook that a compressed layer in its place would lose, or None.

    Hooks of torch.nn.utils.prune do not count: what they compute is the weight.
    """
    before = module._forward_pre_hooks.values()
    hooks = [
        *(hook for hook in before if not isinstance(hook, BasePruningMethod)),
        *module._forward_hooks.values(),
        *module._backward_pre_hooks.values(),
        *module._backward_hooks.values(),
    ]
    return getattr(hooks[0], "__qualname__", type(hooks[0]).__name__) if hooks else None


def replace_layers(model: nn.Module, layers: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put each value where its key is in the model, in place, wherever it stands.

    Returns:
        The model; or what replaces it, if it is itself one of the keys.
    """
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in layers:
                parent._modules[name] = layers[child]
    return layers.get(model, model)
