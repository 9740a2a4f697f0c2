"""A small encoder-decoder for stereo disparity: most of its weights work on few pixels.

::

    left, right [1, h, w] -> features, one network for both           16 channels at 1/2
    correlation with the right features shifted by 0, 1, ... pixels   11 channels at 1/2
    encoder   of both, and the left features                          32, 64, 128, 192 at 1/2 … 1/16
    decoder   each level added to the one below, enlarged
    logits of the shifts -> softmax -> their mean, twice as large     [1, h, w] in pixels

Source: correlation: Dosovitskiy et al. 2015, "FlowNet"; mean of a softmax over disparities: Kendall
et al. 2017, "End-to-end learning of geometry and context for deep stereo regression".
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from stereograms import MAX_DISPARITY
from torch import Tensor, nn

from tersenet.training import evaluate

SHIFTS = int(MAX_DISPARITY) // 2 + 1  # of features at half the size


class StereoNet(nn.Module):
    """Images [batch, 2, height, width] to disparities [batch, 1, height, width] of the left one.

    Height and width are even.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 192)) -> None:
        """Make the layers, for channels at 1/2, 1/4, 1/8 and 1/16."""
        super().__init__()
        self.features = nn.Sequential(_block(1, 16, 5, 2), _block(16, 16), _block(16, 16))
        before = SHIFTS + 16
        down: list[nn.Module] = []
        for level, width in enumerate(widths):
            down.append(
                nn.Sequential(_block(before, width, stride=2 if level else 1), _block(width, width))
            )
            before = width
        self.down = nn.ModuleList(down)
        pairs = list(zip(widths[1:], widths[:-1], strict=True))[::-1]
        self.narrow = nn.ModuleList(_block(above, below) for above, below in pairs)
        self.up = nn.ModuleList(_block(below, below) for _, below in pairs)
        self.logits = nn.Conv2d(widths[0], SHIFTS, 3, padding=1)
        self.register_buffer("shifts", torch.arange(SHIFTS).float().view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the disparities."""
        left, right = (self.features(images[:, side : side + 1]) for side in (0, 1))
        x = torch.cat([self._correlated(left, right), left], 1)
        levels = []
        for block in self.down:
            x = block(x)
            levels.append(x)
        x = levels.pop()
        for narrow, up in zip(self.narrow, self.up, strict=True):
            level = levels.pop()
            x = F.interpolate(narrow(x), size=level.shape[2:], mode="nearest")
            x = up(x + level)
        mean = (self.logits(x).softmax(1) * self.shifts).sum(1, keepdim=True)
        return 2 * F.interpolate(mean, scale_factor=2, mode="bilinear", align_corners=False)

    def _correlated(self, left: Tensor, right: Tensor) -> Tensor:
        width = right.shape[3]
        padded = F.pad(right, (SHIFTS - 1, 0))
        shifted = [padded[:, :, :, SHIFTS - 1 - d : SHIFTS - 1 - d + width] for d in range(SHIFTS)]
        return torch.cat([(left * other).mean(1, keepdim=True) for other in shifted], 1)


def _block(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, size, stride, size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


def disparity_loss(found: Tensor, targets: Tensor) -> Tensor:
    """Return the mean smooth L1 distance of disparities, in pixels, where they are valid."""
    wanted, is_valid = targets[:, :1], targets[:, 1:]
    distance = F.smooth_l1_loss(found, wanted, reduction="none")
    return (distance * is_valid).sum() / is_valid.sum()


def end_point_error(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the mean distance of disparities, in pixels, over all that are valid."""
    data = list(batches)
    count = sum(float(targets[:, 1].sum()) for _, targets in data)
    examples = sum(len(targets) for _, targets in data)

    def total(found: Tensor, targets: Tensor) -> Tensor:
        return ((found - targets[:, :1]).abs() * targets[:, 1:]).sum() / len(targets)

    return evaluate(model, data, total) * examples / count
