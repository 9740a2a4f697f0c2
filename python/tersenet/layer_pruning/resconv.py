"""A convolution with a shortcut around it and a factor before it, which fuse to one convolution.

::

    y = scale * bn(W * x) + x                          # trains; scale = 0 leaves x
      = (scale * g * W + Dirac) * x + scale * shift    # g, shift: what bn does in evaluation mode

Dirac is the kernel whose convolution returns its input: 1 in the centre of each channel's own
slice, 0 elsewhere. It exists where the output has the shape of the input: stride 1, as many
channels out as in, an odd kernel, padding that keeps the size.

`from_conv` goes the other way, so that the new layer computes what a trained pair of convolution
and norm did: the norm is folded into the kernel K, and W = (K - Dirac) / scale. Why the norm does
not stay: of W * x, with Dirac subtracted, it has no statistics, so in training it would compute
something else; `converting.normalize` measures them and puts one back.

Price: one multiplication and one addition for each output while training, none when fused.

Source: Xu et al. 2020, arXiv 2011.14356.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class ResConv2d(nn.Module):
    """Computes scale * bn(conv(x)) + x.

    Attributes:
        conv: the convolution.
        bn: the batch norm after it, or None.
        scale: the layer scaling factor, a Parameter of shape [].
    """

    bn: nn.BatchNorm2d | None

    def __init__(
        self, conv: nn.Conv2d, bn: nn.BatchNorm2d | None = None, *, scale: float = 1.0
    ) -> None:
        """Put a shortcut around the layers themselves, which compute something else from now on.

        This is for training from the start; `from_conv` is for a trained model.

        Raises:
            ValueError: if no shortcut fits around them, naming why, or the scale is not finite.
        """
        super().__init__()
        if not math.isfinite(scale):
            raise ValueError(f"resconv: scale is {scale}, expected a finite number")
        reason = misfit(conv, bn)
        if reason is not None:
            raise ValueError(f"resconv: {reason}")
        weight = conv.weight
        self.conv, self.bn = conv, bn
        self._first_scale = scale
        self.scale = nn.Parameter(torch.tensor(scale, dtype=weight.dtype, device=weight.device))
        self.train(conv.training)

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d, bn: nn.BatchNorm2d | None = None, *, scale: float = 1.0
    ) -> ResConv2d:
        """Return a layer that computes what they do in evaluation mode, up to rounding.

        It has no norm: `bn` is folded into its kernel and bias. The arguments stay as they are.

        Raises:
            ValueError: as the constructor, or if the scale is 0 or not finite.

        Examples:
            >>> conv = nn.Conv2d(4, 4, 3, padding=1)
            >>> x = torch.ones(1, 4, 5, 5)
            >>> torch.allclose(ResConv2d.from_conv(conv)(x), conv(x), atol=1e-5)
            True
        """
        if scale == 0 or not math.isfinite(scale):
            raise ValueError(f"resconv: scale is {scale}, expected a finite number other than 0")
        reason = misfit(conv, bn)
        if reason is not None:
            raise ValueError(f"resconv: {reason}")
        kernel, bias = _folded(conv, bn)
        kernel = (kernel - _dirac(kernel, conv.groups)) / scale
        return cls(_with(conv, kernel, None if bias is None else bias / scale), scale=scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return scale * bn(conv(x)) + x, of the shape of x: [batch, channels, height, width]."""
        y = self.conv(x)
        if self.bn is not None:
            y = self.bn(y)
        scaled: Tensor = self.scale * y + x
        return scaled

    def reset_parameters(self) -> None:
        """Draw the convolution anew; norm and factor become as they were at construction.

        What was drawn is trained from the start, also in a layer that `from_conv` made.
        """
        self.conv.reset_parameters()
        if self.bn is not None:
            self.bn.reset_parameters()
        nn.init.constant_(self.scale, self._first_scale)

    def fuse(self) -> nn.Conv2d:
        """Return a plain convolution that computes the same in evaluation mode, up to rounding.

        Raises:
            ValueError: if the weight is pruned, quantized or compressed: it would no longer be.
        """
        if _is_not_plain(self.conv):
            raise ValueError(
                "resconv: the weight is pruned, quantized or compressed, expected a plain "
                "parameter (fuse before, or unparametrize first)"
            )
        kernel, bias = _folded(self.conv, self.bn)
        scale = self.scale.detach().double()
        kernel = scale * kernel + _dirac(kernel, self.conv.groups)
        return _with(self.conv, kernel, None if bias is None else scale * bias)

    def extra_repr(self) -> str:
        """Return the factor, for printing."""
        return f"scale={self.scale.item():.4g}"


def scales(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the layer scaling factor of each ResConv2d, by layer name."""
    return {
        name: module.scale
        for name, module in model.named_modules()
        if isinstance(module, ResConv2d)
    }


def misfit(conv: nn.Module, bn: nn.Module | None) -> str | None:
    """Return why no shortcut fits around a convolution and its norm, or None if one does."""
    if not isinstance(conv, nn.Conv2d):
        return f"layer is {type(conv).__name__}, expected a Conv2d"
    if _is_not_plain(conv):
        return "weight is pruned, quantized or otherwise computed, expected a plain Conv2d"
    if conv.weight.is_meta or not conv.weight.is_floating_point():
        found = "on meta" if conv.weight.is_meta else conv.weight.dtype
        return f"weight is {found}, expected real values"
    if conv.in_channels != conv.out_channels:
        return f"channels are {conv.in_channels} -> {conv.out_channels}, expected as many out as in"
    if conv.stride != (1, 1):
        return f"stride is {_pair(conv.stride)}, expected 1"
    if any(size % 2 == 0 for size in conv.kernel_size):
        return f"kernel is {_pair(conv.kernel_size)}, expected odd sizes"
    same = tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    padding = {"same": same, "valid": (0, 0)}.get(str(conv.padding), conv.padding)
    if padding != same:
        found = conv.padding if isinstance(conv.padding, str) else _pair(conv.padding)
        return f"padding is {found}, expected {_pair(same)}, which keeps the size"
    return None if bn is None else _norm_misfit(conv, bn)


def _norm_misfit(conv: nn.Conv2d, bn: nn.Module) -> str | None:
    if type(bn) is not nn.BatchNorm2d:
        return f"norm is {type(bn).__name__}, expected a BatchNorm2d"
    if bn.num_features != conv.out_channels:
        return f"batch norm has {bn.num_features} channels, expected {conv.out_channels}"
    if bn.running_mean is None:
        return "batch norm has no running statistics, expected them"
    return None


def _is_not_plain(conv: nn.Module) -> bool:
    return type(conv) is not nn.Conv2d or "weight" not in conv._parameters


def _pair(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def _folded(conv: nn.Conv2d, bn: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor | None]:
    """Return kernel and bias of convolution and norm in evaluation mode as one, in float64."""
    kernel = conv.weight.detach().double()
    bias = None if conv.bias is None else conv.bias.detach().double()
    if bn is None:
        return kernel, bias
    assert bn.running_mean is not None
    assert bn.running_var is not None
    factor = (bn.running_var.double() + bn.eps).rsqrt()
    if bn.affine:
        factor = factor * bn.weight.detach().double()
    shift = (0 if bias is None else bias) - bn.running_mean.double()
    shift = shift * factor
    if bn.affine:
        shift = shift + bn.bias.detach().double()
    return kernel * factor[:, None, None, None], shift


def _dirac(kernel: Tensor, groups: int) -> Tensor:
    return nn.init.dirac_(torch.zeros_like(kernel), groups)


def _with(conv: nn.Conv2d, kernel: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """Return a convolution of the same arguments with these values, in the types of its own."""
    like = conv.weight
    made = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=False,
        padding_mode=conv.padding_mode,
        device="meta",  # draws no first weights
    )
    made.weight = nn.Parameter(kernel.to(like), requires_grad=like.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.to(like), requires_grad=like.requires_grad)
    return made.train(conv.training)
